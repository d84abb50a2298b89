//! Every way in which a model directory can be wrong gives one line that names the file and the tensor or key.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sysgen_model::{Decoder, Device, ExportDtype, ModelConfig, StoredDtype};
use tempfile::TempDir;

fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": false, "torch_dtype": "float32", "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": [2, 3]
    })
}

/// A small, valid model directory.
fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::from_json(&config()).unwrap();
    Decoder::random(config, 7, &Device::flex())
        .save(dir.path(), ExportDtype::Auto, None)
        .unwrap();
    dir
}

fn weights(dir: &TempDir) -> PathBuf {
    dir.path().join("model.safetensors")
}

/// Rewrites the header of a safetensors file; the tensors' bytes stay.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(header.as_object_mut().unwrap());
    let header = header.to_string();
    let mut edited = (header.len() as u64).to_le_bytes().to_vec();
    edited.extend(header.as_bytes());
    edited.extend(&bytes[8 + length..]);
    std::fs::write(path, edited).unwrap();
}

/// Splits the single file into two shards with an index.
fn shard(dir: &TempDir) {
    let bytes = std::fs::read(weights(dir)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (mut parts, mut map) = ([Vec::new(), Vec::new()], Map::new());
    for (at, name) in file.names().into_iter().enumerate() {
        parts[at % 2].push((name.to_owned(), file.tensor(name).unwrap()));
        map.insert(
            name.to_owned(),
            json!(format!("model-0000{}-of-00002.safetensors", at % 2 + 1)),
        );
    }
    for (at, part) in parts.into_iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", at + 1);
        safetensors::serialize_to_file(part, None, &dir.path().join(name)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    std::fs::remove_file(weights(dir)).unwrap();
}

#[track_caller]
fn check_error(dir: &Path, words: &[&str]) {
    let message = format!("{:#}", Decoder::load(dir, &Device::flex()).unwrap_err());
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "more than one line: {message}");
}

#[track_caller]
fn check_config_error(change: Value, words: &[&str]) {
    let mut config = config();
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    check_error(dir.path(), &[&["config.json"], words].concat());
}

#[test]
fn a_directory_without_config_is_named() {
    let dir = tempfile::tempdir().unwrap();
    check_error(dir.path(), &["config.json", dir.path().to_str().unwrap()]);
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    check_error(dir.path(), &["config.json", "JSON"]);
}

#[test]
fn an_unknown_model_type_is_named_with_the_supported_ones() {
    check_config_error(
        json!({"model_type": "mamba"}),
        &[
            "model_type",
            "mamba",
            "llama",
            "qwen2",
            "phi3",
            "gemma2",
            "mistral",
            "qwen3",
        ],
    );
    check_config_error(json!({"model_type": null}), &["model_type", "llama"]);
}

#[test]
fn a_config_that_asks_for_something_else_names_the_key() {
    check_config_error(json!({"hidden_size": null}), &["hidden_size", "missing"]);
    check_config_error(
        json!({"vocab_size": "many"}),
        &["vocab_size", "whole number"],
    );
    check_config_error(json!({"num_hidden_layers": 0}), &["num_hidden_layers"]);
    check_config_error(
        json!({"num_key_value_heads": 3}),
        &["num_key_value_heads", "num_attention_heads"],
    );
    check_config_error(json!({"hidden_size": 9}), &["hidden_size", "head_dim"]);
    check_config_error(
        json!({"hidden_act": "relu"}),
        &["hidden_act", "relu", "silu"],
    );
    check_config_error(json!({"torch_dtype": "int8"}), &["torch_dtype", "int8"]);
    check_config_error(
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        &["yarn", "llama3", "longrope"],
    );
    check_config_error(
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        &["low_freq_factor"],
    );
    check_config_error(
        json!({"quantization_config": {"bits": 4}}),
        &["quantization_config"],
    );
    check_config_error(
        json!({"model_type": "mistral", "sliding_window": 4, "layer_types": ["full_attention", "odd"]}),
        &["layer_types", "odd"],
    );
}

#[test]
fn missing_weight_files_are_named() {
    let dir = model();
    std::fs::remove_file(weights(&dir)).unwrap();
    check_error(
        dir.path(),
        &["model.safetensors", "model.safetensors.index.json"],
    );
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    check_error(dir.path(), &["pytorch_model.bin", "safetensors"]);

    let dir = model();
    shard(&dir);
    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    check_error(dir.path(), &["model-00002-of-00002.safetensors"]);
}

#[test]
fn sharded_files_are_read_like_a_single_one() {
    let dir = model();
    let single = Decoder::load(dir.path(), &Device::flex()).unwrap();
    shard(&dir);
    let sharded = Decoder::load(dir.path(), &Device::flex()).unwrap();
    for (a, b) in single.parameters().iter().zip(sharded.parameters()) {
        assert_eq!((&a.name, a.tensor.to_vec()), (&b.name, b.tensor.to_vec()));
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = model();
    edit_header(&weights(&dir), |header| {
        let entry = header.remove("model.norm.weight").unwrap();
        header.insert("model.rotary_emb.inv_freq".to_owned(), entry);
    });
    check_error(
        dir.path(),
        &["`model.norm.weight`", "missing", "model.safetensors"],
    );

    let dir = model();
    shard(&dir);
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["model.other.weight"] = json!("model-00001-of-00002.safetensors");
    std::fs::write(&path, index.to_string()).unwrap();
    check_error(
        dir.path(),
        &[
            "`model.other.weight`",
            "missing",
            "model-00001-of-00002.safetensors",
        ],
    );
}

#[test]
fn a_surplus_tensor_is_named() {
    let dir = model();
    let mut json = config();
    json["num_hidden_layers"] = json!(1);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    check_error(
        dir.path(),
        &[
            "model.layers.1.",
            "model.safetensors",
            "not part of the model",
        ],
    );
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let dir = model();
    let mut json = config();
    json["vocab_size"] = json!(24);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    check_error(
        dir.path(),
        &[
            "`model.embed_tokens.weight`",
            "model.safetensors",
            "[20, 8]",
            "[24, 8]",
        ],
    );
}

#[test]
fn an_unsupported_number_format_is_named() {
    let dir = model();
    edit_header(&weights(&dir), |header| {
        header["model.norm.weight"]["dtype"] = json!("I32")
    });
    check_error(dir.path(), &["`model.norm.weight`", "I32", "BF16"]);
}

#[test]
fn a_truncated_or_damaged_file_is_named_with_the_tensor() {
    let whole = std::fs::read(weights(&model())).unwrap();
    let truncate = |length: usize| {
        let dir = model();
        std::fs::write(weights(&dir), &whole[..length]).unwrap();
        dir
    };
    check_error(
        truncate(whole.len() - 1).path(),
        &[
            "model.safetensors",
            "truncated",
            "tensor `model.norm.weight`",
        ],
    );
    check_error(
        truncate(100).path(),
        &["model.safetensors", "truncated", "header"],
    );
    check_error(truncate(3).path(), &["model.safetensors", "truncated"]);
    check_error(truncate(0).path(), &["model.safetensors"]);

    let dir = model();
    std::fs::write(weights(&dir), [whole.as_slice(), b"more"].concat()).unwrap();
    check_error(dir.path(), &["model.safetensors", "end at byte"]);

    let dir = model();
    edit_header(&weights(&dir), |header| {
        header["model.norm.weight"]["shape"] = json!([9])
    });
    check_error(
        dir.path(),
        &["model.safetensors", "`model.norm.weight`", "damaged"],
    );
    let dir = model();
    edit_header(&weights(&dir), |header| {
        header["model.norm.weight"]["data_offsets"] = json!([32, 0])
    });
    check_error(dir.path(), &["model.safetensors", "`model.norm.weight`"]);
}

#[test]
fn an_index_cannot_lead_out_of_the_directory() {
    let dir = model();
    shard(&dir);
    let path = dir.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("model-00002", "../model-00002");
    std::fs::write(&path, text).unwrap();
    check_error(dir.path(), &["weight_map", "plain file name"]);
}

/// Adds a tensor of f32 zeros, or of the bytes of another tensor, at the end of a file.
fn add_tensor(path: &Path, name: &str, like: &str, same: bool) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let source = file.tensor(like).unwrap();
    let data = if same {
        source.data().to_vec()
    } else {
        vec![0; source.data().len()]
    };
    let mut tensors: Vec<_> = file.tensors();
    tensors.push((
        name.to_owned(),
        safetensors::tensor::TensorView::new(source.dtype(), source.shape().to_vec(), &data)
            .unwrap(),
    ));
    let edited = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(path, edited).unwrap();
}

#[test]
fn rotary_buffers_of_old_exporters_are_ignored_and_written_back() {
    let dir = model();
    add_tensor(
        &weights(&dir),
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.norm.weight",
        true,
    );
    let decoder = Decoder::load(dir.path(), &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    decoder
        .save(out.path(), ExportDtype::Auto, Some(dir.path()))
        .unwrap();
    assert!(std::fs::read(weights(&out)).unwrap() == std::fs::read(weights(&dir)).unwrap());
}

#[test]
fn a_stored_copy_of_a_tied_head_is_accepted_and_another_head_is_not() {
    let mut json = config();
    json["tie_word_embeddings"] = json!(true);
    let tied = || {
        let dir = tempfile::tempdir().unwrap();
        Decoder::random(ModelConfig::from_json(&json).unwrap(), 7, &Device::flex())
            .save(dir.path(), ExportDtype::Auto, None)
            .unwrap();
        dir
    };
    let dir = tied();
    add_tensor(
        &weights(&dir),
        "lm_head.weight",
        "model.embed_tokens.weight",
        true,
    );
    let decoder = Decoder::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(
        decoder
            .parameters()
            .iter()
            .filter(|parameter| parameter.name == "lm_head.weight")
            .count(),
        0
    );
    let out = tempfile::tempdir().unwrap();
    decoder
        .save(out.path(), ExportDtype::Auto, Some(dir.path()))
        .unwrap();
    assert!(std::fs::read(weights(&out)).unwrap() == std::fs::read(weights(&dir)).unwrap());

    let dir = tied();
    add_tensor(
        &weights(&dir),
        "lm_head.weight",
        "model.embed_tokens.weight",
        false,
    );
    check_error(
        dir.path(),
        &["`lm_head.weight`", "differs", "tie_word_embeddings"],
    );
}

#[test]
fn random_weights_depend_on_the_seed_and_have_the_deviation_asked_for() {
    let make = |seed| {
        Decoder::random(
            ModelConfig::from_json(&config()).unwrap(),
            seed,
            &Device::flex(),
        )
        .parameters()
    };
    let (a, b, c) = (make(1), make(1), make(2));
    assert_eq!(a[0].tensor.to_vec(), b[0].tensor.to_vec());
    assert_ne!(a[0].tensor.to_vec(), c[0].tensor.to_vec());
    let matrices: Vec<f32> = a
        .iter()
        .filter(|p| p.tensor.shape().len() == 2)
        .flat_map(|p| p.tensor.to_vec())
        .collect();
    let deviation = (matrices.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
        / matrices.len() as f64)
        .sqrt();
    // 1 300 values: the estimate is off by about 2 %.
    assert!((deviation / 0.02 - 1.0).abs() < 0.08, "{deviation}");
    assert!(
        a.iter().filter(|p| p.tensor.shape().len() == 1).all(|p| p
            .tensor
            .to_vec()
            .iter()
            .all(|v| *v == 1.0))
    );
}

#[test]
fn an_export_in_another_format_says_so_in_its_config_and_is_rounded_to_nearest() {
    let dir = model();
    let decoder = Decoder::load(dir.path(), &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    decoder
        .save(
            out.path(),
            ExportDtype::Of(StoredDtype::Bf16),
            Some(dir.path()),
        )
        .unwrap();
    let again = Decoder::load(out.path(), &Device::flex()).unwrap();
    assert_eq!(again.config.stored_dtype, StoredDtype::Bf16);
    assert_eq!(again.config.json["eos_token_id"], json!([2, 3]));
    for (before, after) in decoder.parameters().iter().zip(again.parameters()) {
        for (before, after) in before.tensor.to_vec().iter().zip(after.tensor.to_vec()) {
            assert!(
                (before - after).abs() <= before.abs() / 256.0,
                "{before} became {after}"
            );
        }
    }
    let generation: Value =
        serde_json::from_slice(&std::fs::read(out.path().join("generation_config.json")).unwrap())
            .unwrap();
    assert_eq!(
        generation,
        json!({"bos_token_id": 1, "eos_token_id": [2, 3]})
    );
}

#[test]
fn weights_that_would_be_read_beside_the_export_are_refused() {
    let dir = model();
    let decoder = Decoder::load(dir.path(), &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("model-00001-of-00002.safetensors"), "").unwrap();
    let message = format!(
        "{:#}",
        decoder
            .save(out.path(), ExportDtype::Auto, None)
            .unwrap_err()
    );
    assert!(
        message.contains("model-00001-of-00002.safetensors") && message.contains("empty directory"),
        "{message}"
    );
    assert!(!weights(&out).exists());
}
