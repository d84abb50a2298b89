//! What the model has answered so far, on disk: `log.jsonl` gets one line per outcome the moment it is
//! known, so a killed run loses only what was being decoded. Its first line is the key: everything
//! that an outcome depends on. Every shard has a log of its own and reads all. What follows from the outcomes is left to `steps`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sysgen_core::append_log::{AppendLog, Span};
use sysgen_core::config::{DataSection, GenerateSection};
use sysgen_core::files::write_atomically;
use sysgen_core::hash::FileHashes;

use crate::generator::{Judged, Reply};
use crate::input::source_name;
use crate::shard::Shard;

/// Raised when outcomes of older versions can no longer be used.
const LOG_FORMAT: u32 = 2;

/// Settings that only answers of phase 4 depend on: after a change, drafts and judgements still count.
const ONLY_RESPOND: &str = "generate.respond.";

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
    /// The model will not answer it: why.
    Refused(String),
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) row: String,
    pub(crate) phase: Phase,
    /// The attempt of a draft, the turn of an answer, else 0.
    pub(crate) attempt: usize,
    /// Of the system message that an answer was written under, which moves with `generate.verify.threshold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) system_hash: Option<u64>,
    pub(crate) answer: Answer,
}

/// The outcomes of one row that count.
pub(crate) type Answers = BTreeMap<(Phase, usize), Answer>;

/// Everything the log's outcomes depend on, by name. `batch_size`, `device`, `limit`, `shuffle`,
/// `variant` and `verify.threshold` are not in it: they choose rows, phrases and shapes, not texts.
pub(crate) type Key = BTreeMap<String, String>;

/// The part of the key that does not need the model: the source data and how it is read.
pub(crate) fn data_key(data: &DataSection, files: &FileHashes) -> Result<Key> {
    let mut key = Key::new();
    key.insert("log format".to_string(), LOG_FORMAT.to_string());
    // Row ids hold file names and not folders, so a data set may move.
    for (i, path) in data.path.iter().enumerate() {
        let name = source_name(path);
        let hash = files.of(path).context("data.path")?;
        key.insert(format!("data.path {} ({name})", i + 1), hash);
    }
    key.insert("data.multi_turn".to_string(), setting(&data.multi_turn));
    key.insert(
        "data.existing_system".to_string(),
        setting(&data.existing_system),
    );
    let columns = serde_json::to_value(&data.columns).expect("a config section is plain data");
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
        let values = values.as_object().into_iter().flatten();
        for (name, value) in values.filter(|(name, _)| *name != "threshold") {
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

#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Key { key: &'a Key },
    Entry(&'a Entry),
}

/// A line without its answer, which is read again when it is wanted.
#[derive(Deserialize)]
struct Head {
    key: Option<Key>,
    row: Option<String>,
    phase: Option<Phase>,
    attempt: Option<usize>,
    system_hash: Option<u64>,
    #[allow(dead_code)]
    answer: Option<IgnoredAny>,
}

/// Where an answer lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    phase: Phase,
    attempt: usize,
    system_hash: Option<u64>,
    file: usize,
    span: Span,
}

impl Place {
    fn request(&self) -> (Phase, usize, Option<u64>) {
        (self.phase, self.attempt, self.system_hash)
    }
}

/// A log with answers.
struct LogFile {
    path: PathBuf,
    file: File,
    /// What its last answers were made with.
    key: Key,
}

/// The logs of all shards, and the one that this process appends to. Only where the answers lie is in
/// memory; they themselves stay in the files.
pub(crate) struct Log {
    directory: PathBuf,
    key: Key,
    files: Vec<LogFile>,
    places: HashMap<String, Vec<Place>>,
    /// The log of this process, and its index in `files`.
    own: Option<(AppendLog, usize)>,
}

impl Log {
    /// Reads the logs in `directory`; there may be none.
    ///
    /// # Errors
    /// A log that was made with another key: the differences, and what to do.
    pub(crate) fn read(directory: &Path, key: &Key) -> Result<Log> {
        let mut log = Log {
            directory: directory.to_path_buf(),
            key: key.clone(),
            files: Vec::new(),
            places: HashMap::new(),
            own: None,
        };
        for path in log_files(directory)? {
            log.read_file(&path)?;
        }
        Ok(log)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let mut key: Option<Key> = None;
        // Known at the first answer: a key without answers holds nobody back.
        let mut usable = None;
        let mut entries = 0;
        let file = self.files.len();
        for line in AppendLog::entries_with_spans::<Head>(path)? {
            let (span, head) = line?;
            match (head.key, head.row, head.phase, head.attempt) {
                (Some(found), ..) => (key, usable) = (Some(found), None),
                (None, Some(row), Some(phase), Some(attempt)) if let Some(key) = &key => {
                    entries += 1;
                    let usable = match usable {
                        Some(usable) => usable,
                        None => *usable.insert(usable_with(path, key, &self.key)?),
                    };
                    if usable == Usable::ButResponses && phase == Phase::Respond {
                        continue;
                    }
                    let place = Place {
                        phase,
                        attempt,
                        system_hash: head.system_hash,
                        file,
                        span,
                    };
                    let places = self.places.entry(row).or_default();
                    if !places
                        .iter()
                        .any(|known| known.request() == place.request())
                    {
                        places.push(place);
                    }
                }
                (None, Some(_), Some(_), Some(_)) => bail!(
                    "{}: the first line, which says what the answers were made with, is gone; choose another output_dir, or delete this file to start again",
                    path.display()
                ),
                _ => bail!(
                    "{} is not a log of this program; choose another output_dir",
                    path.display()
                ),
            }
        }
        match key {
            // Only a key: nothing was answered yet, because the model did not load for example.
            _ if entries == 0 => Ok(()),
            Some(key) => self.open_for_reading(path, key).map(|_| ()),
            None => Ok(()),
        }
    }

    fn open_for_reading(&mut self, path: &Path, key: Key) -> Result<usize> {
        let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
        let path = path.to_path_buf();
        self.files.push(LogFile { path, file, key });
        Ok(self.files.len() - 1)
    }

    /// From now on `append` adds to the log of `shard`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_to(&mut self, shard: Shard) -> Result<()> {
        let path = self.directory.join(shard.log_file());
        let mut own = AppendLog::open(&path)?;
        let known = self.files.iter().position(|known| known.path == path);
        let file = match known {
            Some(file) => {
                if self.files[file].key != self.key {
                    own.append(&Line::Key { key: &self.key })?;
                    self.files[file].key = self.key.clone();
                }
                file
            }
            None => {
                // New, or without answers: then its key may be an old one.
                drop(own);
                write_atomically(&path, |_| Ok(()))?;
                own = AppendLog::open(&path)?;
                own.append(&Line::Key { key: &self.key })?;
                self.open_for_reading(&path, self.key.clone())?
            }
        };
        self.own = Some((own, file));
        Ok(())
    }

    /// How many answers a row has.
    pub(crate) fn count(&self, row: &str) -> usize {
        self.places.get(row).map_or(0, Vec::len)
    }

    /// All answers of a row; `Plan::answers` says which of them count.
    ///
    /// # Errors
    /// A log that cannot be read, or an answer in it.
    pub(crate) fn entries(&self, row: &str) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for place in self.places.get(row).into_iter().flatten() {
            let LogFile { path, file, .. } = &self.files[place.file];
            let mut bytes = vec![0; place.span.length];
            let read = file.read_exact_at(&mut bytes, place.span.offset);
            read.with_context(|| format!("reading {}", path.display()))?;
            let entry: Entry = serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{}: the answer of row {row} at byte {} is damaged; delete this line to have the row done again",
                    path.display(),
                    place.span.offset
                )
            })?;
            entries.push(entry);
        }
        Ok(entries)
    }

    pub(crate) fn append(&mut self, entry: &Entry) -> Result<()> {
        let (own, file) = self.own.as_mut().expect("write_to was called");
        let span = own.append(&Line::Entry(entry))?;
        let place = Place {
            phase: entry.phase,
            attempt: entry.attempt,
            system_hash: entry.system_hash,
            file: *file,
            span,
        };
        match self.places.get_mut(&entry.row) {
            Some(places) => places.push(place),
            None => {
                self.places.insert(entry.row.clone(), vec![place]);
            }
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.own.as_ref().map_or(Ok(()), |(own, _)| own.sync())
    }
}

/// The logs in `directory`, by name.
fn log_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == "log.jsonl" || (name.starts_with("log-") && name.ends_with(".jsonl")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Which answers of a log count.
#[derive(Clone, Copy, PartialEq)]
enum Usable {
    All,
    ButResponses,
}

/// Which answers that were made with the key `old` count in a run of the key `new`; an error where none does.
fn usable_with(path: &Path, old: &Key, new: &Key) -> Result<Usable> {
    if old == new {
        return Ok(Usable::All);
    }
    let short = |value: Option<&String>| match value {
        None => "absent".to_string(),
        // Hashes: enough to see that they differ.
        Some(value) if value.len() == 64 => value[..8].to_string(),
        Some(value) => value.clone(),
    };
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed: Vec<&String> = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .collect();
    if changed.iter().all(|name| name.starts_with(ONLY_RESPOND)) {
        return Ok(Usable::ButResponses);
    }
    let changes: Vec<String> = changed
        .into_iter()
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
