//! Rows to train on in every format the data half reads, where no `[generate]` stands before `[train]`.
//!
//! Lines with `messages` are the training library's own, with all they may say (`weight`, `sysgen`). Every other row is read
//! as a source row for `[generate]` would be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sysgen_core::RunConfig;
use sysgen_core::config::{DataSection, HubDataset};
use sysgen_core::message::Role;
use sysgen_core::record::Record;
use sysgen_data::Environment;
use sysgen_data::input::{is_json_lines, read_records, with_local_files};
use sysgen_train::rows::{BadRow, Row, Rows, read_each};

/// Reads one entry of `data.path`: a file, or a data set of the Hub.
pub(crate) fn read(config: &RunConfig, path: &Path) -> Result<Rows> {
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
    } = record;
    let answer = messages.iter().rposition(|m| m.role == Role::Assistant);
    let Some(answer) = answer else {
        return Err(BadRow {
            place: format!("{source}:{line}"),
            reason: "it has no answer".to_string(),
        });
    };
    messages.truncate(answer + 1);
    Ok(Row::new(id, messages))
}
