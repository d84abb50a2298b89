//! The four phases over a data set. Rows go through in chunks; in each wave every row of the chunk asks
//! for what it needs next, and each answer is in the log the moment it is known. The data set is
//! written from the log in source order, so it does not depend on chunks, batches or restarts.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sysgen_core::config::{GenerateSection, RunConfig, Variant};
use sysgen_core::files::write_atomically;
use sysgen_core::hash::hash_file;
use sysgen_core::jsonl::write_jsonl;
use sysgen_core::{OutputLock, interrupt, lock_output};

use crate::card;
use crate::dataset;
use crate::generator::{Generator, Judgement, Outcome, Prompt};
use crate::input::{self, Input, Row};
use crate::log::{self, Answer, Answers, Entry, Key, Log, Phase};
use crate::manifest::{Funnel, Manifest, Selection, TagCounts, TokenCounts};
use crate::progress::Progress;
use crate::shard::Shard;
use crate::steps::{Plan, Request, Step};
use crate::summary::{Sample, Summary};
use crate::throughput::Throughput;

/// Rows in flight per slot of the engine: enough that a slot which is free early finds another request.
const ROWS_PER_SLOT: usize = 16;

/// How long a shard that found all rows answered waits for the others to leave.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
    run_shard_with(config, model, Shard::WHOLE, open)
}

/// As `run_with`, for the rows of one shard. The data set is written by the shard that finds all rows
/// answered, its own and the others'.
///
/// # Errors
/// As `run_with`.
pub fn run_shard_with<'g>(
    config: &RunConfig,
    model: &ModelIdentity,
    shard: Shard,
    open: impl FnOnce() -> Result<Box<dyn Generator + 'g>>,
) -> Result<Summary> {
    let Some(generate) = &config.generate else {
        bail!("the config has no [generate] section; add one to generate data");
    };
    let directory = config.generated_data_dir();
    let mut lock = shard.lock(&directory)?;
    let plan = Plan::new(config, generate)?;
    let Input { rows, counts } = input::read(&config.data, config.seed)?;
    let key = key(config, generate, &plan, model)?;
    let mut session = Session {
        plan: &plan,
        variant: generate.variant,
        log: None,
    };
    let mut summary = Summary {
        dataset: dataset_path(config),
        funnel: Funnel {
            read: counts,
            ..Funnel::default()
        },
        ..Summary::default()
    };
    if needs_model(generate.variant) {
        session.log = Some(Log::read(&directory, &key)?);
        let of_shard: Vec<&Row> = rows
            .iter()
            .enumerate()
            .filter(|(position, _)| shard.has(*position))
            .map(|(_, row)| row)
            .collect();
        session.answer(&of_shard, shard, generate, open, &mut summary)?;
        summary.interrupted = session.count_waiting(&of_shard)? > 0;
        if summary.interrupted {
            tracing::warn!("stopped; run the same command again to go on");
            return Ok(summary);
        }
        if !shard.is_whole() {
            // What the others have written until now is there, too.
            session.log = Some(Log::read(&directory, &key)?);
            let waiting = session.count_waiting(&rows.iter().collect::<Vec<_>>())?;
            if waiting > 0 {
                tracing::info!(
                    "shard {shard} is done; {waiting} of {} rows are still to come from the other shards",
                    rows.len()
                );
                summary.other_shards = true;
                return Ok(summary);
            }
            drop(lock);
            lock = match lock_soon(&directory) {
                Ok(lock) => lock,
                Err(busy) => {
                    tracing::warn!("every shard is done; {busy:#}, then run `sysgen-data merge`");
                    summary.other_shards = true;
                    return Ok(summary);
                }
            };
        }
    }
    write_dataset(config, generate, model, key, &session, &rows, &mut summary)?;
    drop(lock);
    Ok(summary)
}

/// Writes the data set of a run whose shards are all done.
///
/// # Errors
/// As `run_with`; and rows without answers.
pub fn merge_with(config: &RunConfig, model: &ModelIdentity) -> Result<Summary> {
    run_with(config, model, || {
        bail!(
            "some rows have no answers yet; run the shards that are missing, or go on without --shard, and the data set is written by itself"
        )
    })
}

/// Locks the folder. Every row is answered, so other shards that hold it are about to find that out, too,
/// or are writing the data set.
fn lock_soon(directory: &Path) -> Result<OutputLock> {
    let started = Instant::now();
    loop {
        match lock_output(directory) {
            Err(busy) if started.elapsed() > LONGEST_WAIT || interrupt::requested() => {
                return Err(busy);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            lock => return lock,
        }
    }
}

/// Writes the data set, its manifest and the timing; every row has all its answers.
fn write_dataset(
    config: &RunConfig,
    generate: &GenerateSection,
    model: &ModelIdentity,
    key: Key,
    session: &Session,
    rows: &[Row],
    summary: &mut Summary,
) -> Result<()> {
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
    let mut failure = None;
    let lines = rows.iter().map_while(|row| {
        let line = session.finish(row, model, &mut manifest, &mut summary.samples);
        line.map_err(|error| failure = Some(error)).ok()
    });
    let written = write_jsonl(&summary.dataset, lines.flatten());
    if let Some(failure) = failure {
        // What was written is only a part.
        remove_if_there(&summary.dataset)?;
        return Err(failure);
    }
    written?;
    manifest.funnel.add_up();
    manifest.dataset_hash = hash_file(&summary.dataset)?;
    let directory = config.generated_data_dir();
    card::write(
        &directory,
        config,
        generate,
        session.plan,
        &model.name,
        &manifest,
    )?;
    manifest.write(&manifest_path(config))?;
    write_timing(&directory, summary.tokens, summary.seconds)?;
    summary.funnel = manifest.funnel;
    summary.tags = manifest.tags;
    if summary.funnel.kept == 0 {
        bail!(
            "no row is left, {} is empty:\n{}",
            summary.dataset.display(),
            summary.funnel
        );
    }
    Ok(())
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

/// The rows' way through the phases, by the answers in the log.
struct Session<'a> {
    plan: &'a Plan,
    variant: Variant,
    /// None when no row needs the model.
    log: Option<Log>,
}

impl Session<'_> {
    fn answers(&self, row: &Row) -> Result<Answers> {
        self.log
            .as_ref()
            .map_or_else(|| Ok(Answers::new()), |log| log.answers(&row.id))
    }

    fn next(&self, row: &Row) -> Result<Step> {
        Ok(self.plan.next(row, &self.answers(row)?))
    }

    fn is_waiting(&self, row: &Row) -> Result<bool> {
        Ok(matches!(self.next(row)?, Step::Ask(_)))
    }

    fn count_waiting(&self, rows: &[&Row]) -> Result<usize> {
        let mut waiting = 0;
        for row in rows {
            waiting += usize::from(self.is_waiting(row)?);
        }
        Ok(waiting)
    }

    /// Has every waiting row answered, as long as nobody asks to stop.
    fn answer<'g>(
        &mut self,
        rows: &[&Row],
        shard: Shard,
        generate: &GenerateSection,
        open: impl FnOnce() -> Result<Box<dyn Generator + 'g>>,
        summary: &mut Summary,
    ) -> Result<()> {
        let mut waiting = Vec::new();
        for row in rows {
            if self.is_waiting(row)? {
                waiting.push(*row);
            }
        }
        let log = self.log.as_mut().expect("a log is open");
        if waiting.is_empty() {
            return Ok(());
        }
        let done = rows.len() - waiting.len();
        if done > 0 || log.has_answers() {
            tracing::info!("going on after {done} of {} rows", rows.len());
        }
        // Before the model is loaded: a log that cannot be written is known at once.
        log.write_to(shard)?;
        let mut generator = open()?;
        tracing::info!(
            "writing system messages and answers for {} rows",
            waiting.len()
        );
        let expected = waiting.iter().map(|row| self.answers_to_come(row)).sum();
        let throughput = Throughput::of(&summary.dataset.with_file_name(""));
        let mut progress = Progress::new(rows.len(), done, expected, throughput);
        let mut outcome = Ok(());
        let mut unanswered = BTreeMap::new();
        for chunk in waiting.chunks(generate.batch_size.max(1) * ROWS_PER_SLOT) {
            outcome = self.go_through(chunk, generator.as_mut(), &mut progress, &mut unanswered);
            if let Some(log) = &self.log {
                log.sync()?;
            }
            if outcome.is_err() || interrupt::requested() {
                break;
            }
        }
        progress.finish();
        (summary.tokens, summary.seconds) = progress.totals();
        outcome?;
        if let Some((row, reason)) = unanswered.first_key_value() {
            bail!(
                "{} rows were not answered, {row} because of: {reason}; all others are kept, run the same command again to ask for these once more",
                unanswered.len()
            );
        }
        Ok(())
    }

    /// About how many answers a waiting row still needs: a draft, a judgement, and one per turn.
    fn answers_to_come(&self, row: &Row) -> usize {
        let turns = if self.variant == Variant::OriginalAnswer {
            0
        } else {
            row.turns.len()
        };
        let system = if row.system.is_some() { 0 } else { 2 };
        let had = self.log.as_ref().map_or(0, |log| log.count(&row.id));
        (system + turns).saturating_sub(had).max(1)
    }

    /// Takes the rows of one chunk through all they need, wave by wave; stops early when interrupted.
    /// `unanswered` gets the rows that the model did not answer this time, with the reason.
    fn go_through(
        &mut self,
        chunk: &[&Row],
        generator: &mut dyn Generator,
        progress: &mut Progress,
        unanswered: &mut BTreeMap<String, String>,
    ) -> Result<()> {
        let mut waiting = chunk.to_vec();
        while !interrupt::requested() {
            let mut writes: Vec<Place> = Vec::new();
            let mut prompts: Vec<Prompt> = Vec::new();
            let mut choices: Vec<Place> = Vec::new();
            let mut judgements: Vec<Judgement> = Vec::new();
            let before = waiting.len();
            let mut still_waiting = Vec::with_capacity(before);
            for row in waiting {
                if unanswered.contains_key(&row.id) {
                    continue;
                }
                let Step::Ask(ask) = self.next(row)? else {
                    continue;
                };
                still_waiting.push(row);
                let ((phase, attempt), request) = self.plan.request(row, &ask);
                let place = Place {
                    row: &row.id,
                    phase,
                    attempt,
                };
                match request {
                    Request::Complete(prompt) => {
                        writes.push(place);
                        prompts.push(prompt);
                    }
                    Request::Choose(judgement) => {
                        choices.push(place);
                        judgements.push(judgement);
                    }
                }
            }
            waiting = still_waiting;
            progress.rows(before - waiting.len());
            if waiting.is_empty() {
                return Ok(());
            }
            let asked = prompts.len() + judgements.len();
            let mut heard = 0;
            let mut failure = None;
            let log = self.log.as_mut().expect("a log is open");
            let mut note = |place: &Place, answer: Result<Answer, String>, tokens: usize| {
                heard += 1;
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(reason) => {
                        unanswered.insert(place.row.to_string(), reason);
                        return ControlFlow::Continue(());
                    }
                };
                progress.answer(tokens);
                if let Err(error) = log.append(&place.entry(answer)) {
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
                generator.complete(prompts, &mut |i, outcome| {
                    let tokens = match &outcome {
                        Outcome::Done(reply) => reply.prompt_tokens + reply.reply_tokens,
                        _ => 0,
                    };
                    note(&writes[i], answer_of(outcome, Answer::Reply), tokens)
                })?;
            }
            if !judgements.is_empty() && !interrupt::requested() {
                generator.choose(judgements, &mut |i, outcome| {
                    let tokens = match &outcome {
                        Outcome::Done(judged) => judged.prompt_tokens,
                        _ => 0,
                    };
                    note(&choices[i], answer_of(outcome, Answer::Judged), tokens)
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
    ) -> Result<Option<dataset::Line>> {
        let answers = &self.answers(row)?;
        self.plan
            .count_rejects(answers, &mut manifest.rejected_pieces);
        count_tokens(answers, &mut manifest.tokens);
        let kept = match self.plan.next(row, answers) {
            Step::Kept(kept) => kept,
            Step::Dropped { phase, reason } => {
                manifest.funnel.drop_row(phase, reason);
                return Ok(None);
            }
            Step::Ask(_) => unreachable!("only finished runs are written"),
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
        Ok(Some(line))
    }
}

/// What goes into the log; the reason when nothing does.
fn answer_of<T>(outcome: Outcome<T>, done: fn(T) -> Answer) -> Result<Answer, String> {
    match outcome {
        Outcome::Done(value) => Ok(done(value)),
        Outcome::TooLong(tokens) => Ok(Answer::TooLong(tokens)),
        Outcome::Refused(reason) => Ok(Answer::Refused(reason)),
        Outcome::Failed(reason) => Err(reason),
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
            Answer::TooLong(_) | Answer::Refused(_) => {}
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
