//! The four phases over a data set. Rows go through in chunks; in each wave every row of the chunk asks
//! for what it needs next, and each answer is in the log the moment it is known. The data set is
//! written from the log in source order, so it does not depend on chunks, batches or restarts.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sysgen_core::config::{GenerateSection, RunConfig, Variant};
use sysgen_core::files::write_atomically;
use sysgen_core::hash::hash_file;
use sysgen_core::jsonl::write_jsonl;
use sysgen_core::{interrupt, lock_output};

use crate::dataset;
use crate::generator::{Generator, Judgement, Outcome, Prompt};
use crate::input::{self, Input, Row};
use crate::log::{self, Answer, Answers, Entry, Key, Log, Phase};
use crate::manifest::{Funnel, Manifest, Selection, TagCounts, TokenCounts};
use crate::progress::Progress;
use crate::steps::{Plan, Step};
use crate::summary::{Sample, Summary};

/// Rows in flight per slot of the engine: enough that a slot which is free early finds another request.
const ROWS_PER_SLOT: usize = 16;

/// How many finished rows a summary shows.
const SAMPLES: usize = 3;

/// What the data set will have been written by.
#[derive(Clone, Debug, Default)]
pub struct ModelIdentity {
    /// The name in each row's provenance.
    pub name: String,
    /// What its texts depend on, by name: hashes of its files, the chat fingerprint.
    pub key: BTreeMap<String, String>,
}

/// `<output_dir>/data/dataset.jsonl`.
pub fn dataset_path(config: &RunConfig) -> PathBuf {
    config.generated_data_dir().join("dataset.jsonl")
}

/// Whether this variant asks the model at all.
pub(crate) fn needs_model(variant: Variant) -> bool {
    !matches!(variant, Variant::NoSystem | Variant::CommonSystem)
}

/// Whether the data set is there and is the one that this config and model would give.
///
/// # Errors
/// Source or prompt files that cannot be read.
pub fn is_complete_with(config: &RunConfig, model: &ModelIdentity) -> Result<bool> {
    let Some(generate) = &config.generate else {
        return Ok(false);
    };
    let Some(manifest) = Manifest::read(&manifest_path(config)) else {
        return Ok(false);
    };
    if manifest.selection != selection(config, generate)? || !dataset_path(config).exists() {
        return Ok(false);
    }
    let plan = Plan::new(config, generate)?;
    Ok(manifest.funnel.kept > 0
        && manifest.key == key(config, generate, &plan, model)?
        && manifest.dataset_hash == hash_file(&dataset_path(config))?)
}

/// Runs the phases of `[generate]` and writes `<output_dir>/data/`. `open` gives the model; it is only
/// called when some row still needs one.
///
/// # Errors
/// No `[generate]`, no usable row, a log of another config, a folder in use, a failing model, or no
/// row left at the end.
pub fn run_with<'g>(
    config: &RunConfig,
    model: &ModelIdentity,
    open: impl FnOnce() -> Result<Box<dyn Generator + 'g>>,
) -> Result<Summary> {
    let Some(generate) = &config.generate else {
        bail!("the config has no [generate] section; add one to generate data");
    };
    let directory = config.generated_data_dir();
    let _lock = lock_output(&directory)?;
    let plan = Plan::new(config, generate)?;
    let Input { rows, counts } = input::read(&config.data, config.seed)?;
    let key = key(config, generate, &plan, model)?;
    let mut session = Session {
        plan: &plan,
        variant: generate.variant,
        answers: HashMap::new(),
    };
    let (mut tokens, mut seconds, mut interrupted) = (0, 0.0, false);
    if needs_model(generate.variant) {
        let log_path = directory.join("log.jsonl");
        let (mut log, answers) = Log::open(&log_path, &key)?;
        session.answers = answers;
        let waiting: Vec<&Row> = rows.iter().filter(|row| session.is_waiting(row)).collect();
        if !waiting.is_empty() {
            let done = rows.len() - waiting.len();
            if done > 0 || !session.answers.is_empty() {
                tracing::info!("going on after {done} of {} rows", rows.len());
            }
            let mut generator = open()?;
            tracing::info!(
                "writing system messages and answers for {} rows",
                waiting.len()
            );
            let expected = waiting.iter().map(|row| session.answers_to_come(row)).sum();
            let mut progress = Progress::new(rows.len(), done, expected);
            for chunk in waiting.chunks(generate.batch_size.max(1) * ROWS_PER_SLOT) {
                let outcome =
                    session.go_through(chunk, generator.as_mut(), &mut log, &mut progress);
                log.sync()?;
                outcome?;
                if interrupt::requested() {
                    break;
                }
            }
            progress.finish();
            (tokens, seconds) = progress.totals();
        }
        interrupted = rows.iter().any(|row| session.is_waiting(row));
    }
    let funnel = Funnel {
        read: counts,
        ..Funnel::default()
    };
    let dataset = dataset_path(config);
    let mut summary = Summary {
        dataset,
        funnel,
        tags: BTreeMap::new(),
        samples: Vec::new(),
        interrupted,
        tokens,
        seconds,
    };
    if interrupted {
        tracing::warn!("stopped; run the same command again to go on");
        return Ok(summary);
    }
    let mut manifest = Manifest {
        selection: selection(config, generate)?,
        key,
        funnel: summary.funnel.clone(),
        rejected_pieces: BTreeMap::new(),
        tags: BTreeMap::new(),
        tokens: BTreeMap::new(),
        dataset_hash: String::new(),
    };
    // A manifest means "complete": the old one goes before the data set it describes does.
    remove_if_there(&manifest_path(config))?;
    let lines = rows
        .iter()
        .filter_map(|row| session.finish(row, model, &mut manifest, &mut summary.samples));
    write_jsonl(&summary.dataset, lines)?;
    manifest.funnel.add_up();
    manifest.dataset_hash = hash_file(&summary.dataset)?;
    manifest.write(&manifest_path(config))?;
    write_timing(&directory, tokens, seconds)?;
    summary.funnel = manifest.funnel;
    summary.tags = manifest.tags;
    if summary.funnel.kept == 0 {
        bail!(
            "no row is left, {} is empty:\n{}",
            summary.dataset.display(),
            summary.funnel
        );
    }
    Ok(summary)
}

fn manifest_path(config: &RunConfig) -> PathBuf {
    config.generated_data_dir().join("manifest.json")
}

fn selection(config: &RunConfig, generate: &GenerateSection) -> Result<Selection> {
    let data = &config.data;
    Ok(Selection {
        variant: generate.variant,
        common_system_message: generate.common_system_message.clone(),
        limit: data.limit,
        shuffle: data.shuffle,
        deduplicate: data.deduplicate,
        minhash_threshold: data.minhash_threshold,
        decontaminate_ngram: data.decontaminate_ngram,
        decontaminate: data
            .decontaminate
            .iter()
            .map(|path| hash_file(path))
            .collect::<Result<_>>()?,
        seed: config.seed,
    })
}

fn key(
    config: &RunConfig,
    generate: &GenerateSection,
    plan: &Plan,
    model: &ModelIdentity,
) -> Result<Key> {
    let mut key = log::data_key(config)?;
    if needs_model(generate.variant) {
        key.extend(log::generate_key(
            config.seed,
            generate,
            plan.prompt_hashes(),
        ));
        key.extend(
            model
                .key
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
    }
    Ok(key)
}

/// The answers so far, by row id.
struct Session<'a> {
    plan: &'a Plan,
    variant: Variant,
    answers: HashMap<String, Answers>,
}

const NO_ANSWERS: &Answers = &Answers::new();

impl Session<'_> {
    fn next(&self, row: &Row) -> Step {
        self.plan
            .next(row, self.answers.get(&row.id).unwrap_or(NO_ANSWERS))
    }

    fn is_waiting(&self, row: &Row) -> bool {
        matches!(self.next(row), Step::Complete { .. } | Step::Choose(_))
    }

    /// About how many answers a waiting row still needs: a draft, a judgement, and one per turn.
    fn answers_to_come(&self, row: &Row) -> usize {
        let turns = if self.variant == Variant::OriginalAnswer {
            0
        } else {
            row.turns.len()
        };
        let system = if row.system.is_some() { 0 } else { 2 };
        let had = self.answers.get(&row.id).map_or(0, Answers::len);
        (system + turns).saturating_sub(had).max(1)
    }

    /// Takes the rows of one chunk through all they need, wave by wave; stops early when interrupted.
    fn go_through(
        &mut self,
        chunk: &[&Row],
        generator: &mut dyn Generator,
        log: &mut Log,
        progress: &mut Progress,
    ) -> Result<()> {
        let mut waiting = chunk.to_vec();
        while !waiting.is_empty() && !interrupt::requested() {
            let mut writes: Vec<Place> = Vec::new();
            let mut prompts: Vec<Prompt> = Vec::new();
            let mut choices: Vec<Place> = Vec::new();
            let mut judgements: Vec<Judgement> = Vec::new();
            for row in &waiting {
                match self.next(row) {
                    Step::Complete {
                        phase,
                        attempt,
                        prompt,
                    } => {
                        writes.push(Place {
                            row: &row.id,
                            phase,
                            attempt,
                        });
                        prompts.push(prompt);
                    }
                    Step::Choose(judgement) => {
                        choices.push(Place {
                            row: &row.id,
                            phase: Phase::Verify,
                            attempt: 0,
                        });
                        judgements.push(judgement);
                    }
                    Step::Dropped { .. } | Step::Kept(_) => {}
                }
            }
            let asked = prompts.len() + judgements.len();
            let mut heard = 0;
            let mut failure = None;
            let mut note = |place: &Place, answer: Answer, tokens: usize| {
                heard += 1;
                progress.answer(tokens);
                let entry = place.entry(answer);
                let of_row = self.answers.entry(entry.row.clone()).or_default();
                of_row.insert((entry.phase, entry.attempt), entry.answer.clone());
                if let Err(error) = log.append(entry) {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
                if interrupt::requested() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            if !prompts.is_empty() {
                generator.complete(prompts, &mut |i, outcome| match outcome {
                    Outcome::Done(reply) => {
                        let tokens = reply.prompt_tokens + reply.reply_tokens;
                        note(&writes[i], Answer::Reply(reply), tokens)
                    }
                    Outcome::TooLong(tokens) => note(&writes[i], Answer::TooLong(tokens), 0),
                })?;
            }
            if !judgements.is_empty() && !interrupt::requested() {
                generator.choose(judgements, &mut |i, outcome| match outcome {
                    Outcome::Done(judged) => {
                        let tokens = judged.prompt_tokens;
                        note(&choices[i], Answer::Judged(judged), tokens)
                    }
                    Outcome::TooLong(tokens) => note(&choices[i], Answer::TooLong(tokens), 0),
                })?;
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            if heard < asked && !interrupt::requested() {
                bail!(
                    "the engine answered {heard} of {asked} requests; this is a fault of the program"
                );
            }
            let before = waiting.len();
            waiting.retain(|row| self.is_waiting(row));
            progress.rows(before - waiting.len());
        }
        Ok(())
    }

    /// The line of a finished row, counted in the manifest; none for a row that was left out.
    fn finish(
        &self,
        row: &Row,
        model: &ModelIdentity,
        manifest: &mut Manifest,
        samples: &mut Vec<Sample>,
    ) -> Option<dataset::Line> {
        let answers = self.answers.get(&row.id).unwrap_or(NO_ANSWERS);
        self.plan
            .count_rejects(answers, &mut manifest.rejected_pieces);
        count_tokens(answers, &mut manifest.tokens);
        let kept = match self.plan.next(row, answers) {
            Step::Kept(kept) => kept,
            Step::Dropped { phase, reason } => {
                manifest.funnel.drop_row(phase, reason);
                return None;
            }
            Step::Complete { .. } | Step::Choose(_) => {
                unreachable!("only finished runs are written")
            }
        };
        let line = dataset::line(self.plan, self.variant, &model.name, row, answers, &kept);
        for verdict in &line.sysgen.tags {
            let counts: &mut TagCounts = manifest.tags.entry(verdict.tag).or_default();
            counts.drafted += 1;
            *counts.labels.entry(verdict.label).or_default() += 1;
            counts.kept += usize::from(verdict.kept);
        }
        if samples.len() < SAMPLES {
            let first = &row.turns[0];
            samples.push(Sample {
                id: row.id.clone(),
                question: first.question.clone(),
                system: kept.system.clone(),
                original_answer: first.answer.clone(),
                answer: kept.answers.first().unwrap_or(&first.answer).clone(),
            });
        }
        Some(line)
    }
}

/// Which request an outcome belongs to.
struct Place<'a> {
    row: &'a str,
    phase: Phase,
    attempt: usize,
}

impl Place<'_> {
    fn entry(&self, answer: Answer) -> Entry {
        Entry {
            row: self.row.to_string(),
            phase: self.phase,
            attempt: self.attempt,
            answer,
        }
    }
}

fn count_tokens(answers: &Answers, counts: &mut BTreeMap<Phase, TokenCounts>) {
    for ((phase, _), answer) in answers {
        let counts = counts.entry(*phase).or_default();
        match answer {
            Answer::Reply(reply) => {
                counts.read += reply.prompt_tokens;
                counts.written += reply.reply_tokens;
            }
            Answer::Judged(judged) => counts.read += judged.prompt_tokens,
            Answer::TooLong(_) => {}
        }
    }
}

#[derive(Serialize)]
struct Timing {
    tokens: usize,
    seconds: f64,
    tokens_per_second: f64,
}

/// How fast the last process was, beside the files that are the same for every run.
fn write_timing(directory: &Path, tokens: usize, seconds: f64) -> Result<()> {
    if tokens == 0 {
        return Ok(());
    }
    let timing = Timing {
        tokens,
        seconds,
        tokens_per_second: tokens as f64 / seconds.max(1e-9),
    };
    let text = serde_json::to_string_pretty(&timing).context("writing timing.json")?;
    write_atomically(&directory.join("timing.json"), |file| {
        writeln!(file, "{text}")
    })
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("replacing {}", path.display()))
        }
        _ => Ok(()),
    }
}
