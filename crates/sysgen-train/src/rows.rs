//! The rows of a data set: JSON lines with `messages`, and the part of them that is held out.
//!
//! A bad row is kept out, with its line and the reason; whether that is fatal is the caller's to decide.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;
use sysgen_core::RunConfig;
use sysgen_core::hash::seed_from;
use sysgen_core::jsonl::read_lines;
use sysgen_core::message::{Message, Role};

use crate::variant::as_variant;

/// One conversation to learn from.
#[derive(Clone, Debug)]
pub struct Row {
    /// The row's own `id`, or that of the source row it was written for, or `<file name>:<line>`.
    pub id: String,
    /// The conversation, in order.
    pub messages: Vec<Message>,
    /// For each assistant message, in order: is it learnt? `"weight": 0` makes it context (OpenAI's key).
    pub learnt_answers: Vec<bool>,
    /// The answers the source data had before they were written anew (`sysgen.original_answer`), one for each that is learnt.
    pub original_answers: Vec<String>,
    /// Which file of `data.path` it comes from, counted from 0.
    pub set: usize,
}

impl Row {
    /// A conversation whose answers are all learnt.
    pub fn new(id: impl Into<String>, messages: Vec<Message>) -> Row {
        let answers = messages.iter().filter(|m| m.role == Role::Assistant);
        Row {
            id: id.into(),
            learnt_answers: answers.map(|_| true).collect(),
            messages,
            original_answers: Vec::new(),
            set: 0,
        }
    }
}

/// A row that was kept out of the data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// `<file name>:<line>`.
    pub place: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The rows that can be used, in the order of the file.
    pub rows: Vec<Row>,
    /// The rows that cannot.
    pub bad: Vec<BadRow>,
}

/// The rows to learn from and the rows to measure on.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// Rows that are trained on.
    pub train: Vec<Row>,
    /// Rows that are never trained on.
    pub held_out: Vec<Row>,
}

#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    messages: Vec<Turn>,
    sysgen: Option<Provenance>,
}

#[derive(Deserialize)]
struct Turn {
    #[serde(flatten)]
    message: Message,
    weight: Option<f64>,
}

#[derive(Default, Deserialize)]
struct Provenance {
    id: Option<String>,
    original_answer: Option<String>,
    original_answers: Option<Vec<String>>,
}

/// Reads a JSONL file (plain or `.gz`) of rows with `messages`.
///
/// # Errors
/// When the file cannot be read; a bad row is not an error but part of the result.
pub fn read_rows(path: &Path) -> Result<Rows> {
    let mut found = Rows::default();
    for (_, row) in read_each(path)? {
        found.add(row);
    }
    Ok(found)
}

impl Rows {
    /// Adds a row, or what is wrong with it.
    pub fn add(&mut self, row: Result<Row, BadRow>) {
        match row {
            Ok(row) => self.rows.push(row),
            Err(bad) => self.bad.push(bad),
        }
    }
}

/// The same, line by line, with the numbers of the lines.
///
/// # Errors
/// As [`read_rows`].
pub fn read_each(path: &Path) -> Result<Vec<(usize, Result<Row, BadRow>)>> {
    let file_name = path.file_name().map_or_else(
        || path.display().to_string(),
        |n| n.to_string_lossy().into_owned(),
    );
    let mut lines = Vec::new();
    for line in read_lines(path)? {
        match line {
            Ok((number, text)) => lines.push((number, Ok(text))),
            // A line that is not UTF-8 is one bad row; a file that ends in the middle is not whole, and nothing to train on.
            Err(error) if format!("{error:#}").contains("cannot read further") => {
                return Err(error);
            }
            Err(error) => lines.push((0, Err(format!("{error:#}")))),
        }
    }
    let read = |(number, text): (usize, Result<String, String>)| {
        let place = match number {
            0 => file_name.clone(),
            number => format!("{file_name}:{number}"),
        };
        let row = text.and_then(|text| read_row(&place, &text));
        (number, row.map_err(|reason| BadRow { place, reason }))
    };
    Ok(lines.into_par_iter().map(read).collect())
}

fn read_row(place: &str, text: &str) -> Result<Row, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let said = |role: Role| line.messages.iter().filter(move |t| t.message.role == role);
    let asked = said(Role::User).chain(said(Role::Tool)).next().is_some();
    let learnt_answers: Vec<bool> = said(Role::Assistant)
        .map(|t| t.weight != Some(0.0))
        .collect();
    let answered = !learnt_answers.is_empty();
    if !asked || !answered {
        return Err("`messages` needs a user and an assistant message".into());
    }
    let sysgen = line.sysgen.unwrap_or_default();
    let id = match line.id {
        Some(serde_json::Value::String(id)) => id,
        Some(serde_json::Value::Number(id)) => id.to_string(),
        _ => sysgen.id.unwrap_or_else(|| place.to_string()),
    };
    Ok(Row {
        id,
        messages: line.messages.into_iter().map(|t| t.message).collect(),
        learnt_answers,
        original_answers: sysgen
            .original_answers
            .unwrap_or_else(|| sysgen.original_answer.into_iter().collect()),
        set: 0,
    })
}

/// The rows `[train]` learns from: what `[generate]` wrote, or else `data.path`, in the variant that `[train]` asks for,
/// shuffled and limited as `[data]` says. What the entries of `data.path` name is read by `read`, one [`Rows`] for each: by
/// [`read_rows`], or by a reader of more formats.
///
/// # Errors
/// When no file is named, one cannot be read or holds nothing to use, or a row is bad and `data.strict` is set.
pub fn training_rows(
    config: &RunConfig,
    read: &dyn Fn(&[PathBuf]) -> Result<Vec<Rows>>,
) -> Result<Rows> {
    let generated = config.generate.is_some();
    let paths = if generated {
        vec![config.generated_data_dir().join("dataset.jsonl")]
    } else {
        config.data.path.clone()
    };
    ensure!(
        !paths.is_empty(),
        "[train] needs rows: set data.path, or add [generate]"
    );
    ensure!(
        !generated || paths[0].exists(),
        "{} is not there yet; have [generate] write it first: `sysgen-data` with the same config",
        paths[0].display()
    );
    let mut found = Rows::default();
    let sets = match generated {
        true => vec![read_rows(&paths[0])?],
        false => read(&paths)?,
    };
    for (set, rows) in sets.into_iter().enumerate() {
        found.bad.extend(rows.bad);
        for row in rows.rows {
            let id = row.id.clone();
            match wanted(config, Row { set, ..row }) {
                Ok(row) => found.rows.push(row),
                Err(reason) => found.bad.push(BadRow { place: id, reason }),
            }
        }
    }
    if let (true, Some(bad)) = (config.data.strict, found.bad.first()) {
        bail!("{}: {} (data.strict is set)", bad.place, bad.reason);
    }
    let files = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    match found.bad.first() {
        Some(bad) if found.rows.is_empty() => {
            bail!("{files}: no row can be used; {}: {}", bad.place, bad.reason)
        }
        None if found.rows.is_empty() => bail!("{files}: no rows"),
        _ => {}
    }
    if !generated {
        if config.data.shuffle {
            let seed = seed_from(&["shuffle", &config.seed.to_string()]);
            found.rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        if config.data.limit > 0 {
            found.rows.truncate(config.data.limit);
        }
    }
    Ok(found)
}

fn wanted(config: &RunConfig, row: Row) -> Result<Row, String> {
    match &config.train {
        Some(train) => as_variant(row, train.variant, &train.common_system_message),
        None => Ok(row),
    }
}

/// Holds out about `eval_fraction` of the rows.
///
/// Which ones is decided row by row from the seed and the row's text, so that a row stays on its side when the file grows or
/// is reordered, and a repeated row is never on both sides. A fraction above 0 holds out at least one row and leaves at
/// least one to learn from, if there are two different ones.
pub fn split(rows: Vec<Row>, eval_fraction: f64, seed: u64) -> Split {
    let keys: Vec<u64> = rows.iter().map(|row| row_key(row, seed)).collect();
    let limit = eval_fraction.clamp(0.0, 1.0) * 2f64.powi(64);
    let mut held_out: Vec<bool> = keys.iter().map(|&key| (key as f64) < limit).collect();
    if eval_fraction > 0.0 && held_out.iter().all(|held| !held) {
        let smallest = keys.iter().min().copied();
        let one_is_left = keys.iter().any(|&key| Some(key) != smallest);
        held_out = keys
            .iter()
            .map(|&key| one_is_left && Some(key) == smallest)
            .collect();
    } else if !held_out.is_empty() && held_out.iter().all(|held| *held) {
        let largest = keys.iter().max().copied();
        held_out = keys.iter().map(|&key| Some(key) != largest).collect();
    }
    let mut split = Split::default();
    for (row, held) in rows.into_iter().zip(held_out) {
        if held {
            split.held_out.push(row)
        } else {
            split.train.push(row)
        }
    }
    split
}

fn row_key(row: &Row, seed: u64) -> u64 {
    let seed = seed.to_string();
    let mut parts = vec!["held-out", seed.as_str()];
    for message in &row.messages {
        parts.push(message.role.as_str());
        parts.push(&message.content);
    }
    seed_from(&parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(n: usize) -> Row {
        Row::new(
            n.to_string(),
            vec![
                Message::user(format!("question {n}")),
                Message::assistant("answer"),
            ],
        )
    }

    fn held_out_ids(rows: Vec<Row>, fraction: f64, seed: u64) -> Vec<String> {
        let mut ids: Vec<_> = split(rows, fraction, seed)
            .held_out
            .into_iter()
            .map(|row| row.id)
            .collect();
        ids.sort();
        ids
    }

    #[test]
    fn a_row_stays_on_its_side_when_the_file_is_reordered_and_grows() {
        let before = held_out_ids((0..200).map(row).collect(), 0.1, 7);
        let after = held_out_ids((0..400).rev().map(row).collect(), 0.1, 7);
        assert!(before.len() > 5 && before.len() < 40);
        assert!(before.iter().all(|id| after.contains(id)));
        assert_ne!(before, held_out_ids((0..200).map(row).collect(), 0.1, 8));
    }

    #[test]
    fn a_repeated_row_is_never_on_both_sides() {
        let twice = (0..100).chain(0..100).map(row).collect();
        let split = split(twice, 0.2, 0);
        assert!(
            split
                .held_out
                .iter()
                .all(|held| split.train.iter().all(|row| row.id != held.id))
        );
    }

    #[test]
    fn an_answer_of_weight_zero_is_context() {
        let text = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#;
        assert_eq!(read_row("x:1", text).unwrap().learnt_answers, [false, true]);
    }

    #[test]
    fn two_rows_are_enough_to_hold_one_out() {
        for seed in 0..20 {
            let split = split(vec![row(0), row(1)], 0.01, seed);
            assert_eq!((split.train.len(), split.held_out.len()), (1, 1));
        }
        assert_eq!(split(vec![row(0)], 0.01, 0).train.len(), 1);
        assert_eq!(split((0..9).map(row).collect(), 0.0, 0).held_out.len(), 0);
    }

    #[test]
    fn bad_rows_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let good = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"sysgen":{"original_answer":"c"}}"#;
        std::fs::write(&path, format!("{good}\n{{\"messages\": 3}}\n\n{{\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}}]}}\n")).unwrap();
        let rows = read_rows(&path).unwrap();
        assert_eq!(rows.rows.len(), 1);
        assert_eq!(rows.rows[0].id, "rows.jsonl:1");
        assert_eq!(rows.rows[0].original_answers, ["c"]);
        let places: Vec<_> = rows.bad.iter().map(|bad| bad.place.as_str()).collect();
        assert_eq!(places, ["rows.jsonl:2", "rows.jsonl:4"]);
    }
}
