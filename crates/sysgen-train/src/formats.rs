//! Rows to train on in every format the data half reads, where no `[generate]` stands before `[train]`.
//!
//! Lines with `messages` are the training library's own, with all they may say (`weight`, `sysgen`). Every other row is read
//! as a source row for `[generate]` would be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sysgen_core::RunConfig;
use sysgen_core::config::{DataSection, Deduplicate, HubDataset};
use sysgen_core::message::{Message, Role};
use sysgen_core::record::Record;
use sysgen_data::Environment;
use sysgen_data::input::{ReadCounts, is_json_lines, read_records, sift, with_local_files};
use sysgen_train::rows::{BadRow, Row, Rows, read_each};

/// Rows that are named where rows are left out; the rest is counted.
const NAMED_ROWS: usize = 5;

/// Reads the entries of `data.path`, files or data sets of the Hub, and leaves out what `data.decontaminate` and
/// `data.deduplicate` ask for.
pub(crate) fn read(config: &RunConfig, paths: &[PathBuf]) -> Result<Vec<Rows>> {
    let entries = paths.iter().map(|path| read_entry(config, path));
    let mut sets = entries.collect::<Result<Vec<_>>>()?;
    leave_out(&config.data, &mut sets)?;
    Ok(sets)
}

/// Over all files together, in the order of `data.path`: the first of rows that are the same stays.
fn leave_out(data: &DataSection, sets: &mut [Rows]) -> Result<()> {
    let benchmarks = DataSection {
        deduplicate: Deduplicate::None,
        ..data.clone()
    };
    let repeats = DataSection {
        decontaminate: Vec::new(),
        ..data.clone()
    };
    for (data, asked, why) in [
        (
            benchmarks,
            !data.decontaminate.is_empty(),
            "share text with the benchmarks of data.decontaminate",
        ),
        (
            repeats,
            data.deduplicate != Deduplicate::None,
            "repeat an earlier row (data.deduplicate)",
        ),
    ] {
        if !asked {
            continue;
        }
        let lost = sift_sets(&data, sets)?;
        let named = lost.iter().take(NAMED_ROWS).map(String::as_str);
        let named = named.collect::<Vec<_>>().join(", ");
        let colon = if lost.is_empty() { "" } else { ": " };
        tracing::info!("{} row(s) {why} and are left out{colon}{named}", lost.len());
        ensure!(
            lost.is_empty() || sets.iter().any(|set| !set.rows.is_empty()),
            "no row of data.path is left: all of them {why}"
        );
    }
    Ok(())
}

/// The ids of the rows that went.
fn sift_sets(data: &DataSection, sets: &mut [Rows]) -> Result<Vec<String>> {
    let mut records = Vec::new();
    for row in sets.iter_mut().flat_map(|set| &mut set.rows) {
        records.push(Record {
            id: String::new(),
            source: String::new(),
            line: records.len(), // by which it is found again
            messages: std::mem::take(&mut row.messages),
            learnt_answers: Vec::new(),
        });
    }
    let mut kept: Vec<Option<Vec<Message>>> = vec![None; records.len()];
    sift(&mut records, data, &mut ReadCounts::default())?;
    for record in records {
        kept[record.line] = Some(record.messages);
    }
    let (mut kept, mut lost) = (kept.into_iter(), Vec::new());
    for set in sets {
        set.rows.retain_mut(|row| match kept.next().flatten() {
            Some(messages) => {
                row.messages = messages;
                true
            }
            None => {
                lost.push(std::mem::take(&mut row.id));
                false
            }
        });
    }
    Ok(lost)
}

/// Reads one entry of `data.path`.
fn read_entry(config: &RunConfig, path: &Path) -> Result<Rows> {
    if HubDataset::named_by(path).is_none() {
        return read_file(config, path);
    }
    let data = DataSection {
        path: vec![path.to_path_buf()],
        ..config.data.clone()
    };
    let of_hub = RunConfig {
        data,
        ..config.clone()
    };
    let local = with_local_files(&of_hub, &Environment::of_process())?;
    let mut rows = Rows::default();
    for file in &local.data.path {
        let more = read_file(config, file)?;
        rows.rows.extend(more.rows);
        rows.bad.extend(more.bad);
    }
    Ok(rows)
}

fn read_file(config: &RunConfig, path: &Path) -> Result<Rows> {
    let mut rows = Rows::default();
    let lines = match is_json_lines(path)? {
        true => read_each(path)?,
        false => Vec::new(),
    };
    if !lines.is_empty() && lines.iter().all(|(_, row)| row.is_ok()) {
        lines.into_iter().for_each(|(_, row)| rows.add(row));
        return Ok(rows);
    }
    let data = DataSection {
        path: vec![PathBuf::from(path)],
        strict: false, // a bad row is the training library's to judge
        ..config.data.clone()
    };
    let (records, counts) = read_records(&data)?;
    let file = counts.files.into_iter().next();
    let file = file.context("a file that was read is counted")?;
    tracing::info!("{file}");
    if lines.is_empty() {
        records.into_iter().for_each(|record| rows.add(row(record)));
        for (reason, places) in file.unreadable {
            let named = places.first.into_iter().map(Some);
            let more = std::iter::repeat(None);
            for place in named.chain(more).take(places.count) {
                let place = place.unwrap_or_else(|| file.file.clone());
                let reason = reason.clone();
                rows.add(Err(BadRow { place, reason }));
            }
        }
        return Ok(rows);
    }
    let mut of_lines: HashMap<usize, Record> = records
        .into_iter()
        .map(|record| (record.line, record))
        .collect();
    let mut reasons: HashMap<String, String> = HashMap::new();
    for (reason, places) in file.unreadable {
        let named = places.first.into_iter();
        reasons.extend(named.map(|place| (place, reason.clone())));
    }
    for (number, own) in lines {
        rows.add(match (own, of_lines.remove(&number)) {
            (Err(_), Some(record)) => row(record),
            (Err(BadRow { place, reason }), None) => {
                let reason = reasons.remove(&place).unwrap_or(reason);
                Err(BadRow { place, reason })
            }
            (own, _) => own,
        });
    }
    Ok(rows)
}

/// A conversation up to its last answer.
fn row(record: Record) -> Result<Row, BadRow> {
    let Record {
        id,
        source,
        line,
        mut messages,
        learnt_answers,
    } = record;
    let answer = messages.iter().rposition(|m| m.role == Role::Assistant);
    let Some(answer) = answer else {
        return Err(BadRow {
            place: format!("{source}:{line}"),
            reason: "it has no answer".to_string(),
        });
    };
    messages.truncate(answer + 1);
    Ok(Row {
        learnt_answers,
        ..Row::new(id, messages)
    })
}
