//! Drawing one token from logits, in the order of vLLM's sampler: temperature, top-k, top-p, softmax,
//! draw. Probabilities are summed in f64 in a fixed order, and equal logits are ordered by id, so that a
//! seed always gives the same tokens.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::request::Sampling;

/// Draws the tokens of one request: one number of its random stream per token, none when greedy.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub id: u32,
    /// Its log-probability in nats by the model itself: before temperature, top-k and top-p.
    pub log_probability: f64,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    pub fn new(sampling: Sampling) -> Sampler {
        Sampler {
            sampling,
            random: ChaCha8Rng::seed_from_u64(sampling.seed),
        }
    }

    /// Draws from `logits`, one per id; `None` when they are empty, infinite or not numbers.
    pub fn draw(&mut self, logits: &[f32]) -> Option<Drawn> {
        let total = log_sum_exp(logits)?;
        let id = if self.sampling.temperature <= 0.0 {
            best(logits)
        } else {
            let uniform: f64 = self.random.random();
            self.pick(logits, uniform)
        };
        let log_probability = f64::from(logits[id]) - total;
        Some(Drawn {
            id: id as u32,
            log_probability,
        })
    }

    /// The id at `uniform` (from 0 to below 1) of the cumulative distribution.
    fn pick(&self, logits: &[f32], uniform: f64) -> usize {
        let Sampling {
            temperature,
            top_k,
            top_p,
            ..
        } = self.sampling;
        let max = f64::from(logits[best(logits)]);
        let temperature = f64::from(temperature);
        let weight = |id: usize| ((f64::from(logits[id]) - max) / temperature).exp();

        let limits_k = top_k > 0 && top_k < logits.len();
        if !limits_k && top_p >= 1.0 {
            let weights: Vec<f64> = (0..logits.len()).map(weight).collect();
            return at(weights.into_iter().enumerate(), uniform);
        }
        let mut kept = if limits_k {
            best_first(logits, top_k)
        } else {
            nucleus_candidates(logits, f64::from(top_p), weight)
        };
        if top_p < 1.0 {
            // What top-k left is the whole distribution here.
            let total: f64 = if limits_k {
                kept.iter().map(|&id| weight(id)).sum()
            } else {
                (0..logits.len()).map(weight).sum()
            };
            let mut before = 0.0;
            let count = kept
                .iter()
                .take_while(|&&id| {
                    let needed = before < f64::from(top_p) * total;
                    before += weight(id);
                    needed
                })
                .count();
            kept.truncate(count.max(1));
        }
        let weighted: Vec<(usize, f64)> = kept.into_iter().map(|id| (id, weight(id))).collect();
        at(weighted.into_iter(), uniform)
    }
}

/// log Σ exp(logit), in f64; `None` when the logits are empty, infinite or not numbers. A logit of minus
/// infinity is a token that cannot come, and allowed.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Option<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // `f32::max` passes over NaN, the sum does not.
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - f64::from(max)).exp())
        .sum();
    let total = f64::from(max) + sum.ln();
    total.is_finite().then_some(total)
}

/// The highest logit's id, the lowest of equals.
fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}

/// The ids of the `count` highest logits, the highest first, equals by id.
fn best_first(logits: &[f32], count: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| {
        let by_logit = logits[*b]
            .partial_cmp(&logits[*a])
            .unwrap_or(Ordering::Equal);
        by_logit.then(a.cmp(b))
    };
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Enough best ids, best first, to reach `top_p`. A nucleus is small: the whole vocabulary is ordered
/// only when it must be.
fn nucleus_candidates(logits: &[f32], top_p: f64, weight: impl Fn(usize) -> f64) -> Vec<usize> {
    let total: f64 = (0..logits.len()).map(&weight).sum();
    let mut count = 64;
    loop {
        let ids = best_first(logits, count);
        let reached: f64 = ids.iter().map(|&id| weight(id)).sum();
        if reached >= top_p * total || count >= logits.len() {
            return ids;
        }
        count *= 8;
    }
}

/// The first id whose cumulative weight exceeds `uniform` of the total.
fn at(weighted: impl Iterator<Item = (usize, f64)> + Clone, uniform: f64) -> usize {
    let total: f64 = weighted.clone().map(|(_, weight)| weight).sum();
    let mut cumulative = 0.0;
    let mut last = 0;
    for (id, weight) in weighted {
        cumulative += weight;
        if weight > 0.0 {
            last = id;
        }
        if cumulative > uniform * total {
            return id;
        }
    }
    last
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SAMPLING: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        max_tokens: 0,
        seed: 7,
    };

    /// 40 logits without order; the two highest are equal.
    fn logits() -> Vec<f32> {
        let mut logits: Vec<f32> = (0..40u32)
            .map(|i| ((i * 37 % 41) as f32 * 0.31).sin() * 2.0)
            .collect();
        logits[23] = 2.5;
        logits[11] = 2.5;
        logits
    }

    /// How often each id is drawn.
    fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.draw(logits).unwrap().id as usize] += 1;
        }
        counts
    }

    /// Softmax in the plainest form, of the ids that `keep` lets through.
    fn softmax(logits: &[f32], temperature: f64, keep: impl Fn(usize) -> bool) -> Vec<f64> {
        let exp: Vec<f64> = logits
            .iter()
            .enumerate()
            .map(|(id, &logit)| {
                if keep(id) {
                    (f64::from(logit) / temperature).exp()
                } else {
                    0.0
                }
            })
            .collect();
        let total: f64 = exp.iter().sum();
        exp.iter().map(|value| value / total).collect()
    }

    /// Pearson's statistic of `counts` stays below its mean plus six deviations, and nothing impossible
    /// is drawn.
    #[track_caller]
    fn assert_follows(counts: &[usize], expected: &[f64]) {
        let draws = counts.iter().sum::<usize>() as f64;
        let mut statistic = 0.0;
        let mut freedom = -1.0;
        for (&count, &probability) in counts.iter().zip(expected) {
            if probability == 0.0 {
                assert_eq!(count, 0, "drawn though impossible");
                continue;
            }
            let mean = probability * draws;
            statistic += (count as f64 - mean).powi(2) / mean;
            freedom += 1.0;
        }
        let bound = freedom + 6.0 * f64::sqrt(2.0 * freedom);
        assert!(statistic < bound, "{statistic} is not below {bound}");
    }

    #[test]
    fn greedy_takes_the_best_and_the_lowest_of_equals() {
        let mut sampler = Sampler::new(Sampling {
            temperature: 0.0,
            ..SAMPLING
        });
        assert_eq!(sampler.draw(&logits()).unwrap().id, 11);
        assert_eq!(sampler.draw(&[-1.0, 3.0, 2.0]).unwrap().id, 1);
    }

    #[test]
    fn top_k_of_one_and_a_tiny_top_p_are_greedy() {
        for seed in 0..50 {
            let one = Sampling {
                top_k: 1,
                seed,
                ..SAMPLING
            };
            assert_eq!(Sampler::new(one).draw(&logits()).unwrap().id, 11);
            let tiny = Sampling {
                top_p: 1e-6,
                seed,
                ..SAMPLING
            };
            assert_eq!(Sampler::new(tiny).draw(&logits()).unwrap().id, 11);
            let cold = Sampling {
                temperature: 1e-4,
                seed,
                ..SAMPLING
            };
            assert!([11, 23].contains(&Sampler::new(cold).draw(&logits()).unwrap().id));
        }
    }

    #[test]
    fn draws_follow_the_softmax_at_every_temperature() {
        let logits = logits();
        for temperature in [0.5f32, 1.0, 1.7] {
            let sampling = Sampling {
                temperature,
                ..SAMPLING
            };
            let expected = softmax(&logits, f64::from(temperature), |_| true);
            assert_follows(&counts(sampling, &logits, 40_000), &expected);
        }
    }

    #[test]
    fn top_k_draws_from_the_best_only() {
        let logits = logits();
        let order = best_first(&logits, 40);
        assert_eq!(order[..2], [11, 23]);
        let expected = softmax(&logits, 0.8, |id| order[..5].contains(&id));
        let sampling = Sampling {
            temperature: 0.8,
            top_k: 5,
            ..SAMPLING
        };
        assert_follows(&counts(sampling, &logits, 40_000), &expected);
    }

    /// The nucleus by its definition: the shortest run of best ids whose probability reaches `top_p`.
    fn nucleus(logits: &[f32], temperature: f64, of: &[usize], top_p: f64) -> Vec<usize> {
        let probability = softmax(logits, temperature, |id| of.contains(&id));
        let mut ids = Vec::new();
        let mut reached = 0.0;
        for &id in of {
            if reached >= top_p {
                break;
            }
            ids.push(id);
            reached += probability[id];
        }
        ids
    }

    #[test]
    fn top_p_draws_from_the_nucleus_only_and_comes_after_temperature_and_top_k() {
        let logits = logits();
        let order = best_first(&logits, 40);
        for (top_k, top_p) in [(0, 0.5f32), (0, 0.97), (6, 0.6)] {
            let of = if top_k == 0 {
                &order[..]
            } else {
                &order[..top_k]
            };
            let kept = nucleus(&logits, 1.5, of, f64::from(top_p));
            assert!(kept.len() > 1 && kept.len() < of.len());
            let expected = softmax(&logits, 1.5, |id| kept.contains(&id));
            let sampling = Sampling {
                temperature: 1.5,
                top_k,
                top_p,
                ..SAMPLING
            };
            assert_follows(&counts(sampling, &logits, 40_000), &expected);
        }
    }

    #[test]
    fn a_wide_nucleus_in_a_large_vocabulary_is_whole() {
        let logits: Vec<f32> = (0..300).map(|id| (id % 7) as f32 * 0.01).collect();
        let order = best_first(&logits, logits.len());
        let kept = nucleus(&logits, 1.0, &order, 0.9);
        let drawn = counts(
            Sampling {
                top_p: 0.9,
                ..SAMPLING
            },
            &logits,
            20_000,
        );
        let expected = softmax(&logits, 1.0, |id| kept.contains(&id));
        assert_follows(&drawn, &expected);
    }

    #[test]
    fn the_log_probability_is_the_models_own() {
        let logits = logits();
        let whole = softmax(&logits, 1.0, |_| true);
        let mut sampler = Sampler::new(Sampling {
            temperature: 0.3,
            top_k: 3,
            ..SAMPLING
        });
        for _ in 0..20 {
            let drawn = sampler.draw(&logits).unwrap();
            let expected = whole[drawn.id as usize].ln();
            assert!((drawn.log_probability - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn a_seed_fixes_the_draws_and_each_token_takes_one_number() {
        let draws = |sampling: Sampling| -> Vec<u32> {
            let mut sampler = Sampler::new(sampling);
            (0..30)
                .map(|_| sampler.draw(&logits()).unwrap().id)
                .collect()
        };
        assert_eq!(draws(SAMPLING), draws(SAMPLING));
        assert_ne!(
            draws(SAMPLING),
            draws(Sampling {
                seed: 8,
                ..SAMPLING
            })
        );
        let mut skipped = Sampler::new(SAMPLING);
        skipped.draw(&[0.0; 9]).unwrap();
        let rest: Vec<u32> = (1..30)
            .map(|_| skipped.draw(&logits()).unwrap().id)
            .collect();
        assert_eq!(rest, draws(SAMPLING)[1..]);
    }

    #[test]
    fn logits_that_are_no_numbers_give_nothing() {
        for bad in [
            vec![],
            vec![1.0, f32::NAN],
            vec![f32::INFINITY, 0.0],
            vec![f32::NEG_INFINITY; 3],
        ] {
            assert_eq!(Sampler::new(SAMPLING).draw(&bad), None, "{bad:?}");
        }
        let masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(Sampler::new(SAMPLING).draw(&masked).unwrap().id, 1);
    }
}
