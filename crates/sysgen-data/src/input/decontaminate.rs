//! Rows that share text with the prompts of a benchmark are left out, so that a model trained on them can
//! still be measured by it: a common sequence of `decontaminate_ngram` words, or, for a prompt shorter than
//! that, the whole question.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Result, bail};
use rayon::prelude::*;
use serde_json::Value;
use sysgen_core::config::DataSection;
use sysgen_core::jsonl::read_lines;
use sysgen_core::message::Role;
use sysgen_core::record::Record;

use crate::input::counts::ReadCounts;
use crate::input::words::{sequence, sequences, words};
use crate::input::{container, format};

/// The columns that benchmarks keep their prompts in.
const PROMPT_COLUMNS: [&str; 11] = [
    "question",
    "prompt",
    "user_prompt",
    "instruction",
    "query",
    "problem",
    "turns",
    "input",
    "text",
    "goal",
    "ctx",
];

/// Takes the rows that share text with a file of `data.decontaminate` out of `records` and counts them.
///
/// # Errors
/// A file that cannot be read or has no prompts.
pub(crate) fn decontaminate(
    records: &mut Vec<Record>,
    data: &DataSection,
    counts: &mut ReadCounts,
) -> Result<()> {
    if data.decontaminate.is_empty() {
        return Ok(());
    }
    let mut benchmarks = Benchmarks {
        n: data.decontaminate_ngram,
        ..Benchmarks::default()
    };
    for path in &data.decontaminate {
        benchmarks.read(path)?;
    }
    let known: Vec<bool> = records
        .par_iter()
        .map(|record| benchmarks.know(record))
        .collect();
    let mut known = known.iter();
    records.retain(|record| {
        let known = known.next().is_some_and(|known| *known);
        if known {
            let place = || format!("{}:{}", record.source, record.line);
            counts.contaminated.add(place);
        }
        !known
    });
    Ok(())
}

/// What benchmarks ask.
#[derive(Default)]
struct Benchmarks {
    n: usize,
    /// Every sequence of `n` words of a prompt.
    sequences: HashSet<u64>,
    /// Prompts of fewer words, whole.
    short: HashSet<u64>,
}

impl Benchmarks {
    fn read(&mut self, path: &Path) -> Result<()> {
        let before = (self.sequences.len(), self.short.len());
        let is_text = path.extension().is_some_and(|extension| extension == "txt");
        if is_text {
            for line in read_lines(path)? {
                self.add(&line?.1);
            }
        } else {
            container::for_each_entry(path, &mut |entry| {
                if let Ok(row) = entry.value {
                    prompts(&row).iter().for_each(|prompt| self.add(prompt));
                }
                Ok(())
            })?;
        }
        if before == (self.sequences.len(), self.short.len()) {
            bail!(
                "data.decontaminate: {} has no prompts; its rows need one of the columns {}, or it must be a .txt with a prompt a line",
                path.display(),
                PROMPT_COLUMNS.join(", ")
            );
        }
        Ok(())
    }

    fn add(&mut self, prompt: &str) {
        let words = words(prompt);
        if words.len() >= self.n {
            self.sequences.extend(sequences(&words, self.n));
        } else if !words.is_empty() {
            self.short.insert(sequence(&words));
        }
    }

    fn know(&self, record: &Record) -> bool {
        record.messages.iter().any(|message| {
            if message.role == Role::System {
                return false;
            }
            let words = words(&message.content);
            (message.role == Role::User && self.short.contains(&sequence(&words)))
                || (words.len() >= self.n
                    && sequences(&words, self.n).any(|found| self.sequences.contains(&found)))
        })
    }
}

/// What one row of a benchmark asks.
fn prompts(row: &Value) -> Vec<String> {
    if let Ok((messages, _)) = format::messages_of(row) {
        let asked = messages
            .into_iter()
            .filter(|message| message.role == Role::User);
        return asked.map(|message| message.content).collect();
    }
    let texts = |value: &Value| match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list
            .iter()
            .filter_map(|text| text.as_str().map(str::to_string))
            .collect(),
        _ => Vec::new(),
    };
    match row {
        Value::Object(row) => PROMPT_COLUMNS
            .iter()
            .filter_map(|column| row.get(*column))
            .flat_map(texts)
            .collect(),
        other => texts(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use sysgen_core::message::Message;

    const PROMPT: &str = "A farmer has seventeen sheep and all but nine run away; how many sheep are left on the farm?";

    fn left(prompts: &str, file: &str, n: usize, rows: &[(&str, &str)]) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, prompts).unwrap();
        let mut records: Vec<Record> = rows
            .iter()
            .enumerate()
            .map(|(i, (question, answer))| Record {
                id: i.to_string(),
                source: "a".to_string(),
                line: i + 1,
                messages: vec![Message::user(*question), Message::assistant(*answer)],
                learnt_answers: vec![true],
            })
            .collect();
        let data = DataSection {
            decontaminate: vec![path],
            decontaminate_ngram: n,
            ..DataSection::default()
        };
        let mut counts = ReadCounts::default();
        super::decontaminate(&mut records, &data, &mut counts).unwrap();
        assert_eq!(counts.contaminated.count, rows.len() - records.len());
        records.iter().map(|record| record.line).collect()
    }

    #[test]
    fn a_sequence_of_a_prompt_anywhere_in_a_row_is_found() {
        // The first thirteen words of the prompt, then twelve of them only.
        let thirteen = "a FARMER has seventeen sheep, and all but nine run away, how many";
        let twelve = "a farmer has seventeen sheep and all but nine run away how much";
        let rows = [
            ("Before: a puzzle.", thirteen),
            (twelve, "Nine."),
            ("Who are you?", "Nobody."),
        ];
        let jsonl = format!("{{\"question_id\":1,\"turns\":[\"Hi.\",{PROMPT:?}]}}\n");
        assert_eq!(left(&jsonl, "bench.jsonl", 13, &rows), [2, 3]);
        assert_eq!(left(&jsonl, "bench.jsonl", 12, &rows), [3]);
        let pairs = format!("{{\"question\":{PROMPT:?},\"answer\":\"Nobody.\"}}\n");
        assert_eq!(left(&pairs, "bench.jsonl", 13, &rows), [2, 3]);
        assert_eq!(left(PROMPT, "bench.txt", 13, &rows), [2, 3]);
        let csv = format!("prompt,answer\n\"{PROMPT}\",\n");
        assert_eq!(left(&csv, "bench.csv", 13, &rows), [2, 3]);
    }

    #[test]
    fn a_short_prompt_must_be_the_whole_question() {
        let rows = [
            ("Tell me a joke!", "Why?"),
            ("Tell me a joke about bees.", "Buzz."),
            ("Bees?", "tell me a joke"),
        ];
        assert_eq!(left("Tell me a joke.", "bench.txt", 13, &rows), [2, 3]);
    }

    #[test]
    fn a_file_without_prompts_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judge.jsonl");
        std::fs::write(&path, "{\"name\":\"judge\"}").unwrap();
        let error = Benchmarks {
            n: 13,
            ..Benchmarks::default()
        }
        .read(&path)
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("judge.jsonl has no prompts; its rows need"),
            "{error}"
        );
    }
}
