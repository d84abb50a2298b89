//! What a run learns from and is measured on: rows read, split, rendered and looked at.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use crate::formats;
use anyhow::{Result, bail};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::RunConfig;
use sysgen_core::config::TrainSection;
use sysgen_model::{Device, ModelConfig, doing};
use sysgen_train::check::{Findings, Subject, Taught, check, preview};
use sysgen_train::distill::{Distiller, TeacherChat, distiller};
use sysgen_train::example::{Example, Examples, render_rows};
use sysgen_train::method;
use sysgen_train::rows::{Row, Split, split, training_rows};
use sysgen_train::stored_teacher::{self, Stored};

/// Rows that are named where rows are lost; the rest is counted.
const NAMED_ROWS: usize = 5;

/// Everything that is known before weights are loaded.
pub(crate) struct Data {
    /// Tokenizer and template.
    pub(crate) chat: Chat,
    /// `config.json`.
    pub(crate) model: ModelConfig,
    /// The rows, on their sides.
    pub(crate) rows: Split,
    /// The rows to learn from, as token ids.
    pub(crate) train: Examples,
    /// The rows to measure on, as token ids.
    pub(crate) held_out: Examples,
    /// A teacher's probabilities, where they are stored with the rows to learn from.
    pub(crate) stored: Option<Arc<Stored>>,
    /// Tokenizer and template of a teacher that is run.
    pub(crate) teacher: Option<TeacherChat>,
}

/// The tokenizer and template of the model, under the policies of `[model]`.
pub(crate) fn load_chat(config: &RunConfig) -> Result<Chat> {
    Chat::load(&config.model.path, ChatOptions::of(config))
}

/// Reads and renders the rows of a run, and says what was lost on the way.
///
/// With a `cache` folder, rendered rows are kept there for the next start.
pub(crate) fn load(config: &RunConfig, train: &TrainSection, cache: Option<&Path>) -> Result<Data> {
    let model = ModelConfig::from_directory(&config.model.path)?;
    method::lora(train, &model)?;
    let chat = load_chat(config)?;
    let found = training_rows(config, &|paths| formats::read(config, paths))?;
    for bad in found.bad.iter().take(NAMED_ROWS) {
        tracing::warn!("{} is left out: {}", bad.place, bad.reason);
    }
    if found.bad.len() > NAMED_ROWS {
        tracing::warn!(
            "{} rows are left out because they are not conversations",
            found.bad.len()
        );
    }
    let rows = split(found.rows, train.eval_fraction, config.seed);
    let longest = train.max_length.min(model.max_position_embeddings);
    if longest < train.max_length {
        tracing::info!(
            "conversations may have {longest} tokens, the model's context; packed rows have {}",
            train.max_length
        );
    }
    let all: Vec<&Row> = rows.train.iter().chain(&rows.held_out).collect();
    let mut fits = render_rows(&chat, &all, longest, cache);
    let held_out = Examples::of(fits.split_off(rows.train.len()), true);
    let mut training = Examples::of(fits, train.assistant_only_loss);
    let stored = match &config.distill {
        Some(distill)
            if distill.teacher.as_os_str().is_empty() && !training.examples.is_empty() =>
        {
            let stored = stored_teacher::read(config, &mut training, model.vocab_size)?;
            Some(Arc::new(stored))
        }
        _ => None,
    };
    let run = (config.distill.as_ref()).filter(|it| !it.teacher.as_os_str().is_empty());
    let teacher =
        run.map(|distill| TeacherChat::load(config, distill, &chat, model.vocab_size, &rows.train));
    let teacher = teacher.transpose()?;
    for (examples, what) in [(&training, "training"), (&held_out, "held-out")] {
        let tokens: usize = examples
            .examples
            .iter()
            .map(|example| example.ids.len())
            .sum();
        let learnt: usize = examples.examples.iter().map(Example::supervised).sum();
        tracing::info!(
            "{what}: {} rows, {tokens} tokens, {learnt} learnt",
            examples.examples.len()
        );
        say_losses(examples, what);
    }
    if training.examples.is_empty() {
        let reason = training.refused.iter().chain(&training.dropped).next();
        let reason = reason.map_or_else(
            || "all rows are held out".to_string(),
            |(id, reason)| format!("{id}: {reason}"),
        );
        bail!("there is no row to train on; {reason}");
    }
    Ok(Data {
        chat,
        model,
        rows,
        train: training,
        held_out,
        stored,
        teacher,
    })
}

fn say_losses(examples: &Examples, what: &str) {
    if !examples.cut.is_empty() {
        let named = examples
            .cut
            .iter()
            .take(NAMED_ROWS)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        tracing::warn!(
            "{} {what} row(s) were too long and lost history or the start of the question: {named}",
            examples.cut.len()
        );
    }
    for (lost, why) in [
        (&examples.dropped, "they do not fit"),
        (&examples.unfit, "their teacher's probabilities do not fit"),
    ] {
        for (id, reason) in lost.iter().take(NAMED_ROWS) {
            tracing::warn!("{id} is dropped: {reason}");
        }
        if lost.len() > NAMED_ROWS {
            let count = lost.len();
            tracing::warn!("{count} {what} rows are dropped because {why}");
        }
    }
}

impl Data {
    /// The gate, over training and held-out rows alike.
    pub(crate) fn check(&self, config: &RunConfig, train: &TrainSection) -> Result<Findings> {
        let rows: Vec<&Row> = self.rows.train.iter().chain(&self.rows.held_out).collect();
        let examples: Vec<&Example> = self
            .train
            .examples
            .iter()
            .chain(&self.held_out.examples)
            .collect();
        let refused: Vec<_> = self
            .train
            .refused
            .iter()
            .chain(&self.held_out.refused)
            .cloned()
            .collect();
        check(&Subject {
            chat: &self.chat,
            embedding_rows: self.model.vocab_size,
            rows,
            examples,
            refused: &refused,
            cut: &[&self.train.cut[..], &self.held_out.cut].concat(),
            dropped: &[&self.train.dropped[..], &self.held_out.dropped].concat(),
            default_system: config.model.default_system,
            assistant_only_loss: train.assistant_only_loss,
            teacher: self.taught(config),
        })
    }

    /// Where a teacher's probabilities come from, for the gate.
    fn taught(&self, config: &RunConfig) -> Option<Taught<'_>> {
        let distill = config.distill.as_ref()?;
        Some(match &self.teacher {
            None => Taught::ByRows(&self.train.unfit),
            Some(teacher) => Taught::ByModel(teacher.vocabularies.clone(), distill.cross_tokenizer),
        })
    }

    /// What the student learns from besides the data, if `[distill]` is there; a teacher that is run is loaded onto `device`.
    pub(crate) fn distiller(
        &self,
        config: &RunConfig,
        device: &Device,
    ) -> Result<Option<Distiller>> {
        let Some(distill) = &config.distill else {
            return Ok(None);
        };
        if let Some(teacher) = &self.teacher {
            doing("loading the teacher");
            let (rows, examples) = (&self.rows.train, &self.train.examples);
            let found = distiller(distill, &self.chat, teacher, rows, examples, device)?;
            return Ok(Some(found));
        }
        let stored = self.stored.clone();
        Ok(stored.map(|stored| Distiller::of_stored(distill, stored)))
    }

    /// Some training rows as text, with what is learnt marked.
    pub(crate) fn preview(&self, count: usize, terminal: bool) -> String {
        let colour = colour(terminal);
        let rows = self.train.examples.iter().take(count);
        rows.map(|example| {
            format!(
                "── {} ──\n{}\n",
                example.id,
                preview(&self.chat, example, colour)
            )
        })
        .collect()
    }
}

impl Data {
    /// The first row, so that a wrong template is seen before hours are spent.
    pub(crate) fn show_one_row(&self) {
        if tracing::enabled!(tracing::Level::INFO) {
            eprintln!(
                "a row as it is trained on, what is learnt is marked:\n{}",
                self.preview(1, std::io::stderr().is_terminal())
            );
        }
    }
}

/// Whether a text may be coloured: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Says what the gates found; problems are an error.
pub(crate) fn pass(findings: &Findings) -> Result<()> {
    for note in findings.notes() {
        tracing::info!("note: {note}");
    }
    let problems = findings.problems();
    if problems.is_empty() {
        return Ok(());
    }
    bail!("training would go wrong:\n  {}", problems.join("\n  "))
}
