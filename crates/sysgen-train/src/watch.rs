//! What is watched while a run goes on: losses that jump, and the best evaluation so far.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sysgen_core::config::{BestMetric, TrainSection};

/// Losses that a new one is held against: few enough that a straight line goes through them also where they fall steeply.
const WINDOW: usize = 25;
/// So many are needed before a jump can be told from the noise of the start.
const LEAST: usize = 20;
/// Standard deviations above the line that are a spike. Of 25 losses the deviation is known roughly: normal noise is taken for
/// a spike twice in a million steps.
const SPIKE: f64 = 6.0;
/// The deviation is never taken to be smaller than this share of the mean: losses that hardly move make no spike of a trifle.
const LEAST_DEVIATION: f64 = 0.01;

/// Tells a loss that is far above the last ones.
#[derive(Clone, Debug, Default)]
pub struct LossWatch {
    recent: VecDeque<f64>,
}

impl LossWatch {
    /// Adds a step's loss; how far it is above the straight line through the last ones, in their standard deviations around it, if
    /// that is a spike.
    pub fn add(&mut self, loss: f64) -> Option<f64> {
        // Least squares: loss = mean + slope · (place − middle).
        let count = self.recent.len() as f64;
        let middle = (count - 1.0) / 2.0;
        let mean = self.recent.iter().sum::<f64>() / count;
        let places = || (0..self.recent.len()).map(|place| place as f64 - middle);
        let products = places()
            .zip(&self.recent)
            .map(|(place, loss)| place * (loss - mean));
        let slope = products.sum::<f64>() / places().map(|place| place * place).sum::<f64>();
        let rests = places()
            .zip(&self.recent)
            .map(|(place, loss)| loss - mean - slope * place);
        let deviation = (rests.map(|rest| rest * rest).sum::<f64>() / count).sqrt();
        let expected = mean + slope * (count - middle);
        let score = (loss - expected) / deviation.max(LEAST_DEVIATION * mean.abs());
        let spike = self.recent.len() >= LEAST && score > SPIKE;
        if loss.is_finite() {
            self.recent.push_back(loss);
            if self.recent.len() > WINDOW {
                self.recent.pop_front();
            }
        }
        spike.then_some(score)
    }
}

/// The best evaluation of a run, and how long none was good enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Best {
    /// The step it was made after; 0 before the first.
    pub step: usize,
    /// Its value.
    pub value: Option<f64>,
    /// What the values are of.
    pub metric: BestMetric,
    /// Evaluations since the last one that beat the best before it by more than `early_stopping_threshold`.
    pub evaluations_since: usize,
}

impl Best {
    /// Before the first evaluation by this metric.
    pub fn of(metric: BestMetric) -> Best {
        Best {
            metric,
            ..Best::default()
        }
    }

    /// Takes the next evaluation. True when it is the best so far; the threshold is for patience alone, as in `transformers`
    /// (`EarlyStoppingCallback`).
    pub fn add(&mut self, step: usize, value: f64, threshold: f64) -> bool {
        let gain = |best: f64| match self.metric {
            BestMetric::EvalLoss => best - value,
            BestMetric::Obedience => value - best,
        };
        let gain = self.value.map_or(f64::INFINITY, gain);
        let better = value.is_finite() && gain > 0.0;
        self.evaluations_since = match value.is_finite() && gain > threshold {
            true => 0,
            false => self.evaluations_since + 1,
        };
        if better {
            (self.step, self.value) = (step, Some(value));
        }
        better
    }

    /// Whether `train` has had enough.
    pub fn is_exhausted(&self, train: &TrainSection) -> bool {
        let patience = train.early_stopping_patience;
        patience > 0 && self.evaluations_since >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_a_spike_and_noise_is_not() {
        let mut watch = LossWatch::default();
        for step in 0..60 {
            let loss = 2.0 - 0.01 * f64::from(step) + 0.05 * f64::from(step % 3);
            assert_eq!(watch.add(loss), None, "step {step}");
        }
        assert!(watch.add(4.0).is_some_and(|score| score > SPIKE));
        assert_eq!(watch.add(f64::NAN), None);
        // Also while the loss still falls steeply.
        let mut falling = LossWatch::default();
        for step in 0..40 {
            assert_eq!(falling.add(6.0 * 0.94f64.powi(step)), None, "step {step}");
        }
        assert!(falling.add(3.0).is_some());
        let mut young = LossWatch::default();
        assert_eq!([1.0, 1.1, 9.0].map(|loss| young.add(loss)), [None; 3]);
    }

    /// The counters and best values that `EarlyStoppingCallback` and `Trainer._determine_best_metric` of transformers 5 have
    /// after each of these values, with `early_stopping_threshold=0.1`.
    #[test]
    fn patience_wants_the_threshold_and_the_best_model_does_not() {
        let train = TrainSection {
            early_stopping_patience: 2,
            ..TrainSection::default()
        };
        let mut best = Best::of(BestMetric::EvalLoss);
        for (step, value, is_best, since) in [
            (10, 1.0, true, 0),
            (20, 0.95, true, 1),
            (30, f64::NAN, false, 2),
            (40, 0.87, true, 3),
            (50, 0.75, true, 0),
            (60, 0.8, false, 1),
        ] {
            assert_eq!(best.add(step, value, 0.1), is_best, "step {step}");
            assert_eq!(best.evaluations_since, since, "step {step}");
            assert_eq!(best.is_exhausted(&train), since >= 2);
        }
        assert_eq!((best.step, best.value), (50, Some(0.75)));
        let mut obeyed = Best::of(BestMetric::Obedience);
        assert!(obeyed.add(1, 0.3, 0.0) && obeyed.add(2, 0.4, 0.0) && !obeyed.add(3, 0.3, 0.0));
    }
}
