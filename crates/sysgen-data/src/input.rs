//! The source data: files of many formats become rows for the phases. A row that cannot be read is
//! counted by its reason with its line; it is never silently missing, and fatal only with `strict`.

mod columnar;
mod columns;
mod container;
mod counts;
mod decontaminate;
mod deduplicate;
mod format;
mod hub;
mod learnt;
mod table;
mod turns;
mod words;

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;
use sysgen_core::config::{DataSection, ExistingSystem};
use sysgen_core::hash::seed_from;
use sysgen_core::record::Record;

pub use hub::with_local_files;
pub(crate) use hub::{source_name, with_commit};

pub use container::is_json_lines;
pub use counts::{FileCounts, Places, ReadCounts};
pub use turns::{Row, Turn};

/// Columns that an error names.
const MOST_COLUMNS: usize = 12;

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
        let mut file = FileCounts {
            file: source_name(path),
            ..FileCounts::default()
        };
        container::for_each_entry(path, &mut |entry| {
            file.found += 1;
            let place = format!("{}:{}", file.file, entry.line);
            let read = entry.value.and_then(|value| {
                let (messages, format) = columns::messages_of(&value, &data.columns)?;
                let layout = turns::layout(&messages)?;
                let learnt = learnt::answers(&value, &data.columns, &messages);
                let own_id = columns::own_id(&value, &data.columns).or(entry.key);
                Ok((own_id, (messages, learnt), format, layout))
            });
            match read {
                Ok((own_id, (messages, learnt_answers), format, layout)) => {
                    counts.last_question_unanswered += usize::from(layout.last_question_unanswered);
                    *file.formats.entry(format.to_string()).or_default() += 1;
                    let full_place = || format!("{}:{}", path.display(), entry.line);
                    let id = unique_id(&mut ids, own_id, place, full_place);
                    records.push(Record {
                        id,
                        source: file.file.clone(),
                        line: entry.line,
                        messages,
                        learnt_answers,
                    });
                }
                Err(reason) if data.strict => bail!(
                    "{}:{}: {reason} (data.strict = true; set it to false to count such rows and go on)",
                    path.display(),
                    entry.line
                ),
                Err(reason) => file.unreadable.entry(reason).or_default().add(|| place),
            }
            Ok(())
        })?;
        counts.found += file.found;
        for (reason, places) in &file.unreadable {
            counts
                .unreadable
                .entry(reason.clone())
                .or_default()
                .extend(places);
        }
        counts.files.push(file);
    }
    Ok((records, counts))
}

/// Takes out of `records` what benchmarks know and what repeats an earlier row, as `[data]` asks for it, and counts it.
///
/// # Errors
/// A file of `data.decontaminate` that cannot be read or has no prompts.
pub fn sift(records: &mut Vec<Record>, data: &DataSection, counts: &mut ReadCounts) -> Result<()> {
    // In source order, so that neither the seed nor the limit decides which of two rows stays.
    decontaminate::decontaminate(records, data, counts)?;
    deduplicate::deduplicate(records, data, counts);
    Ok(())
}

/// The rows for the phases: read, freed of what benchmarks know and of duplicates, shuffled by `seed` if
/// asked for, limited, and cut into turns.
///
/// # Errors
/// As `read_records`; and when no row is usable.
pub fn read(data: &DataSection, seed: u64) -> Result<Input> {
    let (mut records, mut counts) = read_records(data)?;
    turns::keep_ids_apart(&mut records, data.multi_turn);
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
        let columns = data.path.iter().find_map(|path| columns_of_first_row(path));
        let columns = columns.map_or(String::new(), |columns| {
            format!("; its first row has the columns {columns}: [data.columns] can say which of them hold what")
        });
        bail!(
            "data.path: no row of {} can be used ({}){columns}",
            files(),
            reasons.join(", ")
        );
    }
    if data.existing_system == ExistingSystem::Skip {
        let before = records.len();
        records.retain(|record| {
            !turns::layout(&record.messages).is_ok_and(|layout| layout.has_system)
        });
        counts.with_system = before - records.len();
        if records.is_empty() {
            bail!(
                "data.existing_system = \"skip\" leaves no row of {}: all have a system message",
                files()
            );
        }
    }
    sift(&mut records, data, &mut counts)?;
    if records.is_empty() {
        bail!(
            "data.decontaminate leaves no row of {}: all share text with the benchmarks",
            files()
        );
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
    let rows: Vec<Row> = records
        .into_iter()
        .flat_map(|record| turns::rows_of(record, data.multi_turn, data.existing_system))
        .collect();
    counts.rows = rows.len();
    Ok(Input { rows, counts })
}

/// The names of what the first row of a file holds; none where it is no object.
fn columns_of_first_row(path: &Path) -> Option<String> {
    let mut columns = None;
    // The error ends the reading after one row; what else is wrong with the file is known by now.
    let _ = container::for_each_entry(path, &mut |entry| {
        if let Ok(Value::Object(row)) = &entry.value
            && !row.is_empty()
        {
            let names: Vec<&str> = row.keys().map(String::as_str).take(MOST_COLUMNS).collect();
            let more = if row.len() > names.len() { ", …" } else { "" };
            columns = Some(format!("{}{more}", names.join(", ")));
        }
        bail!("one row is enough")
    });
    columns
}

/// The first name no other row has: its own id, its place, its place with the folder. A data set may
/// repeat its ids, and two folders may hold files of one name.
fn unique_id(
    taken: &mut HashSet<String>,
    own_id: Option<String>,
    place: String,
    full_place: impl FnOnce() -> String,
) -> String {
    for candidate in own_id.into_iter().chain([place]) {
        if taken.insert(candidate.clone()) {
            return candidate;
        }
    }
    let last = full_place();
    if taken.insert(last.clone()) {
        return last;
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
