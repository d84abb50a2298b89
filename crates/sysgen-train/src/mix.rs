//! How often each example is seen in an epoch, where several data sets are mixed with weights.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sysgen_core::hash::seed_from;

/// The sets of examples and their weights.
#[derive(Clone, Debug)]
pub struct Mix {
    sets: Vec<Set>,
}

#[derive(Clone, Debug)]
struct Set {
    /// Its examples, in a fixed shuffled order.
    examples: Vec<usize>,
    weight: f64,
}

impl Mix {
    /// `set_of[example]` is the set of each example; the weights belong to sets 0, 1, …, and are 1 where there is none.
    pub fn new(set_of: impl IntoIterator<Item = usize>, weights: &[f64], seed: u64) -> Mix {
        let mut sets: Vec<Set> = Vec::new();
        for (example, set) in set_of.into_iter().enumerate() {
            while sets.len() <= set {
                let weight = weights.get(sets.len()).copied().unwrap_or(1.0);
                let examples = Vec::new();
                sets.push(Set { examples, weight });
            }
            sets[set].examples.push(example);
        }
        for (number, set) in sets.iter_mut().enumerate() {
            let name = ["mix", &seed.to_string(), &number.to_string()].map(String::from);
            let seed = seed_from(&[&name[0], &name[1], &name[2]]);
            set.examples.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        Mix { sets }
    }

    /// Every epoch has the same examples, so all have the same number of packed rows.
    pub fn is_even(&self) -> bool {
        self.sets.iter().all(|set| set.weight.fract() == 0.0)
    }

    /// The examples of an epoch, each as often as its set's weight says; ascending.
    ///
    /// A weight's fraction takes the next stretch of the set's shuffled examples, so that over the epochs all are seen
    /// equally often, but for one.
    pub fn members(&self, epoch: usize) -> Vec<usize> {
        let mut members = Vec::new();
        for set in &self.sets {
            for _ in 0..set.weight as usize {
                members.extend(&set.examples);
            }
            let count = set.examples.len();
            let part = (set.weight.fract() * count as f64).round() as usize;
            members.extend((0..part).map(|n| set.examples[(epoch * part + n) % count]));
        }
        members.sort_unstable();
        members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten examples of set 0, then thirty of set 1.
    fn mix(weights: &[f64]) -> Mix {
        Mix::new((0..40).map(|n| usize::from(n >= 10)), weights, 7)
    }

    fn seen(mix: &Mix, epochs: usize) -> Vec<usize> {
        let mut seen = vec![0; 40];
        for example in (0..epochs).flat_map(|epoch| mix.members(epoch)) {
            seen[example] += 1;
        }
        seen
    }

    #[test]
    fn without_weights_every_example_is_seen_once() {
        assert_eq!(mix(&[]).members(3), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn two_is_twice_an_epoch_and_half_is_every_other_epoch() {
        let mix = mix(&[2.0, 0.5]);
        let one = seen(&mix, 1);
        assert!(one[..10].iter().all(|&times| times == 2));
        assert_eq!(one[10..].iter().sum::<usize>(), 15);
        let two = seen(&mix, 2);
        assert!(two[..10].iter().all(|&times| times == 4));
        assert!(two[10..].iter().all(|&times| times == 1));
    }

    #[test]
    fn a_third_of_a_set_comes_round_evenly() {
        let mix = mix(&[1.0, 1.3]);
        let times = seen(&mix, 10);
        assert!(times[10..].iter().all(|&times| times == 13), "{times:?}");
        assert!(!mix.is_even());
    }
}
