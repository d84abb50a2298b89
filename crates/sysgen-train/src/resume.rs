//! What a run takes over from the checkpoint it goes on from, under settings that may have changed since.
//!
//! [`crate::identity`] refuses a change of what is computed. The settings it lets pass say which model is best and when to
//! stop; what a checkpoint noted of these was noted under the settings of then.

use anyhow::{Result, bail};
use sysgen_core::config::TrainSection;

use crate::checkpoint::Progress;
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
