//! The source data: files of many formats become rows for the phases. A row that cannot be read is
//! counted by its reason with its line; it is never silently missing, and fatal only with `strict`.

mod container;
mod format;
mod turns;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sysgen_core::config::{DataSection, ExistingSystem};
use sysgen_core::hash::seed_from;
use sysgen_core::record::Record;

pub use turns::{Row, Turn};

/// How many places of one reason are named; the rest is only counted.
const PLACES_NAMED: usize = 5;

/// Rows that share a reason for being left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// How many.
    pub count: usize,
    /// The first few, as `<file name>:<line>`.
    pub first: Vec<String>,
}

/// What was read, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCounts {
    /// Rows in the files, readable or not.
    pub found: usize,
    /// Rows that could not be read, by reason.
    pub unreadable: BTreeMap<String, Places>,
    /// Rows left out because they have a system message (`existing_system = "skip"`).
    pub with_system: usize,
    /// Rows left out by `data.limit`.
    pub beyond_limit: usize,
    /// Conversations whose last question has no answer; the turns before it are used.
    pub last_question_unanswered: usize,
    /// Source rows that are used.
    pub used: usize,
    /// Rows for the phases: more than `used` when conversations are unrolled.
    pub rows: usize,
}

/// The source data, read.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// The rows for the phases, in source order (or shuffled).
    pub rows: Vec<Row>,
    /// What was read and what was not.
    pub counts: ReadCounts,
}

/// Reads every readable row of the files of `[data]`, without limit or order, as a conversation.
///
/// # Errors
/// A missing or damaged file; with `strict`, the first row that cannot be used.
pub fn read_records(data: &DataSection) -> Result<(Vec<Record>, ReadCounts)> {
    let mut records = Vec::new();
    let mut counts = ReadCounts::default();
    let mut ids = HashSet::new();
    for path in &data.path {
        let name = file_name(path);
        container::for_each_entry(path, &mut |entry| {
            counts.found += 1;
            let place = format!("{name}:{}", entry.line);
            let read = entry.value.and_then(|value| {
                let messages = format::messages_of(&value)?;
                let (_, unanswered) = turns::pair_up(messages.clone())?;
                Ok((own_id(&value).or(entry.key), messages, unanswered))
            });
            match read {
                Ok((own_id, messages, unanswered)) => {
                    counts.last_question_unanswered += usize::from(unanswered);
                    let id = unique_id(
                        &mut ids,
                        [
                            own_id,
                            Some(place.clone()),
                            Some(format!("{}:{}", path.display(), entry.line)),
                        ],
                    );
                    records.push(Record {
                        id,
                        source: name.clone(),
                        line: entry.line,
                        messages,
                    });
                }
                Err(reason) if data.strict => bail!(
                    "{}:{}: {reason} (data.strict = true; set it to false to count such rows and go on)",
                    path.display(),
                    entry.line
                ),
                Err(reason) => {
                    let places = counts.unreadable.entry(reason).or_default();
                    places.count += 1;
                    if places.first.len() < PLACES_NAMED {
                        places.first.push(place);
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok((records, counts))
}

/// The rows for the phases: read, shuffled by `seed` if asked for, limited, and cut into turns.
///
/// # Errors
/// As `read_records`; and when no row is usable.
pub fn read(data: &DataSection, seed: u64) -> Result<Input> {
    let (mut records, mut counts) = read_records(data)?;
    let files = || {
        data.path
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if counts.found == 0 {
        bail!("data.path: {} holds no rows", files());
    }
    if records.is_empty() {
        let reasons: Vec<String> = counts
            .unreadable
            .iter()
            .map(|(reason, places)| format!("{} × {reason}", places.count))
            .collect();
        bail!(
            "data.path: no row of {} can be used ({})",
            files(),
            reasons.join(", ")
        );
    }
    if data.existing_system == ExistingSystem::Skip {
        let before = records.len();
        records.retain(|record| {
            turns::rows_of(record, data.multi_turn, data.existing_system)
                .is_ok_and(|rows| !rows.is_empty())
        });
        counts.with_system = before - records.len();
        if records.is_empty() {
            bail!(
                "data.existing_system = \"skip\" leaves no row of {}: all have a system message",
                files()
            );
        }
    }
    if data.shuffle {
        // A key per row and not a permutation, so that more rows or a larger limit move nothing else.
        records.sort_by_cached_key(|record| {
            (
                seed_from(&[&seed.to_string(), "shuffle", &record.id]),
                record.id.clone(),
            )
        });
    }
    if data.limit > 0 && records.len() > data.limit {
        counts.beyond_limit = records.len() - data.limit;
        records.truncate(data.limit);
    }
    counts.used = records.len();
    let mut rows = Vec::new();
    for record in &records {
        let of_record = turns::rows_of(record, data.multi_turn, data.existing_system);
        rows.extend(of_record.expect("read_records has paired up this record's turns"));
    }
    counts.rows = rows.len();
    Ok(Input { rows, counts })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn own_id(row: &Value) -> Option<String> {
    match row.get("id")? {
        Value::String(id) if !id.trim().is_empty() => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// The first candidate no other row has: a data set may repeat its ids, and two folders may hold
/// files of one name.
fn unique_id(taken: &mut HashSet<String>, candidates: [Option<String>; 3]) -> String {
    let mut last = String::new();
    for candidate in candidates.into_iter().flatten() {
        if taken.insert(candidate.clone()) {
            return candidate;
        }
        last = candidate;
    }
    // The same file named twice: a third pass over it would collide again, hence the counter.
    let mut copy = 2;
    loop {
        let id = format!("{last}~{copy}");
        if taken.insert(id.clone()) {
            return id;
        }
        copy += 1;
    }
}
