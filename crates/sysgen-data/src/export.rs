//! `dataset.jsonl` in the formats other programs read. Reading a file back with `input` gives the same
//! conversations under the same ids; a row that a format cannot hold is left out and counted.

mod parquet;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use sysgen_core::files::write_atomically;
use sysgen_core::message::Role;

use crate::dataset::{Line, Turn};
use crate::input::Places;
use crate::open::DataSet;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Format {
    /// JSON lines, `messages` with `role` and `content` (OpenAI, TRL).
    Messages,
    /// JSON lines, `prompt` and `completion` as lists of messages (TRL).
    PromptCompletion,
    /// JSON lines, `conversations` with `from` and `value` (FastChat, Axolotl).
    #[value(name = "sharegpt")]
    ShareGpt,
    /// JSON lines, `instruction`, `input`, `output`, `system`, `history` (LLaMA-Factory).
    Alpaca,
    /// Parquet, `messages` and the provenance as columns (Hugging Face datasets).
    Parquet,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Rows in the file.
    pub rows: usize,
    /// Rows that the format cannot hold, by reason.
    pub left_out: BTreeMap<String, Places>,
    /// Rows with earlier answers that are context and not to be learnt.
    pub with_context: usize,
    /// Lines of the data set that could not be read.
    pub damaged: Places,
}

/// Writes `data_set` to `output` in `format`; the file appears whole or not at all.
///
/// # Errors
/// A data set that cannot be read, an output that cannot be written, and no row that the format can hold.
pub fn export(data_set: &DataSet, format: Format, output: &Path) -> Result<Exported> {
    if output.is_dir() {
        bail!("--output {} is a folder; name a file", output.display());
    }
    if same_file(output, &data_set.path) {
        bail!(
            "--output {} is the data set itself; name another file",
            output.display()
        );
    }
    let mut exported = Exported::default();
    let mut failure = None;
    let written = write_atomically(output, |file| {
        let outcome = match format {
            Format::Parquet => parquet::write(data_set, file, &mut exported),
            _ => write_lines(data_set, format, file, &mut exported),
        };
        outcome
            .and_then(|()| match exported.rows {
                0 => Err(nothing_left(&exported)),
                _ => Ok(()),
            })
            .map_err(|error| match error.downcast::<io::Error>() {
                Ok(error) => error,
                Err(error) => {
                    let stands_for = io::Error::other(error.to_string());
                    failure = Some(error);
                    stands_for
                }
            })
    });
    match failure {
        Some(error) => Err(error),
        None => written.map(|()| exported),
    }
}

fn write_lines(
    data_set: &DataSet,
    format: Format,
    file: &mut dyn Write,
    exported: &mut Exported,
) -> Result<()> {
    let damaged = data_set.for_each_chunk(|lines| {
        let rows: Vec<Result<Vec<u8>, &str>> = lines
            .par_iter()
            .map(|line| {
                let mut text =
                    serde_json::to_vec(&row(format, line)?).expect("a row is plain data");
                text.push(b'\n');
                Ok(text)
            })
            .collect();
        for (line, row) in lines.iter().zip(rows) {
            match row {
                Ok(row) => {
                    file.write_all(&row)?;
                    exported.count(line);
                }
                Err(reason) => exported.leave_out(line, reason),
            }
        }
        Ok(())
    })?;
    exported.damaged = damaged;
    Ok(())
}

/// One line in the shape of a format, or why the format cannot hold it.
fn row(format: Format, line: &Line) -> Result<Value, &'static str> {
    let id = &line.sysgen.id;
    Ok(match format {
        Format::Messages | Format::Parquet => json!({"id": id, "messages": line.messages}),
        Format::PromptCompletion => {
            if line.messages.iter().filter(|turn| turn.is_learnt()).count() > 1 {
                return Err("several answers to learn, and one completion");
            }
            let (completion, prompt) = line
                .messages
                .split_last()
                .ok_or("a conversation without messages")?;
            json!({"id": id, "prompt": prompt, "completion": [completion]})
        }
        Format::ShareGpt => {
            let turns: Vec<Value> = line.messages.iter().map(sharegpt_turn).collect();
            json!({"id": id, "conversations": turns})
        }
        Format::Alpaca => alpaca(line)?,
    })
}

fn sharegpt_turn(turn: &Turn) -> Value {
    let from = match turn.role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
        Role::Tool => "tool",
    };
    let mut written = json!({"from": from, "value": turn.content});
    if let Some(weight) = turn.weight {
        written["weight"] = json!(weight);
    }
    written
}

fn alpaca(line: &Line) -> Result<Value, &'static str> {
    let system = line.system();
    let spoken = &line.messages[usize::from(system.is_some())..];
    let (pairs, rest) = spoken.as_chunks::<2>();
    let well_formed =
        |pair: &[Turn; 2]| (pair[0].role, pair[1].role) == (Role::User, Role::Assistant);
    let (Some(([question, answer], earlier)), [], true) =
        (pairs.split_last(), rest, pairs.iter().all(well_formed))
    else {
        return Err("turns that are no pairs of question and answer");
    };
    let mut row = json!({
        "id": line.sysgen.id,
        "instruction": question.content,
        "input": "",
        "output": answer.content,
    });
    if let Some(system) = system {
        row["system"] = json!(system);
    }
    if !earlier.is_empty() {
        row["history"] = earlier
            .iter()
            .map(|[question, answer]| json!([question.content, answer.content]))
            .collect();
    }
    Ok(row)
}

impl Exported {
    fn count(&mut self, line: &Line) {
        self.rows += 1;
        self.with_context += usize::from(has_context(line));
    }

    fn leave_out(&mut self, line: &Line, reason: &str) {
        let places = self.left_out.entry(reason.to_string()).or_default();
        places.add(|| line.sysgen.id.clone());
    }
}

/// Whether some answer is context and not to be learnt.
fn has_context(line: &Line) -> bool {
    line.messages.iter().any(|turn| turn.weight.is_some())
}

fn nothing_left(exported: &Exported) -> anyhow::Error {
    let reasons: Vec<String> = exported
        .left_out
        .iter()
        .map(|(reason, places)| format!("{} rows with {reason}", places.count))
        .collect();
    anyhow::anyhow!(
        "the format can hold no row of this data set ({}); `messages` holds every row",
        reasons.join(", ")
    )
}

fn same_file(left: &Path, right: &Path) -> bool {
    match (left.canonicalize(), right.canonicalize()) {
        (Ok(left), Ok(right)) => left == right,
        _ => false,
    }
}

/// For a person.
impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.rows)?;
        for (reason, places) in &self.left_out {
            write!(f, "\n{} left out, {reason}: {places}", places.count)?;
        }
        if self.with_context > 0 {
            write!(
                f,
                "\n{} rows have earlier answers that are only context; they have \"weight\": 0 where the format has a \
                 place for it, and a program that does not know the key learns them, too",
                self.with_context
            )?;
        }
        Ok(())
    }
}
