//! Which rows a step trains on: a pure function of the lengths, the seed and the step, so that the step number is the
//! whole data cursor of a checkpoint.

use crate::example::Example;
use crate::pack::epoch_rows;

/// The order of the training data.
#[derive(Clone, Debug)]
pub struct DataOrder {
    lengths: Vec<usize>,
    settings: OrderSettings,
    steps_per_epoch: usize,
    total_steps: usize,
    epoch: usize,
    rows: Vec<Vec<usize>>,
}

/// What the order depends on besides the lengths.
#[derive(Clone, Copy, Debug)]
pub struct OrderSettings {
    /// Tokens a packed row may have.
    pub capacity: usize,
    /// Whether conversations share rows.
    pub packing: bool,
    /// Packed rows in a micro-batch.
    pub rows_per_batch: usize,
    /// Micro-batches in an optimizer step.
    pub batches_per_step: usize,
    /// Passes over the data; ignored when `max_steps` is above 0.
    pub epochs: f64,
    /// Optimizer steps, or 0 to go by `epochs`.
    pub max_steps: usize,
    /// The run's seed.
    pub seed: u64,
}

impl DataOrder {
    /// The order of these examples.
    pub fn new(examples: &[Example], settings: OrderSettings) -> DataOrder {
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        let OrderSettings {
            capacity,
            packing,
            seed,
            ..
        } = settings;
        let rows = epoch_rows(&lengths, capacity, packing, seed, 0);
        let steps_per_epoch = rows
            .len()
            .div_ceil(settings.rows_per_batch * settings.batches_per_step);
        let total_steps = match settings.max_steps {
            0 => (settings.epochs * steps_per_epoch as f64).ceil() as usize,
            max_steps => max_steps,
        };
        DataOrder {
            lengths,
            settings,
            steps_per_epoch,
            total_steps,
            epoch: 0,
            rows,
        }
    }

    /// Optimizer steps in one pass over the data; the last of them may be smaller.
    pub fn steps_per_epoch(&self) -> usize {
        self.steps_per_epoch
    }

    /// Optimizer steps of the run.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// Packed rows in one pass over the data.
    pub fn rows_per_epoch(&self) -> usize {
        self.rows.len()
    }

    /// How far into the data a run is after `steps` steps, in epochs.
    pub fn epoch_after(&self, steps: usize) -> f64 {
        steps as f64 / self.steps_per_epoch.max(1) as f64
    }

    /// The micro-batches of `step` (counted from 0), each a list of rows, each a list of examples.
    pub fn step(&mut self, step: usize) -> Vec<Vec<Vec<usize>>> {
        let OrderSettings {
            capacity,
            packing,
            rows_per_batch,
            batches_per_step,
            seed,
            ..
        } = self.settings;
        let epoch = step / self.steps_per_epoch;
        if epoch != self.epoch {
            self.rows = epoch_rows(&self.lengths, capacity, packing, seed, epoch);
            self.epoch = epoch;
        }
        let rows_per_step = rows_per_batch * batches_per_step;
        let first = (step % self.steps_per_epoch) * rows_per_step;
        let last = (first + rows_per_step).min(self.rows.len());
        self.rows[first..last]
            .chunks(rows_per_batch)
            .map(<[_]>::to_vec)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(count: usize) -> Vec<Example> {
        (0..count)
            .map(|n| {
                let length = 2 + (n * 31) % 17;
                Example {
                    id: n.to_string(),
                    ids: vec![0; length],
                    learn: vec![true; length],
                }
            })
            .collect()
    }

    fn settings() -> OrderSettings {
        OrderSettings {
            capacity: 20,
            packing: true,
            rows_per_batch: 2,
            batches_per_step: 2,
            epochs: 2.5,
            max_steps: 0,
            seed: 3,
        }
    }

    #[test]
    fn an_epoch_sees_every_example_once() {
        let examples = examples(50);
        let mut order = DataOrder::new(&examples, settings());
        for epoch in 0..3 {
            let steps = epoch * order.steps_per_epoch()..(epoch + 1) * order.steps_per_epoch();
            let mut seen: Vec<usize> = steps
                .flat_map(|step| order.step(step))
                .flatten()
                .flatten()
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_epoch_has_its_own_order() {
        let mut order = DataOrder::new(&examples(50), settings());
        let second_epoch = order.steps_per_epoch();
        assert_ne!(order.step(0), order.step(second_epoch));
    }

    #[test]
    fn a_step_is_the_same_whether_reached_or_jumped_to() {
        let examples = examples(50);
        let mut walked = DataOrder::new(&examples, settings());
        let all: Vec<_> = (0..walked.total_steps())
            .map(|step| walked.step(step))
            .collect();
        for step in [17, 3, 9, 0, 11] {
            assert_eq!(DataOrder::new(&examples, settings()).step(step), all[step]);
        }
    }

    #[test]
    fn epochs_round_up_and_max_steps_wins() {
        let examples = examples(50);
        let order = DataOrder::new(&examples, settings());
        assert_eq!(
            order.total_steps(),
            (2.5 * order.steps_per_epoch() as f64).ceil() as usize
        );
        assert_eq!(
            DataOrder::new(
                &examples,
                OrderSettings {
                    max_steps: 7,
                    ..settings()
                }
            )
            .total_steps(),
            7
        );
    }
}
