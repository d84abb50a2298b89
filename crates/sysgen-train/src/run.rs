//! A training run from its first step, or from its last checkpoint, to its end.
//!
//! What it is given is checked already (see [`crate::check`]); what comes out is a trained model and a folder with
//! `metrics.jsonl` and checkpoints.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sysgen_chat::Chat;
use sysgen_core::config::{BestMetric, ReportTo, SaveStrategy, TrainSection};
use sysgen_core::measure::process_seconds;
use sysgen_core::{RunConfig, interrupt};
use sysgen_model::{Decoder, Device};
use sysgen_ops::AdamW;

use crate::batch::Batch;
use crate::checkpoint::{self, Checkpoint, Progress};
use crate::example::Example;
use crate::identity::Identity;
use crate::journal::{Journal, mean_of_last_losses};
use crate::method;
use crate::metrics::Line;
use crate::on_policy::{self, Write, is_on_policy};
use crate::optim::Optimizer;
use crate::order::{DataOrder, OrderSettings};
use crate::pack::best_fit;
use crate::resume::checkpoint_of;
use crate::row_losses::StepRows;
use crate::schedule::Schedule;
use crate::show::Show;
use crate::trainer::Trainer;

/// What a run works on.
pub struct Run<'a> {
    /// The whole configuration; its `[train]` is `train`.
    pub config: &'a RunConfig,
    /// The settings of training.
    pub train: &'a TrainSection,
    /// Tokenizer and template, saved with each checkpoint.
    pub chat: &'a Chat,
    /// What is learnt.
    pub examples: &'a [Example],
    /// What is only measured.
    pub held_out: &'a [Batch],
    /// What makes this run itself.
    pub identity: &'a Identity,
    /// Looks at the model at each evaluation, after so many steps.
    pub observe: Option<Observe<'a>>,
    /// Has the student answer, where `[distill]` asks for it.
    pub write: Option<Write<'a>>,
}

/// Looks at a model after so many steps.
pub type Observe<'a> = &'a dyn Fn(&Decoder, usize) -> Result<Observed>;

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observed {
    /// The share of fixed system messages that the model obeyed, if it was asked.
    pub obedience: Option<f64>,
}

/// How a run ended.
pub enum Outcome {
    /// All steps are done.
    Finished(Box<Finished>),
    /// A signal stopped it; the same command goes on from this checkpoint.
    Interrupted(PathBuf),
}

/// A finished run.
pub struct Finished {
    /// The trained model, on the plain device.
    pub decoder: Decoder,
    /// Where the run ended.
    pub progress: Progress,
    /// Mean loss of the last logged steps.
    pub train_loss: Option<f64>,
    /// Mean loss of the held-out rows before the first step.
    pub held_out_before: Option<f64>,
    /// Mean loss of the held-out rows after the last step.
    pub held_out_after: Option<f64>,
    /// The step whose model this is, where it is not the last one.
    pub best_step: Option<usize>,
    /// Seconds from the program's start to the beginning of its first step, where it made one.
    pub start_to_first_step_seconds: Option<f64>,
}

impl Run<'_> {
    /// The order in which the examples are trained on.
    pub fn order(&self) -> DataOrder {
        order(self.config, self.train, self.examples)
    }

    fn optimizer_settings(&self) -> AdamW {
        AdamW {
            learning_rate: self.train.learning_rate,
            beta1: self.train.adam_beta1,
            beta2: self.train.adam_beta2,
            epsilon: self.train.adam_epsilon,
            weight_decay: self.train.weight_decay,
            rounding_seed: 0,
        }
    }

    /// A trainer at step 0 of this model.
    pub fn start(&self, decoder: Decoder) -> Trainer {
        let optimizer = Optimizer::of(
            self.train.optim,
            &decoder.trainable(),
            self.optimizer_settings(),
        );
        self.set_up(Trainer::new(decoder, optimizer, self.train.max_grad_norm))
    }

    fn set_up(&self, mut trainer: Trainer) -> Trainer {
        trainer.gradient_checkpointing = self.train.gradient_checkpointing;
        trainer.optimizer_in_backward = self.train.optimizer_in_backward;
        trainer.seed = self.config.seed;
        trainer.optimizer.seed = self.config.seed;
        trainer
    }

    /// A trainer as it was when the checkpoint was saved.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub fn resume(&self, checkpoint: &Checkpoint, device: &Device) -> Result<Trainer> {
        let trainer = checkpoint::load(
            checkpoint,
            self.train.optim,
            self.optimizer_settings(),
            self.train.max_grad_norm,
            device,
            || method::load_base(self.config, device),
        )?;
        Ok(self.set_up(trainer))
    }

    /// Trains from `progress` to the end, or until a signal, or until `stop_after` steps are done (a test's kill).
    ///
    /// # Errors
    /// When too many steps were not finite, or a file cannot be written.
    pub fn train(
        &self,
        mut trainer: Trainer,
        mut progress: Progress,
        stop_after: Option<usize>,
    ) -> Result<Outcome> {
        let train = self.train;
        let mut order = self.order();
        let total_steps = order.total_steps();
        progress = progress.gone_on_with(train, total_steps, |step| {
            checkpoint_of(&self.config.output_dir, step).is_ok()
        })?;
        let mut journal = self.journal(progress.step)?;
        let schedule = Schedule {
            peak: train.learning_rate,
            warmup_steps: train.warmup_steps,
            total_steps,
            decay: train.lr_scheduler_type,
        };
        let show = Show::steps(total_steps, progress.step);
        if progress.step == 0 {
            let mut line = Line::default();
            self.or_go_on_later(self.evaluate(&mut trainer, &mut line), &progress)?;
            if let Some(eval_loss) = line.eval_loss {
                tracing::info!("held-out loss before training: {eval_loss:.4}");
            }
            if line.eval_loss.is_some() || line.obedience.is_some() {
                self.or_go_on_later(journal.add(&line), &progress)?;
            }
        }
        let mut first_step = None;
        while progress.step < total_steps && !progress.stopped_early {
            let started = Instant::now();
            first_step = first_step.or_else(process_seconds);
            let rows = order.step(progress.step);
            let on_policy = self.is_on_policy(progress.step);
            let batches = match on_policy {
                true => self.written(trainer.decoder(), progress.step, &rows)?,
                false => rows
                    .iter()
                    .map(|rows| Batch::new(self.examples, rows, self.chat.pad_id()))
                    .collect(),
            };
            let learning_rate = schedule.learning_rate(progress.step);
            let report = trainer.step(&batches, learning_rate);
            let seconds = started.elapsed().as_secs_f64();
            progress.step += 1;
            progress.updates = trainer.optimizer.updates;
            progress.num_tokens += report.tokens as u64;
            progress.supervised_tokens += report.supervised_tokens as u64;
            progress.seconds += seconds;
            let mut line = Line {
                step: progress.step,
                epoch: order.epoch_after(progress.step),
                loss: report.loss.is_finite().then_some(report.loss),
                learning_rate: Some(learning_rate),
                grad_norm: report.grad_norm.is_finite().then_some(report.grad_norm),
                num_tokens: progress.num_tokens,
                supervised_tokens: Some(report.supervised_tokens),
                supervised_share: Some(
                    report.supervised_tokens as f64 / report.tokens.max(1) as f64,
                ),
                tokens_per_second: Some(report.tokens as f64 / seconds),
                supervised_tokens_per_second: Some(report.supervised_tokens as f64 / seconds),
                seconds: progress.seconds,
                on_policy: on_policy.then_some(true),
                ..Line::default()
            };
            if !report.applied {
                progress.nonfinite_steps += 1;
                line.skipped_rows = Some(
                    batches
                        .iter()
                        .flat_map(|batch| batch.row_ids.clone())
                        .collect(),
                );
            }
            if report.partly_applied {
                self.refuse_a_torn_step(&batches, &progress)?;
            }
            let step_rows = StepRows {
                step: progress.step,
                rows: batches
                    .iter()
                    .flat_map(|batch| batch.row_ids.clone())
                    .collect(),
                losses: report.row_losses,
                supervised_tokens: batches.iter().flat_map(|b| b.row_targets.clone()).collect(),
            };
            let spike_rows = journal.add_rows(&step_rows, report.loss, on_policy);
            line.spike_rows = self.or_go_on_later(spike_rows, &progress)?;
            let every = |steps: usize| steps > 0 && progress.step.is_multiple_of(steps);
            let mut improved = false;
            if every(train.eval_steps) || progress.step == total_steps {
                self.or_go_on_later(self.evaluate(&mut trainer, &mut line), &progress)?;
                improved = self.compare(&line, &mut progress);
            }
            let last = progress.step == total_steps || progress.stopped_early;
            let every = |steps: usize| steps > 0 && progress.step.is_multiple_of(steps);
            if every(train.logging_steps.max(1))
                || last
                || line.eval_loss.is_some()
                || line.obedience.is_some()
                || line.spike_rows.is_some()
                || line.skipped_rows.is_some()
            {
                self.or_go_on_later(journal.add(&line), &progress)?;
            }
            show.step(&line);
            let too_many = self.too_many_nonfinite_steps(&line, &progress);
            let stop = interrupt::requested() || stop_after == Some(progress.step);
            let best = improved && train.load_best_model_at_end;
            let saves = match train.save_strategy {
                SaveStrategy::Steps => every(train.save_steps),
                SaveStrategy::Epoch => order.ends_epoch(progress.step),
            };
            if last || stop || best || saves || too_many.is_some() {
                let saved = journal.sync().and_then(|()| self.save(&trainer, &progress));
                let saved = self.or_go_on_later(saved, &progress)?;
                show.saved(&saved);
                if let Some(why) = too_many {
                    bail!(
                        "{why}. Skipped steps change no weight: {} is whole; raise train.max_nonfinite_steps to go on from there",
                        saved.display()
                    );
                }
                if stop && !last {
                    return Ok(Outcome::Interrupted(saved));
                }
            }
        }
        show.finish();
        let lines = journal.lines()?;
        let best = (train.load_best_model_at_end && progress.best.step > 0)
            .then_some(progress.best.step)
            .filter(|&step| step != progress.step);
        let decoder = match best {
            Some(step) => {
                tracing::info!("the best evaluation was after step {step}; its model is taken");
                let device = trainer.decoder().device();
                drop(trainer);
                let best = checkpoint_of(&self.config.output_dir, step)?;
                checkpoint::load_decoder(&best, &device, || {
                    method::load_base(self.config, &device)
                })?
            }
            None => trainer.into_decoder(),
        };
        let evaluated = |line: &&Line| match best {
            Some(step) => line.step == step,
            None => true,
        };
        Ok(Outcome::Finished(Box::new(Finished {
            decoder,
            progress,
            train_loss: mean_of_last_losses(&lines),
            held_out_before: lines
                .first()
                .filter(|line| line.step == 0)
                .and_then(|line| line.eval_loss),
            held_out_after: (lines.iter().rev().find(evaluated)).and_then(|line| line.eval_loss),
            best_step: best,
            start_to_first_step_seconds: first_step,
        })))
    }

    /// What is written down of the run, up to the step it goes on from.
    fn journal(&self, done: usize) -> Result<Journal> {
        let tensorboard = self.train.report_to.contains(&ReportTo::Tensorboard);
        Journal::open(&self.config.output_dir, done, tensorboard, |step| {
            self.is_on_policy(step)
        })
    }

    fn is_on_policy(&self, step: usize) -> bool {
        is_on_policy(self.config.distill.as_ref(), self.config.seed, step)
    }

    /// The micro-batches of a step whose answers the student writes.
    fn written(
        &self,
        decoder: &Decoder,
        step: usize,
        rows: &[Vec<Vec<usize>>],
    ) -> Result<Vec<Batch>> {
        let asked: Vec<&Example> = rows
            .iter()
            .flatten()
            .flatten()
            .map(|&example| &self.examples[example])
            .collect();
        let (Some(write), Some(distill)) = (self.write, &self.config.distill) else {
            bail!("distill.on_policy needs a program that can answer");
        };
        let stream = [self.config.seed, step as u64];
        let pad_id = self.chat.pad_id();
        on_policy::batches(decoder, write, distill, self.train, stream, &asked, pad_id)
            .with_context(|| format!("the student writes the answers of step {}", step + 1))
    }

    /// Measures the model as it is, into `line`.
    fn evaluate(&self, trainer: &mut Trainer, line: &mut Line) -> Result<()> {
        if !self.held_out.is_empty() {
            line.eval_loss = Some(trainer.mean_loss(self.held_out));
        }
        if let Some(observe) = self.observe {
            line.obedience = observe(trainer.decoder(), line.step)?.obedience;
        }
        Ok(())
    }

    /// Holds an evaluation against the best one. True when it is better.
    fn compare(&self, line: &Line, progress: &mut Progress) -> bool {
        let train = self.train;
        let value = match train.metric_for_best_model {
            BestMetric::EvalLoss => line.eval_loss,
            BestMetric::Obedience => line.obedience,
        };
        let Some(value) = value else { return false };
        let threshold = train.early_stopping_threshold;
        let improved = progress.best.add(line.step, value, threshold);
        if progress.best.is_exhausted(train) {
            progress.stopped_early = true;
            tracing::info!(
                "stopped early: {} evaluations were not enough better than the best before them, which is that after step {}",
                progress.best.evaluations_since,
                progress.best.step
            );
        }
        improved
    }

    fn save(&self, trainer: &Trainer, progress: &Progress) -> Result<PathBuf> {
        let output_dir = &self.config.output_dir;
        let effective_config = self.config.to_toml();
        let saved = checkpoint::save(
            output_dir,
            &self.config.model.path,
            trainer,
            self.chat,
            progress,
            self.identity,
            &effective_config,
        )?;
        let keep = self.train.save_total_limit;
        checkpoint::remove_oldest(output_dir, keep, progress.best.step)?;
        Ok(saved)
    }

    fn newest_checkpoint(&self) -> Option<PathBuf> {
        let found = checkpoint::find(&self.config.output_dir).ok()?.complete;
        found.into_iter().next_back().map(|newest| newest.path)
    }

    /// What was done at a step, or why training ends there and what is safe.
    fn or_go_on_later<T>(&self, done: Result<T>, progress: &Progress) -> Result<T> {
        done.with_context(|| {
            let step = progress.step;
            match self.newest_checkpoint() {
                Some(path) => format!(
                    "training stops at step {step}; {} is whole, and the same command goes on from there",
                    path.display()
                ),
                None => format!(
                    "training stops at step {step}; there is no earlier checkpoint, the same command starts again"
                ),
            }
        })
    }

    /// Part of the weights had been updated when a gradient turned out not to be finite.
    fn refuse_a_torn_step(&self, batches: &[Batch], progress: &Progress) -> Result<()> {
        let rows = batches.iter().flat_map(|batch| batch.row_ids.clone());
        let from = match self.newest_checkpoint() {
            Some(path) => format!("{} is whole", path.display()),
            None => "there is no checkpoint yet".to_string(),
        };
        bail!(
            "stopped: at step {} a gradient is not finite, and with train.optimizer_in_backward part of the weights had been \
             updated before it was known; nothing of this step is saved, {from}. Rows: {}. Lower train.learning_rate, look at \
             these rows, or set optimizer_in_backward = false, which skips such steps",
            progress.step,
            rows.collect::<Vec<_>>().join(", ")
        )
    }

    /// Says that a step was skipped; that the run has to stop, where it was one too many.
    fn too_many_nonfinite_steps(&self, line: &Line, progress: &Progress) -> Option<String> {
        let rows = line.skipped_rows.as_ref()?;
        let what = match line.loss {
            None => "the loss",
            Some(_) => "the gradient",
        };
        let rows = rows.join(", ");
        tracing::warn!(
            "step {}: {what} is not finite; the step is skipped. Rows: {rows}",
            line.step
        );
        (progress.nonfinite_steps >= self.train.max_nonfinite_steps.max(1)).then(|| {
            format!(
                "stopped: {} steps had a loss or gradient that is not finite (train.max_nonfinite_steps = {}), the last one \
                 at step {} with the rows {rows}; lower train.learning_rate, or look at these rows",
                progress.nonfinite_steps, self.train.max_nonfinite_steps, line.step
            )
        })
    }
}

/// The order in which `config` has these examples trained on.
pub fn order(config: &RunConfig, train: &TrainSection, examples: &[Example]) -> DataOrder {
    let settings = OrderSettings {
        capacity: train.max_length,
        packing: train.packing,
        rows_per_batch: train.per_device_train_batch_size,
        batches_per_step: train.micro_batches(),
        epochs: train.num_train_epochs,
        max_steps: train.max_steps,
        weights: config.data.weights.clone(),
        seed: config.seed,
    };
    DataOrder::new(examples, settings)
}

/// The held-out rows as batches for [`Trainer::mean_loss`], packed like the training rows.
pub fn held_out_batches(examples: &[Example], train: &TrainSection, pad_id: u32) -> Vec<Batch> {
    let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
    let order: Vec<usize> = (0..examples.len()).collect();
    let rows = best_fit(&lengths, &order, train.max_length);
    rows.chunks(train.per_device_train_batch_size)
        .map(|rows| Batch::new(examples, rows, pad_id))
        .collect()
}
