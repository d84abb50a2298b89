//! Which rows a step trains on: a pure function of the lengths, the seed and the step, so that the step number is the
//! whole data cursor of a checkpoint.

use crate::example::Example;
use crate::mix::Mix;
use crate::pack::epoch_rows;

/// The order of the training data.
#[derive(Clone, Debug)]
pub struct DataOrder {
    lengths: Vec<usize>,
    mix: Mix,
    settings: OrderSettings,
    /// The first step of each epoch met so far, and of the one after.
    starts: Vec<usize>,
    total_steps: usize,
    epoch: usize,
    rows: Vec<Vec<usize>>,
}

/// What the order depends on besides the lengths.
#[derive(Clone, Debug)]
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
    /// How often the examples of each data set are seen in an epoch; 1 where there is none.
    pub weights: Vec<f64>,
    /// The run's seed.
    pub seed: u64,
}

/// How full packed rows are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Utilisation {
    /// Rows of an epoch.
    pub rows: usize,
    /// Tokens in them, without padding.
    pub tokens: usize,
    /// Tokens by what the rows could hold.
    pub share: f64,
}

impl DataOrder {
    /// The order of these examples.
    pub fn new(examples: &[Example], settings: OrderSettings) -> DataOrder {
        let sets = examples.iter().map(|example| example.set);
        let mut order = DataOrder {
            lengths: examples.iter().map(|example| example.ids.len()).collect(),
            mix: Mix::new(sets, &settings.weights, settings.seed),
            settings,
            starts: vec![0],
            total_steps: 0,
            epoch: usize::MAX,
            rows: Vec::new(),
        };
        order.enter(0);
        order.total_steps = match order.settings.max_steps {
            0 => {
                let epochs = order.settings.epochs;
                let whole = epochs.floor() as usize;
                let before = order.start_of(whole);
                let last = order.start_of(whole + 1) - before;
                // As `transformers` has it: 2.2 · 5 is 11, while the fraction of 2.2 times 5 is a little more than 1.
                before + (epochs * last as f64).ceil() as usize - whole * last
            }
            max_steps => max_steps,
        };
        order.enter(0);
        order
    }

    /// Optimizer steps in the first pass over the data; the last of them may be smaller.
    pub fn steps_per_epoch(&self) -> usize {
        self.starts[1]
    }

    /// Optimizer steps of the run.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// How full the rows of the present epoch are.
    pub fn utilisation(&self) -> Utilisation {
        let tokens = self.rows.iter().flatten().map(|&e| self.lengths[e]).sum();
        let rows = self.rows.len();
        let room = (rows * self.settings.capacity).max(1);
        Utilisation {
            rows,
            tokens,
            share: tokens as f64 / room as f64,
        }
    }

    /// How far into the data a run is after `steps` steps, in epochs.
    pub fn epoch_after(&mut self, steps: usize) -> f64 {
        let epoch = self.epoch_of(steps);
        let (start, next) = (self.start_of(epoch), self.start_of(epoch + 1));
        epoch as f64 + (steps - start) as f64 / (next - start).max(1) as f64
    }

    /// Whether a pass over the data ends with these `steps` steps.
    pub fn ends_epoch(&mut self, steps: usize) -> bool {
        let epoch = self.epoch_of(steps);
        steps > 0 && self.start_of(epoch) == steps
    }

    /// The micro-batches of `step` (counted from 0), each a list of rows, each a list of examples.
    pub fn step(&mut self, step: usize) -> Vec<Vec<Vec<usize>>> {
        let epoch = self.epoch_of(step);
        let start = self.start_of(epoch);
        self.enter(epoch);
        let rows_per_batch = self.settings.rows_per_batch;
        let rows_per_step = rows_per_batch * self.settings.batches_per_step;
        let first = (step - start) * rows_per_step;
        let last = (first + rows_per_step).min(self.rows.len());
        self.rows[first..last]
            .chunks(rows_per_batch)
            .map(<[_]>::to_vec)
            .collect()
    }

    /// The epoch that `step` belongs to.
    fn epoch_of(&mut self, step: usize) -> usize {
        if self.mix.is_even() {
            return step / self.starts[1].max(1);
        }
        let mut epoch = 0;
        while self.start_of(epoch + 1) <= step {
            epoch += 1;
        }
        epoch
    }

    /// The first step of `epoch`. Where epochs differ in their examples, the ones before it have to be packed once.
    fn start_of(&mut self, epoch: usize) -> usize {
        if self.mix.is_even() && self.starts.len() > 1 {
            return epoch * self.starts[1];
        }
        while self.starts.len() <= epoch {
            self.enter(self.starts.len() - 1);
        }
        self.starts[epoch]
    }

    /// Packs `epoch`, and learns where the next one starts.
    fn enter(&mut self, epoch: usize) {
        let OrderSettings {
            capacity,
            packing,
            seed,
            ..
        } = self.settings;
        if epoch != self.epoch {
            let members = self.mix.members(epoch);
            self.rows = epoch_rows(&self.lengths, members, capacity, packing, seed, epoch);
            self.epoch = epoch;
        }
        if self.starts.len() == epoch + 1 {
            let rows_per_step = self.settings.rows_per_batch * self.settings.batches_per_step;
            let steps = self.rows.len().div_ceil(rows_per_step);
            self.starts.push(self.starts[epoch] + steps);
        }
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
                    set: n % 2,
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
            weights: Vec::new(),
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

    /// `math.ceil(num_train_epochs * num_update_steps_per_epoch)`, as in transformers.
    #[test]
    fn a_fraction_of_an_epoch_is_no_step_too_many() {
        let examples = examples(20);
        for (epochs, steps) in [
            (2.2, 11),
            (1.1, 6),
            (0.2, 1),
            (0.6, 3),
            (3.0, 15),
            (2.21, 12),
        ] {
            let settings = OrderSettings {
                packing: false,
                epochs,
                ..settings()
            };
            let order = DataOrder::new(&examples, settings);
            assert_eq!(order.steps_per_epoch(), 5);
            assert_eq!(order.total_steps(), steps, "{epochs} epochs");
        }
    }

    #[test]
    fn with_fractional_weights_a_step_is_still_the_same_whether_reached_or_jumped_to() {
        let examples = examples(61);
        let settings = OrderSettings {
            weights: vec![2.0, 0.3],
            epochs: 4.5,
            ..settings()
        };
        let mut walked = DataOrder::new(&examples, settings.clone());
        let steps = walked.total_steps();
        let all: Vec<_> = (0..steps).map(|step| walked.step(step)).collect();
        for step in [steps - 1, 3, steps / 2, 0] {
            assert_eq!(
                DataOrder::new(&examples, settings.clone()).step(step),
                all[step]
            );
        }
        assert!((walked.epoch_after(steps) - 4.5).abs() < 0.2);
        let seen = all.iter().flatten().flatten().flatten();
        let of_first = seen.filter(|&&example| example % 2 == 0).count();
        assert!((31 * 2 * 4..=31 * 2 * 5).contains(&of_first), "{of_first}");
    }

    #[test]
    fn packed_rows_waste_less_than_three_percent_where_conversations_are_short() {
        // Lengths like those of short questions with worked answers: a few hundred tokens, some twice that.
        let examples: Vec<Example> = (0..7473_usize)
            .map(|n| {
                let length = 90 + (n * 7919) % 211 + if n % 9 == 0 { (n * 31) % 400 } else { 0 };
                Example {
                    id: String::new(),
                    ids: vec![0; length],
                    learn: vec![true; length],
                    set: 0,
                }
            })
            .collect();
        let settings = OrderSettings {
            capacity: 2048,
            ..settings()
        };
        let utilisation = DataOrder::new(&examples, settings).utilisation();
        assert!(utilisation.share >= 0.97, "{utilisation:?}");
    }
}
