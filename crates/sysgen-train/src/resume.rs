//! Which checkpoint a run goes on from or exports, and what it takes over from it under settings that may have changed since.
//!
//! [`crate::identity`] refuses a change of what is computed. The settings it lets pass say which model is best and when to
//! stop; what a checkpoint noted of these was noted under the settings of then.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::config::TrainSection;

use crate::checkpoint::{self, Checkpoint, Progress};
use crate::identity::{Identity, differences, identity};
use crate::watch::Best;

impl Progress {
    /// Goes on under `train`: evaluations by another metric are forgotten, patience is asked anew, and so is whether the best
    /// model can be had. `is_saved` says of a step whether it has a checkpoint, `total_steps` where the run ends.
    ///
    /// # Errors
    /// Nothing is left to train, and the best model was not kept.
    pub fn gone_on_with(
        mut self,
        train: &TrainSection,
        total_steps: usize,
        is_saved: impl Fn(usize) -> bool,
    ) -> Result<Progress> {
        let metric = train.metric_for_best_model;
        if self.best.metric != metric {
            if self.best.value.is_some() {
                tracing::warn!(
                    "train.metric_for_best_model was another one until step {}: the best model is one of those to come",
                    self.step
                );
            }
            self.best = Best::of(metric);
        }
        self.stopped_early = self.best.is_exhausted(train);
        let best = self.best.step;
        if train.load_best_model_at_end && best > 0 && best != self.step && !is_saved(best) {
            if self.stopped_early || self.step >= total_steps {
                bail!(
                    "train.load_best_model_at_end wants checkpoint-{best}, the best evaluation, which is not there: it was \
                     removed, or never saved because the key was false then; set it to false for the last model"
                );
            }
            tracing::warn!(
                "train.load_best_model_at_end: there is no checkpoint-{best}, the best evaluation until step {}; the best model \
                 is one of those to come",
                self.step
            );
            self.best = Best::of(metric);
        }
        Ok(self)
    }
}

/// The checkpoint of a step, which the best model is taken from.
pub(crate) fn checkpoint_of(output_dir: &Path, step: usize) -> Result<Checkpoint> {
    let found = checkpoint::find(output_dir)?.complete;
    let of_step = |found: &Checkpoint| found.state.progress.step == step;
    found.into_iter().find(of_step).with_context(|| {
        format!("train.load_best_model_at_end wants checkpoint-{step}, which is gone; set it to false, or train again")
    })
}

/// The checkpoint that is exported where none is named, if there is one: the newest, or that of the best evaluation with
/// `train.load_best_model_at_end`.
///
/// # Errors
/// The folder cannot be read, or the best checkpoint is gone.
pub fn checkpoint_to_export(config: &RunConfig) -> Result<Option<Checkpoint>> {
    let found = checkpoint::find(&config.output_dir)?.complete;
    let Some(newest) = found.into_iter().next_back() else {
        return Ok(None);
    };
    let takes_best = |train: &TrainSection| train.load_best_model_at_end;
    let (last, best) = {
        let progress = &newest.state.progress;
        (progress.step, progress.best.step)
    };
    if config.train.as_ref().is_some_and(takes_best) && best > 0 && best != last {
        return checkpoint_of(&config.output_dir, best).map(Some);
    }
    Ok(Some(newest))
}

/// What of a run's identity its weights mean nothing without.
const OF_THE_MODEL: [&str; 4] = [
    "model.path",
    "model.init",
    "model files",
    "tokenizer and chat template",
];

/// Whether the model and the texts of this config are those that the checkpoint was trained with: an adapter fits beside any
/// model of the same shape, and weights know no template.
///
/// # Errors
/// What has changed since, or the model's folder cannot be read.
pub fn refuse_other_model(checkpoint: &Checkpoint, config: &RunConfig, chat: &Chat) -> Result<()> {
    let model = RunConfig {
        model: config.model.clone(),
        ..RunConfig::default()
    };
    let of_the_model = |mut identity: Identity| {
        identity.retain(|key, _| OF_THE_MODEL.contains(&key.as_str()));
        identity
    };
    let was = of_the_model(checkpoint.state.identity.clone());
    let is = of_the_model(identity(&model, chat, &[], &[], None)?);
    let changes = differences(&was, &is);
    if !changes.is_empty() {
        bail!(
            "{} was trained with another model or other texts: {}; put [model] back as it was, or name another export.checkpoint",
            checkpoint.path.display(),
            changes.join("; ")
        );
    }
    Ok(())
}

/// The checkpoint this run goes on from, if there is one. Says which ones are passed over.
///
/// # Errors
/// When the folder holds checkpoints of another run; the message says what differs.
pub fn checkpoint_to_resume(output_dir: &Path, identity: &Identity) -> Result<Option<Checkpoint>> {
    let found = checkpoint::find(output_dir)?;
    for (path, reason) in &found.incomplete {
        tracing::warn!(
            "{} is not complete and is ignored: {reason}",
            path.display()
        );
    }
    let Some(newest) = found.complete.into_iter().next_back() else {
        return Ok(None);
    };
    let changes = differences(&newest.state.identity, identity);
    if !changes.is_empty() {
        bail!(
            "{} belongs to another run: {}; set another output_dir, or remove this one to start again",
            newest.path.display(),
            changes.join("; ")
        );
    }
    Ok(Some(newest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sysgen_core::config::BestMetric;

    fn stopped(best: usize, evaluations_since: usize) -> Progress {
        Progress {
            step: 8,
            stopped_early: true,
            best: Best {
                step: best,
                value: Some(2.1),
                evaluations_since,
                ..Best::default()
            },
            ..Progress::default()
        }
    }

    #[test]
    fn patience_is_asked_anew() {
        let with = |early_stopping_patience| TrainSection {
            early_stopping_patience,
            ..TrainSection::default()
        };
        for (patience, ends) in [(0, false), (2, true), (3, true), (4, false)] {
            let found = stopped(5, 3)
                .gone_on_with(&with(patience), 20, |_| true)
                .unwrap();
            assert_eq!(found.stopped_early, ends, "patience {patience}");
            assert_eq!(found.best, stopped(5, 3).best);
        }
    }

    #[test]
    fn another_metric_starts_anew() {
        let train = TrainSection {
            metric_for_best_model: BestMetric::Obedience,
            early_stopping_patience: 3,
            ..TrainSection::default()
        };
        let mut found = stopped(5, 3).gone_on_with(&train, 20, |_| true).unwrap();
        assert!(!found.stopped_early);
        assert_eq!(found.best, Best::of(BestMetric::Obedience));
        // A share of 0.4 is not held against a loss of 2.1.
        assert!(found.best.add(9, 0.4, 0.0));
    }

    #[test]
    fn a_best_model_that_was_not_kept_is_forgotten_or_wanted_before_the_first_step() {
        let train = TrainSection {
            load_best_model_at_end: true,
            ..TrainSection::default()
        };
        let go_on = |total_steps, kept: usize| {
            stopped(5, 3).gone_on_with(&train, total_steps, |step| step == kept)
        };
        assert_eq!(go_on(20, 5).unwrap().best.step, 5);
        assert_eq!(go_on(20, 8).unwrap().best, Best::default());
        let error = go_on(8, 8).unwrap_err().to_string();
        assert!(error.contains("wants checkpoint-5"), "{error}");
        // The model of the newest checkpoint is the one that is loaded.
        assert!(stopped(8, 0).gone_on_with(&train, 8, |_| false).is_ok());
    }
}
