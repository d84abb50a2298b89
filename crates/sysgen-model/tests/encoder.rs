//! Encoders against transformers (`tests/golden/make/gen_encoder.py`), and what is refused.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use sysgen_model::{Device, Encoder, EncoderConfig};
use tempfile::TempDir;

/// Hidden states, largest absolute difference.
const HIDDEN: f32 = 1e-5;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// The folders of `encoder/` below `SYSGEN_GOLDEN`, or of this repository where that has none.
fn cases() -> Vec<PathBuf> {
    let root = std::env::var_os("SYSGEN_GOLDEN").map_or_else(repository, PathBuf::from);
    let root = match root.join("encoder").is_dir() {
        true => root.join("encoder"),
        false => repository().join("encoder"),
    };
    let entries = std::fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no case in {}", root.display());
    cases
}

/// The ids of each text, and its hidden states after the embeddings and after each layer.
type Reference = Vec<(Vec<u32>, Vec<Vec<f32>>)>;

fn reference(case: &Path) -> Reference {
    let bytes = std::fs::read(case.join("reference.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Option<Vec<u32>> {
        let data = file.tensor(name).ok()?.data().to_vec();
        let eight = data.as_chunks::<8>().0.iter();
        Some(eight.map(|b| i64::from_le_bytes(*b) as u32).collect())
    };
    let floats = |name: &str| -> Option<Vec<f32>> {
        let data = file.tensor(name).ok()?.data().to_vec();
        let four = data.as_chunks::<4>().0.iter();
        Some(four.map(|b| f32::from_le_bytes(*b)).collect())
    };
    let texts: Reference = (0..)
        .map_while(|i| {
            let states = (0..).map_while(|layer| floats(&format!("{i}.layer{layer}")));
            Some((ids(&format!("{i}.ids"))?, states.collect()))
        })
        .collect();
    assert!(!texts.is_empty());
    texts
}

fn load(dir: &Path) -> Encoder {
    let layers = EncoderConfig::from_directory(dir).unwrap().layers;
    Encoder::load(dir, layers, &Device::flex()).unwrap()
}

fn values(tensor: Tensor<3>) -> Vec<f32> {
    tensor.into_data().try_into_vec_as().unwrap()
}

#[track_caller]
fn check(what: &str, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (at, (a, b)) in ours.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= HIDDEN, "{what}, value {at}: {a}, not {b}");
    }
}

#[track_caller]
fn check_all_states(dir: &Path, reference: &Reference) {
    let encoder = load(dir);
    for (text, (ids, expected)) in reference.iter().enumerate() {
        let states = encoder.hidden_states(&[ids]);
        assert_eq!(states.len(), expected.len(), "{}", dir.display());
        for (layer, (state, expected)) in states.into_iter().zip(expected).enumerate() {
            let what = format!("{}, text {text}, layer {layer}", dir.display());
            check(&what, &values(state), expected);
        }
    }
}

#[test]
fn golden_encoder_has_the_hidden_states_of_transformers_after_every_layer() {
    for case in cases() {
        check_all_states(&case, &reference(&case));
    }
}

#[test]
fn golden_encoder_gives_a_text_in_a_batch_what_it_gives_it_alone() {
    for case in cases() {
        let reference = reference(&case);
        let texts: Vec<&[u32]> = reference.iter().map(|(ids, _)| ids.as_slice()).collect();
        let hidden = load(&case).hidden(&texts);
        let [_, longest, dim] = hidden.dims();
        for (text, ((ids, states), row)) in reference
            .iter()
            .zip(values(hidden).chunks(longest * dim))
            .enumerate()
        {
            let what = format!("{}, text {text}", case.display());
            check(&what, &row[..ids.len() * dim], states.last().unwrap());
        }
    }
}

/// A copy of a case with its tensors renamed.
fn renamed(case: &Path, rename: impl Fn(&str) -> String) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = std::fs::read(case.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, TensorView)> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| (rename(&name), tensor))
        .collect();
    let path = dir.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    dir
}

fn set(dir: &Path, key: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn names_may_have_a_prefix_or_be_of_the_first_files() {
    for (name, prefix) in [("bert", "bert."), ("roberta", "roberta.")] {
        let case = repository().join("encoder").join(name);
        let reference = reference(&case);
        let bare = renamed(&case, |name| name.replace(prefix, ""));
        check_all_states(bare.path(), &reference);
        let prefixed = renamed(bare.path(), |name| format!("{prefix}{name}"));
        check_all_states(prefixed.path(), &reference);
        let old = renamed(bare.path(), |name| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta")
        });
        check_all_states(old.path(), &reference);
    }
}

#[test]
fn xlm_roberta_is_a_roberta() {
    let case = repository().join("encoder/roberta");
    let dir = renamed(&case, str::to_string);
    set(dir.path(), "model_type", json!("xlm-roberta"));
    check_all_states(dir.path(), &reference(&case));
}

#[test]
fn fewer_layers_are_the_beginning_of_all() {
    for case in cases() {
        let (ids, expected) = &reference(&case)[0];
        for (layers, expected) in expected.iter().enumerate() {
            let encoder = Encoder::load(&case, layers, &Device::flex()).unwrap();
            let what = format!("{}, {layers} layers", case.display());
            check(&what, &values(encoder.hidden(&[ids])), expected);
        }
    }
}

#[test]
fn the_longest_text_leaves_robertas_first_positions_out() {
    let lengths: HashMap<String, usize> = ["bert", "roberta"]
        .map(|name| {
            let dir = repository().join("encoder").join(name);
            let config = EncoderConfig::from_directory(&dir).unwrap();
            (name.to_string(), config.max_length())
        })
        .into();
    assert_eq!((lengths["bert"], lengths["roberta"]), (40, 38));
}

#[test]
fn what_is_no_encoder_or_not_whole_is_one_clear_line() {
    let case = repository().join("encoder/bert");
    let edits: [(&str, Value, &[&str]); 9] = [
        ("model_type", json!("llama"), &["is a decoder", "roberta"]),
        (
            "model_type",
            json!("deberta-v2"),
            &["deberta-v2", "supported: bert"],
        ),
        ("model_type", Value::Null, &["`model_type` is missing"]),
        ("is_decoder", json!(true), &["`is_decoder`"]),
        ("hidden_act", json!("gelu_new"), &["gelu_new"]),
        (
            "position_embedding_type",
            json!("relative_key"),
            &["relative_key"],
        ),
        (
            "num_attention_heads",
            json!(5),
            &["num_attention_heads", "5"],
        ),
        (
            "max_position_embeddings",
            json!(512),
            &[
                "embeddings.position_embeddings.weight",
                "[40, 32]",
                "[512, 32]",
            ],
        ),
        (
            "num_hidden_layers",
            json!(3),
            &["encoder.layer.2.", "missing"],
        ),
    ];
    for (key, value, words) in edits {
        let dir = renamed(&case, str::to_string);
        set(dir.path(), key, value.clone());
        let layers = if key == "num_hidden_layers" { 3 } else { 2 };
        check_error(dir.path(), layers, words);
    }
    check_error(&case, 3, &["has 2 layers, not 3"]);
    let other = renamed(&case, |name| format!("model.{name}"));
    check_error(
        other.path(),
        2,
        &["embeddings.word_embeddings.weight", "bert."],
    );
    check_error(Path::new("/nowhere"), 2, &["/nowhere/config.json"]);
}

#[track_caller]
fn check_error(dir: &Path, layers: usize, words: &[&str]) {
    let Err(error) = Encoder::load(dir, layers, &Device::flex()) else {
        panic!("{} was loaded", dir.display());
    };
    let message = format!("{error:#}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "more than one line: {message}");
}
