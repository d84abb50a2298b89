//! What is watched while a run goes on: losses that jump, and the best evaluation so far.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sysgen_core::config::TrainSection;

/// Losses that a new one is held against.
const WINDOW: usize = 50;
/// So many are needed before a jump can be told from the noise of the start.
const LEAST: usize = 20;
/// Standard deviations above the mean that are a spike.
const SPIKE: f64 = 5.0;

/// Tells a loss that is far above the last ones.
#[derive(Clone, Debug, Default)]
pub struct LossWatch {
    recent: VecDeque<f64>,
}

impl LossWatch {
    /// Adds a step's loss; its distance from the mean of the last fifty, in their standard deviations, if that is a spike.
    pub fn add(&mut self, loss: f64) -> Option<f64> {
        let count = self.recent.len() as f64;
        let mean = self.recent.iter().sum::<f64>() / count;
        let square = |x: &f64| (x - mean) * (x - mean);
        let variance = self.recent.iter().map(square).sum::<f64>() / count;
        let score = (loss - mean) / variance.sqrt().max(1e-12);
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

/// The best evaluation of a run, and how long ago it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Best {
    /// The step it was made after; 0 before the first.
    pub step: usize,
    /// Its value.
    pub value: Option<f64>,
    /// Evaluations since then.
    pub evaluations_since: usize,
}

impl Best {
    /// Takes the next evaluation. True when it is the best so far, by more than `early_stopping_threshold`.
    pub fn add(&mut self, step: usize, value: f64, higher_is_better: bool, threshold: f64) -> bool {
        let gain = |best: f64| {
            if higher_is_better {
                value - best
            } else {
                best - value
            }
        };
        let better = value.is_finite() && self.value.is_none_or(|best| gain(best) > threshold);
        if better {
            *self = Best {
                step,
                value: Some(value),
                evaluations_since: 0,
            };
        } else {
            self.evaluations_since += 1;
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
        let mut young = LossWatch::default();
        assert_eq!([1.0, 1.1, 9.0].map(|loss| young.add(loss)), [None; 3]);
    }

    #[test]
    fn patience_counts_evaluations_without_enough_gain() {
        let train = TrainSection {
            early_stopping_patience: 2,
            ..TrainSection::default()
        };
        let mut best = Best::default();
        assert!(best.add(10, 1.0, false, 0.1));
        assert!(!best.add(20, 0.95, false, 0.1) && !best.is_exhausted(&train));
        assert!(!best.add(30, f64::NAN, false, 0.1) && best.is_exhausted(&train));
        assert!(best.add(40, 0.8, false, 0.1) && !best.is_exhausted(&train));
        assert_eq!((best.step, best.value), (40, Some(0.8)));
        assert!(Best::default().add(1, 0.3, true, 0.0));
    }
}
