//! A teacher's probabilities as rows carry them:
//! `"sysgen": {"teacher": {"top_k": k, "ids": [[…]…], "log_probabilities": [[…]…]}}`, one list of `k` for every token of the
//! answer and one for its stop token (`answer_ids`, if they are there, are these tokens), the log-probabilities natural and of the whole vocabulary at temperature 1.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use sysgen_core::RunConfig;
use sysgen_core::jsonl::read_lines;
use sysgen_ops::TopK;

use crate::example::{Example, Examples};

/// Least share of the learnt tokens that must be among the teacher's words: below it the ids are of another tokenizer.
const LEAST_SHARE: f64 = 0.5;

#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    sysgen: Option<Provenance>,
}

#[derive(Deserialize)]
struct Provenance {
    id: Option<String>,
    teacher: Option<StoredTeacher>,
}

#[derive(Deserialize)]
struct StoredTeacher {
    top_k: usize,
    #[serde(default)]
    answer_ids: Vec<u32>,
    ids: Vec<Vec<u32>>,
    log_probabilities: Vec<Vec<f32>>,
}

/// The stored probabilities of some rows, by their ids.
pub type Stored = HashMap<String, TopK>;

/// Reads what is stored with the rows of `examples`. Examples without probabilities that fit them are taken out and listed in
/// `unfit`, or end the run with `data.strict`.
///
/// # Errors
/// A file cannot be read, no example is left, or the ids are those of another tokenizer.
pub fn read(config: &RunConfig, examples: &mut Examples, vocab_size: usize) -> Result<Stored> {
    let paths: Vec<PathBuf> = match config.generate {
        Some(_) => vec![config.generated_data_dir().join("dataset.jsonl")],
        None => config.data.path.clone(),
    };
    let wanted: HashMap<&str, &Example> = examples
        .examples
        .iter()
        .map(|example| (example.id.as_str(), example))
        .collect();
    let mut found: HashMap<String, Result<TopK>> = HashMap::new();
    let (mut hits, mut learnt) = (0, 0);
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for line in read_lines(path)? {
            let (number, text) = line?;
            // What is not a row at all was counted when the rows were read.
            let Ok(line) = serde_json::from_str::<Line>(&text) else {
                continue;
            };
            let place = format!("{name}:{number}");
            let sysgen = line.sysgen;
            let inner = sysgen.as_ref().and_then(|sysgen| sysgen.id.clone());
            let id = match line.id {
                Some(serde_json::Value::String(id)) => id,
                Some(serde_json::Value::Number(id)) => id.to_string(),
                _ => inner.unwrap_or_else(|| place.clone()),
            };
            let Some(example) = wanted.get(id.as_str()) else {
                continue;
            };
            let top = match found.contains_key(&id) {
                true => Err(anyhow!("another row has this id, by which they are found")),
                false => sysgen
                    .and_then(|sysgen| sysgen.teacher)
                    .context("the row has no `sysgen.teacher`; generate with a teacher's top k, or set distill.teacher")
                    .and_then(|stored| fitting(stored, example, vocab_size)),
            };
            if let Ok(top) = &top {
                let words = top.ids.chunks(top.k);
                hits += learnt_ids(example)
                    .zip(words)
                    .filter(|(id, words)| words.contains(id))
                    .count();
                learnt += example.supervised();
            }
            found.insert(id, top.context(place));
        }
    }
    let mut kept = Stored::new();
    for example in std::mem::take(&mut examples.examples) {
        match found.remove(&example.id) {
            Some(Ok(top)) => {
                kept.insert(example.id.clone(), top);
                examples.examples.push(example);
            }
            Some(Err(reason)) => {
                let reason = format!("{reason:#}");
                examples.unfit.push((example.id, reason));
            }
            None => {
                let reason = "the row has no stored probabilities".to_string();
                examples.unfit.push((example.id, reason));
            }
        }
    }
    if let Some((id, reason)) = examples.unfit.first() {
        ensure!(!config.data.strict, "{id}: {reason} (data.strict is set)");
        ensure!(
            !kept.is_empty(),
            "no row has stored probabilities that fit it; the first one, {id}: {reason}"
        );
    }
    ensure!(
        hits as f64 >= LEAST_SHARE * learnt as f64,
        "only {hits} of {learnt} learnt tokens are among the teacher's stored words: they are ids of another tokenizer"
    );
    Ok(kept)
}

fn learnt_ids(example: &Example) -> impl Iterator<Item = &u32> {
    let learnt = example.ids.iter().zip(&example.learn).skip(1);
    learnt.filter(|(_, learn)| **learn).map(|(id, _)| id)
}

fn fitting(stored: StoredTeacher, example: &Example, vocab_size: usize) -> Result<TopK> {
    let StoredTeacher {
        top_k,
        answer_ids,
        ids,
        log_probabilities,
    } = stored;
    let learnt = example.supervised();
    ensure!(top_k > 0, "`sysgen.teacher.top_k` must be at least 1");
    ensure!(
        ids.len() == learnt && log_probabilities.len() == learnt,
        "`sysgen.teacher` has {} lists of ids and {} of log-probabilities, the answer has {learnt} tokens with its stop token",
        ids.len(),
        log_probabilities.len()
    );
    ensure!(
        answer_ids.is_empty() || answer_ids.iter().eq(learnt_ids(example)),
        "the answer becomes other tokens than those the teacher wrote (`sysgen.teacher.answer_ids`); leave the row out, or set distill.teacher"
    );
    let whole = ids.iter().all(|words| words.len() == top_k)
        && log_probabilities.iter().all(|words| words.len() == top_k);
    ensure!(
        whole,
        "every list of `sysgen.teacher` must have top_k = {top_k} entries"
    );
    let top = TopK {
        k: top_k,
        ids: ids.concat(),
        log_probabilities: log_probabilities.concat(),
    };
    if let Some(id) = top.ids.iter().find(|&&id| id as usize >= vocab_size) {
        anyhow::bail!("`sysgen.teacher` names the token {id}, the model has {vocab_size}");
    }
    let sound = top.log_probabilities.iter().all(|&log| log <= 1e-3);
    ensure!(
        sound,
        "`sysgen.teacher.log_probabilities` must be logarithms of probabilities"
    );
    Ok(top)
}
