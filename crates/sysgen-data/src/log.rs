//! What the model has answered so far, on disk: `log.jsonl` gets one line per outcome the moment it is
//! known, so a killed run loses only what was being decoded. Its first line is the key: everything
//! that an outcome depends on. What follows from the outcomes is left to `steps`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sysgen_core::append_log::AppendLog;
use sysgen_core::config::{GenerateSection, RunConfig};
use sysgen_core::files::write_atomically;
use sysgen_core::hash::hash_file;

use crate::generator::{Judged, Reply};

/// Raised when outcomes of older versions can no longer be used.
const LOG_FORMAT: u32 = 1;

/// The phases that ask the model; phase 2 is pure and needs no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Phase 1.
    Draft,
    /// Phase 3.
    Verify,
    /// Phase 4.
    Respond,
}

impl Phase {
    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Draft => "draft",
            Phase::Verify => "verify",
            Phase::Respond => "respond",
        }
    }
}

/// What the model made of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It wrote.
    Reply(Reply),
    /// It chose labels.
    Judged(Judged),
    /// The prompt of so many tokens filled the context.
    TooLong(usize),
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) row: String,
    pub(crate) phase: Phase,
    /// The attempt of a draft, the turn of an answer, else 0.
    pub(crate) attempt: usize,
    pub(crate) answer: Answer,
}

/// All outcomes of one row.
pub(crate) type Answers = BTreeMap<(Phase, usize), Answer>;

/// Everything the log's outcomes depend on, by name. `batch_size`, `device`, `limit`, `shuffle` and
/// `variant` are not in it: they choose rows and shapes, not texts.
pub(crate) type Key = BTreeMap<String, String>;

/// The part of the key that does not need the model: the source data and how it is read.
pub(crate) fn data_key(config: &RunConfig) -> Result<Key> {
    let mut key = Key::new();
    key.insert("log format".to_string(), LOG_FORMAT.to_string());
    // Row ids hold file names and not folders, so a data set may move.
    for (i, path) in config.data.path.iter().enumerate() {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy();
        let hash = hash_file(path).context("data.path")?;
        key.insert(format!("data.path {} ({name})", i + 1), hash);
    }
    key.insert(
        "data.multi_turn".to_string(),
        setting(&config.data.multi_turn),
    );
    key.insert(
        "data.existing_system".to_string(),
        setting(&config.data.existing_system),
    );
    let columns =
        serde_json::to_value(&config.data.columns).expect("a config section is plain data");
    for (name, column) in columns.as_object().into_iter().flatten() {
        if let Some(column) = column.as_str().filter(|column| !column.is_empty()) {
            key.insert(format!("data.columns.{name}"), column.to_string());
        }
    }
    Ok(key)
}

/// The part of the key that says how the model is asked; `prompts` are the hashes of both prompt files.
pub(crate) fn generate_key(seed: u64, generate: &GenerateSection, prompts: [&str; 2]) -> Key {
    let mut key = Key::new();
    let mut insert = |name: &str, value: String| key.insert(name.to_string(), value);
    insert("seed", seed.to_string());
    insert("generate.max_length", generate.max_length.to_string());
    insert("generate.tags", setting(&generate.tags));
    insert("generate.draft_prompt", prompts[0].to_string());
    insert("generate.verify_prompt", prompts[1].to_string());
    let sections = [
        ("draft", serde_json::to_value(&generate.draft)),
        ("verify", serde_json::to_value(&generate.verify)),
        ("respond", serde_json::to_value(&generate.respond)),
    ];
    for (section, values) in sections {
        let values = values.expect("a config section is plain data");
        for (name, value) in values.as_object().into_iter().flatten() {
            insert(&format!("generate.{section}.{name}"), value.to_string());
        }
    }
    key
}

fn setting<T: Serialize>(value: &T) -> String {
    let value = serde_json::to_value(value).expect("a config value is plain data");
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_string)
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Key { key: Key },
    Entry(Entry),
}

/// The log, open for appending.
pub(crate) struct Log {
    file: AppendLog,
}

impl Log {
    /// Opens the log at `path` and gives back what it holds.
    ///
    /// # Errors
    /// A log that was made with another key: the differences, and what to do.
    pub(crate) fn open(path: &Path, key: &Key) -> Result<(Log, HashMap<String, Answers>)> {
        let mut file = AppendLog::open(path)?;
        let mut answers: HashMap<String, Answers> = HashMap::new();
        let mut found = None;
        for line in AppendLog::entries::<Line>(path)? {
            match line? {
                Line::Key { key } if found.is_none() => found = Some(key),
                Line::Entry(entry) if found.is_some() => {
                    let of_row = answers.entry(entry.row).or_default();
                    of_row.insert((entry.phase, entry.attempt), entry.answer);
                }
                _ => bail!(
                    "{} is not a log of this program; choose another output_dir",
                    path.display()
                ),
            }
        }
        match found {
            // Only a key: nothing was answered yet, because the model did not load for example.
            Some(found) if found != *key && answers.is_empty() => {
                drop(file);
                write_atomically(path, |_| Ok(()))?;
                file = AppendLog::open(path)?;
                file.append(&Line::Key { key: key.clone() })?;
            }
            Some(found) => refuse_other_key(path, &found, key)?,
            None => file.append(&Line::Key { key: key.clone() })?,
        }
        Ok((Log { file }, answers))
    }

    pub(crate) fn append(&mut self, entry: Entry) -> Result<()> {
        self.file.append(&Line::Entry(entry))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync()
    }
}

fn refuse_other_key(path: &Path, old: &Key, new: &Key) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let short = |value: Option<&String>| match value {
        None => "absent".to_string(),
        // Hashes: enough to see that they differ.
        Some(value) if value.len() == 64 => value[..8].to_string(),
        Some(value) => value.clone(),
    };
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changes: Vec<String> = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| {
            format!(
                "{name} was {} and is {}",
                short(old.get(name)),
                short(new.get(name))
            )
        })
        .collect();
    let folder = path.parent().unwrap_or(path);
    bail!(
        "{} was written with other settings: {}; change them back, choose another output_dir, or delete {} to start again",
        path.display(),
        changes.join("; "),
        folder.display()
    )
}
