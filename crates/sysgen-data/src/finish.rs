//! A run whose rows have all their answers becomes a data set: its lines in source order, the card, the manifest, the
//! timing. All of it but the timing follows from the log alone, so it does not depend on chunks, batches or restarts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sysgen_core::config::{GenerateSection, RunConfig};
use sysgen_core::files::write_atomically;
use sysgen_core::hash::hash_file;
use sysgen_core::jsonl::{read_lines, write_jsonl};

use crate::card;
use crate::dataset;
use crate::input::Row;
use crate::log::{Answer, Answers, Key, Phase};
use crate::manifest::{Manifest, TagCounts, TokenCounts};
use crate::pipeline::{ModelIdentity, manifest_path, selection};
use crate::session::Session;
use crate::steps::{Step, UNANSWERED};
use crate::summary::{Sample, Summary};

/// How many finished rows a summary shows.
const SAMPLES: usize = 3;

/// Writes the data set, its manifest and the timing; every row has all its answers, or is to be left out without them.
pub(crate) fn write_dataset(
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

/// The summary of a data set that is finished already.
pub(crate) fn read_back(dataset: PathBuf, manifest: Manifest) -> Result<Summary> {
    tracing::info!("{} is complete; nothing is done again", dataset.display());
    let mut samples = Vec::new();
    for line in read_lines(&dataset)?.take(SAMPLES) {
        let line: dataset::Line = serde_json::from_str(&line?.1)?;
        samples.extend(sample(&line));
    }
    Ok(Summary {
        dataset,
        funnel: manifest.funnel,
        tags: manifest.tags,
        samples,
        ..Summary::default()
    })
}

/// The first turn of a line that is learnt.
fn sample(line: &dataset::Line) -> Option<Sample> {
    let learnt = line.messages.iter().position(dataset::Turn::is_learnt)?;
    Some(Sample {
        id: line.sysgen.id.clone(),
        question: line.messages[learnt.checked_sub(1)?].content.clone(),
        system: line.system().map(str::to_string),
        original_answer: line.originals().first()?.clone(),
        answer: line.messages[learnt].content.clone(),
    })
}

impl Session<'_> {
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
            // Not in the log, so that a later run may ask again.
            Step::Ask(ask) if self.plan.skips_unanswered() => {
                manifest.funnel.drop_row(ask.phase(), UNANSWERED);
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
            samples.extend(sample(&line));
        }
        Ok(Some(line))
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
