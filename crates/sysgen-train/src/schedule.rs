//! The learning rate of every step, as `transformers.optimization` computes it.
//!
//! `step` counts from 0, and warm-up too: the first update of a warmed-up run has a learning rate of 0.

use std::f64::consts::PI;

use sysgen_core::config::LrScheduler;

/// A warm-up followed by a decay over a known number of steps.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The learning rate at the end of warm-up.
    pub peak: f64,
    /// Steps of linear warm-up from 0.
    pub warmup_steps: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// What follows warm-up.
    pub decay: LrScheduler,
}

impl Schedule {
    /// The learning rate of `step`, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let falling_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / falling_steps;
        match self.decay {
            LrScheduler::Cosine => self.peak * (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            LrScheduler::Linear => self.peak * (1.0 - progress).max(0.0),
            LrScheduler::Constant => self.peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `transformers` 5.23, `get_{cosine,linear,constant}_schedule_with_warmup(opt, 4, 20)` at lr 1e-3 and the closed forms of
    /// its `_get_*_schedule_with_warmup_lr_lambda`.
    #[test]
    fn the_rates_are_those_of_transformers() {
        let cases = [
            (LrScheduler::Cosine, 0, 0.0),
            (LrScheduler::Cosine, 3, 0.00075),
            (LrScheduler::Cosine, 4, 0.001),
            (LrScheduler::Cosine, 5, 0.0009903926402016153),
            (LrScheduler::Cosine, 12, 0.0005),
            (LrScheduler::Cosine, 19, 9.607359798384786e-06),
            (LrScheduler::Cosine, 20, 0.0),
            (LrScheduler::Linear, 2, 0.0005),
            (LrScheduler::Linear, 4, 0.001),
            (LrScheduler::Linear, 5, 0.0009375),
            (LrScheduler::Linear, 20, 0.0),
            (LrScheduler::Linear, 25, 0.0),
            (LrScheduler::Constant, 1, 0.00025),
            (LrScheduler::Constant, 19, 0.001),
        ];
        for (decay, step, expected) in cases {
            let schedule = Schedule {
                peak: 1e-3,
                warmup_steps: 4,
                total_steps: 20,
                decay,
            };
            let got = schedule.learning_rate(step);
            assert!(
                (got - expected).abs() < 1e-15,
                "{decay:?} step {step}: {got} instead of {expected}"
            );
        }
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        let schedule = Schedule {
            peak: 0.5,
            warmup_steps: 0,
            total_steps: 10,
            decay: LrScheduler::Cosine,
        };
        assert_eq!(schedule.learning_rate(0), 0.5);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_divides_by_zero() {
        let schedule = Schedule {
            peak: 1.0,
            warmup_steps: 8,
            total_steps: 4,
            decay: LrScheduler::Linear,
        };
        assert_eq!(schedule.learning_rate(4), 0.5);
        assert!(schedule.learning_rate(8).is_finite());
    }
}
