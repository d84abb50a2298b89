//! What makes a run the run it is: everything that changes the numbers it computes, as words a person can compare.
//!
//! Kept with the run and with each checkpoint. Settings that only change what is written or shown (how often to save,
//! how many samples) are left out: they may change between a stop and going on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::hash::hash_bytes;

use crate::example::Example;
use crate::method;
use crate::stored_teacher::Stored;

/// Key to value, both readable.
pub type Identity = BTreeMap<String, String>;

/// Keys of `[train]` that do not change what is computed.
const NEUTRAL: [&str; 17] = [
    // What they make together is said: a run may go on with another number of devices.
    "devices",
    "gradient_accumulation_steps",
    "early_stopping_patience",
    "early_stopping_threshold",
    "load_best_model_at_end",
    "metric_for_best_model",
    "obedience_probe",
    "report_to",
    "gradient_checkpointing",
    "optimizer_in_backward",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_steps",
    "samples",
    "max_nonfinite_steps",
];

/// Keys of `[distill]` that say nothing where the student writes no answers.
const ON_POLICY: [&str; 3] = ["on_policy", "max_new_tokens", "on_policy_temperature"];

/// The identity of training `train` by this config, with the probabilities `stored` for these rows.
///
/// # Errors
/// When the model folder cannot be read.
pub fn identity(
    config: &RunConfig,
    chat: &Chat,
    train: &[Example],
    held_out: &[Example],
    stored: Option<&Stored>,
) -> Result<Identity> {
    let mut identity = Identity::new();
    let mut say = |key: &str, value: String| identity.insert(key.to_string(), value);
    say("seed", config.seed.to_string());
    say("model.path", config.model.path.display().to_string());
    say("model.init", word(&config.model.init));
    say("model files", model_files(config)?);
    say("tokenizer and chat template", chat.fingerprint());
    if !config.data.weights.is_empty() {
        say("data.weights", format!("{:?}", config.data.weights));
        let sets: Vec<u8> = train.iter().flat_map(|e| e.set.to_le_bytes()).collect();
        say("files of the training rows", hash_bytes(&sets));
    }
    say("training rows", hash_examples(train));
    say("held-out rows", hash_examples(held_out));
    if let Some(train) = &config.train
        && !train.lora_adapter.as_os_str().is_empty()
    {
        let files = method::adapter_files(&train.lora_adapter)?;
        say("adapter files", hash_bytes(files.as_bytes()));
    }
    if let Some(stored) = stored {
        say("stored probabilities", hash_stored(stored, train));
    }
    if let Some(distill) = &config.distill {
        say_distill(distill, &mut |key, value| drop(say(key, value)))?;
    }
    if let Some(section) = &config.train
        && let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(section)
    {
        say(
            "micro-batches of a step",
            section.micro_batches().to_string(),
        );
        let adapter = section.method.has_adapter();
        for (key, value) in keys
            .iter()
            .filter(|(key, _)| !NEUTRAL.contains(&key.as_str()) && (adapter || !of_adapters(key)))
        {
            say(&format!("train.{key}"), word(value));
        }
    }
    Ok(identity)
}

/// The teacher by its config and its weights, and how it is learnt from.
fn say_distill(
    distill: &sysgen_core::config::DistillSection,
    say: &mut impl FnMut(&str, String),
) -> Result<()> {
    if let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(distill) {
        let off = |key: &str| distill.on_policy == 0.0 && ON_POLICY.contains(&key);
        for (key, value) in keys.iter().filter(|(key, _)| !off(key)) {
            say(&format!("distill.{key}"), word(value));
        }
    }
    if !distill.teacher.as_os_str().is_empty() {
        let mut lines = vec![sysgen_core::hash::hash_file(
            &distill.teacher.join("config.json"),
        )?];
        lines.extend(weight_files(&distill.teacher)?);
        say("teacher files", hash_bytes(lines.join("\n").as_bytes()));
    }
    Ok(())
}

/// Keys that say nothing where no adapter is trained.
fn of_adapters(key: &str) -> bool {
    key.starts_with("lora_") || ["use_rslora", "use_dora"].contains(&key)
}

/// What differs, as `key was a, is b`; nothing when they are equal.
pub fn differences(was: &Identity, is: &Identity) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let value = |identity: &Identity, key| {
        identity
            .get(key)
            .map_or_else(|| "absent".to_string(), |v| shorten(v))
    };
    keys.into_iter()
        .filter(|&key| was.get(key) != is.get(key))
        .map(|key| format!("{key} was {}, is {}", value(was, key), value(is, key)))
        .collect()
}

fn shorten(value: &str) -> String {
    let hash = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
    if hash {
        format!("{}…", &value[..8])
    } else {
        value.to_string()
    }
}

fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(value) => value.to_string(),
        Err(error) => error.to_string(),
    }
}

/// `config.json` by content, weights by name, size and samples of their content.
fn model_files(config: &RunConfig) -> Result<String> {
    let dir = &config.model.path;
    let mut lines = vec![sysgen_core::hash::hash_file(&dir.join("config.json"))?];
    if config.model.init == sysgen_core::config::ModelInit::Pretrained {
        lines.extend(weight_files(dir)?);
    }
    Ok(hash_bytes(lines.join("\n").as_bytes()))
}

fn weight_files(dir: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".safetensors") {
            let sampled = sampled(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push(format!("{name} {sampled}"));
        }
    }
    files.sort();
    Ok(files)
}

/// Pieces of a file of weights that are looked at, and the bytes of each.
const PIECES: u64 = 8;
const PIECE: u64 = 1 << 20;

/// A file's size and the hash of pieces spread evenly over it, its head with names and shapes among them: reading the weights
/// of a large model twice would cost minutes, and training changes all of them.
fn sampled(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    if size <= PIECES * PIECE {
        io::copy(&mut file, &mut hasher)?;
    } else {
        let mut bytes = vec![0; PIECE as usize];
        for piece in 0..PIECES {
            file.seek(SeekFrom::Start((size - PIECE) * piece / (PIECES - 1)))?;
            file.read_exact(&mut bytes)?;
            hasher.update(&bytes);
        }
    }
    Ok(format!("{size} {}", hasher.finalize().to_hex()))
}

fn hash_examples(examples: &[Example]) -> String {
    let mut hasher = blake3::Hasher::new();
    // A row at a time: the hash of many bytes is much faster than many hashes of few.
    let mut row = Vec::new();
    for example in examples {
        row.clear();
        row.extend((example.ids.len() as u64).to_le_bytes());
        for (id, learn) in example.ids.iter().zip(&example.learn) {
            row.extend(id.to_le_bytes());
            row.push(u8::from(*learn));
        }
        hasher.update(&row);
    }
    hasher.finalize().to_hex().to_string()
}

/// In the order of the examples, so that the file's order does not matter.
fn hash_stored(stored: &Stored, examples: &[Example]) -> String {
    let mut hasher = blake3::Hasher::new();
    for top in examples.iter().filter_map(|e| stored.get(&e.id)) {
        hasher.update(&(top.k as u64).to_le_bytes());
        hasher.update(&(top.ids.len() as u64).to_le_bytes());
        for (id, log) in top.ids.iter().zip(&top.log_probabilities) {
            hasher.update(&id.to_le_bytes());
            hasher.update(&log.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn weights_of_one_name_and_size_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        for size in [1000, 40 << 20] {
            let mut bytes = vec![1_u8; size];
            std::fs::write(&path, &bytes).unwrap();
            let before = weight_files(dir.path()).unwrap();
            assert_eq!(weight_files(dir.path()).unwrap(), before);
            // As training does: a little of everything.
            bytes.iter_mut().step_by(512).for_each(|byte| *byte ^= 1);
            std::fs::write(&path, &bytes).unwrap();
            assert_ne!(weight_files(dir.path()).unwrap(), before);
            // Only the head, or only the end, of a large file.
            for at in [0, size - 1] {
                bytes[at] ^= 2;
                let before = weight_files(dir.path()).unwrap();
                std::fs::write(&path, &bytes).unwrap();
                assert_ne!(weight_files(dir.path()).unwrap(), before, "byte {at}");
            }
        }
    }

    #[test]
    fn other_stored_probabilities_are_another_run() {
        let example = |id: &str| Example {
            id: id.to_string(),
            ids: vec![1, 2],
            learn: vec![false, true],
            set: 0,
        };
        let stored = |log: f32| {
            let top = |log_probabilities| sysgen_ops::TopK {
                k: 1,
                ids: vec![2],
                log_probabilities,
            };
            Stored::from([("a".into(), top(vec![-0.1])), ("b".into(), top(vec![log]))])
        };
        let examples = [example("a"), example("b")];
        let hash = |log, examples: &[Example]| hash_stored(&stored(log), examples);
        assert_eq!(hash(-0.2, &examples), hash(-0.2, &examples));
        assert_ne!(hash(-0.2, &examples), hash(-0.3, &examples));
        assert_ne!(hash(-0.2, &examples), hash(-0.2, &examples[..1]));
    }

    #[test]
    fn a_changed_key_is_said_with_both_values() {
        let was = Identity::from([
            ("seed".into(), "1".into()),
            ("train.learning_rate".into(), "1e-5".into()),
        ]);
        let is = Identity::from([
            ("seed".into(), "1".into()),
            ("train.learning_rate".into(), "2e-5".into()),
        ]);
        assert_eq!(
            differences(&was, &is),
            ["train.learning_rate was 1e-5, is 2e-5"]
        );
        assert!(differences(&was, &was).is_empty());
    }
}
