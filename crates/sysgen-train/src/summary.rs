//! What a finished run has to show: written beside the run as `summary.json` and `summary.txt`, printed at its end, and
//! printed again when the same command is run once more.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sysgen_core::RunConfig;
use sysgen_core::config::HubDataset;
use sysgen_core::files::write_atomically;
use sysgen_core::hash::{FileHashes, hash_bytes};
use sysgen_core::measure::peak_rss_mib;
use sysgen_core::tell::duration;
use sysgen_train::checkpoint::Checkpoint;
use sysgen_train::example::Examples;
use sysgen_train::export::{EXAMPLE_QUESTION, MARKER, usage};
use sysgen_train::metrics;
use sysgen_train::report::{self, Answer};
use sysgen_train::run::Finished;

use crate::samples::{self, Sample};

/// A finished run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Identifies the config and the files it names: another one is another run.
    inputs: String,
    /// The run's folder.
    output_dir: PathBuf,
    /// What became of every source row, in numbers and as text.
    pub(crate) data: Option<serde_json::Value>,
    /// The same for a person.
    pub(crate) funnel: Option<String>,
    /// Optimizer steps.
    pub(crate) steps: usize,
    /// Rows trained on.
    rows: usize,
    /// Rows that were too long to be used, or that their stored probabilities do not fit.
    rows_dropped: usize,
    /// Tokens seen.
    num_tokens: u64,
    /// Tokens learnt.
    supervised_tokens: u64,
    /// Steps skipped because loss or gradient were not finite.
    nonfinite_steps: usize,
    /// Seconds in optimizer steps.
    seconds: f64,
    /// Tokens seen by seconds in steps.
    #[serde(default)]
    tokens_per_second: f64,
    /// Tokens learnt by seconds in steps.
    #[serde(default)]
    supervised_tokens_per_second: f64,
    /// Seconds from the program's start to the beginning of its first step, in the process that finished the run.
    start_to_first_step_seconds: Option<f64>,
    /// The most memory the process has held, in MiB.
    peak_memory_mib: Option<u64>,
    /// The step whose model this is, where an earlier one was better than the last.
    pub(crate) best_step: Option<usize>,
    /// The run ended before its last step because its evaluations no longer got better.
    stopped_early: bool,
    /// Mean loss of the last steps.
    train_loss: Option<f64>,
    /// Mean loss of the held-out rows before training.
    pub(crate) held_out_loss_before: Option<f64>,
    /// Mean loss of the held-out rows after training.
    pub(crate) held_out_loss_after: Option<f64>,
    /// Answers before and after.
    pub(crate) samples: Vec<Sample>,
    /// The exported folder.
    pub(crate) export: Option<PathBuf>,
}

impl Summary {
    /// Of a run that has done nothing yet; `inputs` are its [`inputs`].
    pub(crate) fn new(config: &RunConfig, inputs: String) -> Summary {
        Summary {
            inputs,
            output_dir: config.output_dir.clone(),
            data: None,
            funnel: None,
            steps: 0,
            rows: 0,
            rows_dropped: 0,
            num_tokens: 0,
            supervised_tokens: 0,
            nonfinite_steps: 0,
            seconds: 0.0,
            tokens_per_second: 0.0,
            supervised_tokens_per_second: 0.0,
            start_to_first_step_seconds: None,
            peak_memory_mib: None,
            best_step: None,
            stopped_early: false,
            train_loss: None,
            held_out_loss_before: None,
            held_out_loss_after: None,
            samples: Vec::new(),
            export: None,
        }
    }

    /// Adds what training did.
    pub(crate) fn add_training(&mut self, finished: &Finished, examples: &Examples) {
        self.steps = finished.progress.step;
        self.rows = examples.examples.len();
        self.rows_dropped = examples.dropped.len() + examples.unfit.len();
        self.num_tokens = finished.progress.num_tokens;
        self.supervised_tokens = finished.progress.supervised_tokens;
        self.nonfinite_steps = finished.progress.nonfinite_steps;
        self.seconds = finished.progress.seconds;
        let speed = |tokens: u64| tokens as f64 / self.seconds.max(1e-9);
        self.tokens_per_second = speed(self.num_tokens);
        self.supervised_tokens_per_second = speed(self.supervised_tokens);
        self.start_to_first_step_seconds = finished.start_to_first_step_seconds;
        self.peak_memory_mib = peak_rss_mib();
        self.best_step = finished.best_step;
        self.stopped_early = finished.progress.stopped_early;
        self.train_loss = finished.train_loss;
        self.held_out_loss_before = finished.held_out_before;
        self.held_out_loss_after = finished.held_out_after;
    }

    /// Adds what was known of the model when this checkpoint was written.
    pub(crate) fn add_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.steps = checkpoint.state.progress.step;
        let metrics = checkpoint.path.with_file_name("metrics.jsonl");
        if metrics.exists() {
            let lines = metrics::read(&metrics)?;
            let loss = |step| lines.iter().find(|line| line.step == step)?.eval_loss;
            self.held_out_loss_before = loss(0);
            self.held_out_loss_after = loss(self.steps);
        }
        Ok(())
    }

    /// For a person.
    pub(crate) fn to_text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(funnel) = &self.funnel {
            lines.push(format!(
                "Data: {}\n{funnel}\n",
                self.output_dir.join("data/dataset.jsonl").display()
            ));
        }
        if !self.samples.is_empty() {
            lines.push(format!(
                "Rows the model was not trained on:\n{}\n",
                samples::to_text(&self.samples)
            ));
        }
        if self.steps > 0 {
            lines.push(format!(
                "Training: {} steps on {} rows, {} tokens ({} learnt), {}, {:.0} tokens/s ({:.0} learnt)",
                self.steps,
                self.rows,
                self.num_tokens,
                self.supervised_tokens,
                duration(self.seconds),
                self.tokens_per_second,
                self.supervised_tokens_per_second
            ));
            let ended = if self.stopped_early {
                "stopped early; "
            } else {
                ""
            };
            if let Some(step) = self.best_step {
                lines.push(format!(
                    "  {ended}this is the model after step {step}, the best evaluation"
                ));
            } else if self.stopped_early {
                lines.push("  stopped early: the evaluations no longer got better".to_string());
            }
            if self.rows_dropped > 0 {
                lines.push(format!(
                    "  {} rows did not fit and were dropped",
                    self.rows_dropped
                ));
            }
            if self.nonfinite_steps > 0 {
                lines.push(format!(
                    "  {} steps were skipped because they were not finite",
                    self.nonfinite_steps
                ));
            }
            if let Some(loss) = self.train_loss {
                lines.push(format!("Training loss, mean of the last steps: {loss:.4}"));
            }
            if let (Some(before), Some(after)) =
                (self.held_out_loss_before, self.held_out_loss_after)
            {
                lines.push(format!(
                    "Held-out loss: {before:.4} before, {after:.4} after"
                ));
            }
            lines.push(format!(
                "Metrics of every step: {}; the run on a page: {}",
                self.output_dir.join("metrics.jsonl").display(),
                self.output_dir.join("report.html").display()
            ));
        }
        if let Some(path) = &self.export {
            let (system, user) = self.question();
            lines.push(format!(
                "The model: {path}\n\n\
                 Ask it:\n\n\
                 {program} answer --model {path} --system {} --user {}\n\n\
                 In Python:\n\n{}",
                shell_word(system),
                shell_word(user),
                usage(path, system, user),
                path = path.display(),
                program = std::env::args().next().unwrap_or("sysgen-train".into()),
            ));
        }
        lines.join("\n")
    }

    /// A system message and a question to try: those of the shortest sample, whose answer was just shown.
    fn question(&self) -> (&str, &str) {
        self.samples
            .iter()
            .filter_map(|sample| Some((sample.system.as_deref()?, sample.question.as_str())))
            .min_by_key(|(system, question)| system.len() + question.len())
            .unwrap_or(EXAMPLE_QUESTION)
    }

    /// Writes `report.html`, from the summary and the run's metrics.
    pub(crate) fn report(&self, config: &RunConfig) -> Result<()> {
        let number =
            |loss: Option<f64>| loss.map_or("none".to_string(), |loss| format!("{loss:.4}"));
        let mut facts = vec![
            ("steps", self.steps.to_string()),
            ("rows", self.rows.to_string()),
            ("rows that did not fit", self.rows_dropped.to_string()),
            ("tokens", self.num_tokens.to_string()),
            ("learnt tokens", self.supervised_tokens.to_string()),
            ("seconds in steps", format!("{:.1}", self.seconds)),
            (
                "tokens per second",
                format!("{:.0}", self.tokens_per_second),
            ),
            (
                "learnt tokens per second",
                format!("{:.0}", self.supervised_tokens_per_second),
            ),
            ("training loss at the end", number(self.train_loss)),
            ("held-out loss before", number(self.held_out_loss_before)),
            ("held-out loss after", number(self.held_out_loss_after)),
        ];
        if let Some(mib) = self.peak_memory_mib {
            facts.push(("peak memory", format!("{mib} MiB")));
        }
        if let Some(step) = self.best_step {
            facts.push(("model taken after step", step.to_string()));
        }
        let lines = metrics::read(&config.output_dir.join("metrics.jsonl"))?;
        let answers: Vec<Answer> = self.samples.iter().map(Sample::to_answer).collect();
        let title = format!("Training run {}", config.output_dir.display());
        let page = report::html(&title, &facts, &lines, &answers, &config.to_toml());
        write_atomically(&config.output_dir.join("report.html"), |file| {
            file.write_all(page.as_bytes())
        })
    }

    /// Writes `summary.json` and `summary.txt`: from now on the run is finished.
    pub(crate) fn save(&self, config: &RunConfig) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        write_atomically(&config.output_dir.join("summary.txt"), |file| {
            writeln!(file, "{}", self.to_text())
        })?;
        write_atomically(&json_path(&config.output_dir), |file| {
            writeln!(file, "{json}")
        })
    }
}

/// The summary of the run in this folder if it is the run this config describes, with these [`inputs`], finished, with its
/// export in place.
pub(crate) fn finished(config: &RunConfig, inputs: &str) -> Option<Summary> {
    let Ok(text) = std::fs::read_to_string(json_path(&config.output_dir)) else {
        return None;
    };
    let Ok(summary) = serde_json::from_str::<Summary>(&text) else {
        return None;
    };
    let in_place = summary
        .export
        .as_ref()
        .is_none_or(|path| path.join(MARKER).exists());
    (in_place && summary.inputs == inputs).then_some(summary)
}

fn json_path(output_dir: &Path) -> PathBuf {
    output_dir.join("summary.json")
}

/// The effective config and the content of the files it names; of the folders it names only the files' names, sizes and times.
///
/// # Errors
/// A file of `data.path` or another file that the config names cannot be read.
pub(crate) fn inputs(config: &RunConfig, files: &FileHashes) -> Result<String> {
    let mut parts = vec![config.to_toml()];
    let mut named: Vec<&Path> = config.data.path.iter().map(PathBuf::as_path).collect();
    named.extend(config.data.decontaminate.iter().map(PathBuf::as_path));
    let mut folders = vec![config.model.path.as_path(), config.generate_model()];
    if let Some(generate) = &config.generate {
        named.extend([&*generate.draft_prompt, &*generate.verify_prompt]);
    }
    if let Some(train) = &config.train {
        folders.push(&train.lora_adapter);
    }
    if let Some(distill) = &config.distill {
        folders.push(&distill.teacher);
    }
    if let Some(export) = &config.export {
        folders.push(&export.checkpoint);
    }
    for path in named {
        // A data set of the Hub is named by its revision, which is part of the config.
        if !path.as_os_str().is_empty() && HubDataset::named_by(path).is_none() {
            parts.push(files.of(path)?);
        }
    }
    for folder in folders {
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let file = entry.metadata().ok()?;
                Some(format!(
                    "{} {} {:?}",
                    entry.file_name().to_string_lossy(),
                    file.len(),
                    file.modified().ok()?
                ))
            })
            .collect();
        files.sort();
        parts.extend(files);
    }
    Ok(hash_bytes(parts.join("\n").as_bytes()))
}

/// One word of a command line, whatever is in it.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
