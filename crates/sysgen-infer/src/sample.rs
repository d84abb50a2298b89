//! Drawing one token from logits, in the order of vLLM's sampler: penalties, temperature, min-p, top-k, top-p, draw.
//! Equal logits are ordered by id and sums are formed in a fixed order, so that a seed always gives the same tokens.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sysgen_ops::distribution::{exponentials, largest, log_sum_exp, place_of};

use crate::request::{Sampling, TokenLogProbability};

/// Draws the tokens of one text: one number of its random stream per token, none when greedy.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Ids of the prompt, when a penalty asks for them.
    prompt: BTreeSet<u32>,
    /// How often each id was drawn, when a penalty asks for it.
    drawn: BTreeMap<u32, usize>,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Sampler {
        let prompt = if sampling.repetition_penalty == 1.0 {
            &[]
        } else {
            prompt
        };
        Sampler {
            sampling,
            random: ChaCha8Rng::seed_from_u64(sampling.seed),
            prompt: prompt.iter().copied().collect(),
            drawn: BTreeMap::new(),
        }
    }

    /// Draws from `logits`, one per id, never one of `banned`; `None` when nothing can be drawn: they are empty,
    /// infinite or not numbers.
    pub fn draw(&mut self, logits: &[f32], banned: &[u32]) -> Option<u32> {
        let best = largest(logits)?;
        let changed;
        let (logits, largest) = if self.penalises() || !banned.is_empty() {
            changed = self.penalised(logits, banned);
            (&changed[..], largest(&changed)?)
        } else {
            (logits, best)
        };
        let id = if self.sampling.temperature <= 0.0 {
            place_of(logits, largest).expect("the largest is one of them")
        } else {
            let uniform: f64 = self.random.random();
            self.pick(logits, largest, uniform)
        } as u32;
        if self.penalises() {
            *self.drawn.entry(id).or_default() += 1;
        }
        Some(id)
    }

    fn penalises(&self) -> bool {
        let Sampling {
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            ..
        } = self.sampling;
        repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0
    }

    fn penalised(&self, logits: &[f32], banned: &[u32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        let penalty = self.sampling.repetition_penalty;
        let only_drawn = self.drawn.keys().filter(|id| !self.prompt.contains(id));
        for &id in self.prompt.iter().chain(only_drawn) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        for (&id, &count) in &self.drawn {
            logits[id as usize] -= self.sampling.frequency_penalty * count as f32;
            logits[id as usize] -= self.sampling.presence_penalty;
        }
        for &id in banned {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        logits
    }

    /// The id at `uniform` (from 0 to below 1) of the cumulative distribution.
    fn pick(&self, logits: &[f32], largest: f32, uniform: f64) -> usize {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.sampling;
        // The best token's weight is 1.
        let mut weights = Vec::new();
        exponentials(logits, largest, 1.0 / temperature, &mut weights);
        if min_p > 0.0 {
            for weight in &mut weights {
                *weight = if *weight < min_p { 0.0 } else { *weight };
            }
        }
        let limits_k = top_k > 0 && top_k < logits.len();
        if !limits_k && top_p >= 1.0 {
            return at(&weights, uniform);
        }
        // What min-p and top-k leave is the whole distribution for top-p.
        let mut kept = if limits_k {
            best_first(&weights, top_k)
        } else {
            nucleus_candidates(&weights, f64::from(top_p))
        };
        let weight = |id: &usize| f64::from(weights[*id]);
        if top_p < 1.0 {
            let total = if limits_k {
                kept.iter().map(weight).sum()
            } else {
                total(&weights)
            };
            let mut before = 0.0;
            let count = kept
                .iter()
                .take_while(|&id| {
                    let needed = before < f64::from(top_p) * total;
                    before += weight(id);
                    needed
                })
                .count();
            kept.truncate(count.max(1));
        }
        let weights: Vec<f32> = kept.iter().map(|&id| weights[id]).collect();
        kept[at(&weights, uniform)]
    }
}

/// Log-probabilities by the model itself, before penalties and temperature: of `id`, and of the `top` best ids.
///
/// `None` when `logits` are empty, infinite or not numbers.
pub(crate) fn log_probability(logits: &[f32], id: u32, top: usize) -> Option<TokenLogProbability> {
    let total = log_sum_exp(logits, largest(logits)?);
    let of = |id: usize| (f64::from(logits[id]) - total) as f32;
    Some(TokenLogProbability {
        id,
        log_probability: of(id as usize),
        top: best_first(logits, top)
            .into_iter()
            .map(|id| (id as u32, of(id)))
            .collect(),
    })
}

/// The ids of the `count` highest numbers, the highest first, equals by id.
fn best_first(numbers: &[f32], count: usize) -> Vec<usize> {
    /// Numbers whose largest stands for them.
    const CHUNK: usize = 32;
    let order = |a: &usize, b: &usize| {
        let by_number = numbers[*b]
            .partial_cmp(&numbers[*a])
            .unwrap_or(Ordering::Equal);
        by_number.then(a.cmp(b))
    };
    let count = count.min(numbers.len());
    if count == 0 {
        return Vec::new();
    }
    let mut maxima: Vec<f32> = numbers
        .chunks(CHUNK)
        .map(|chunk| chunk.iter().copied().fold(f32::NEG_INFINITY, f32::max))
        .collect();
    // At least `count` numbers reach the `count`-th largest of the chunks' maxima: a few more are all there is to sort.
    let mut ids: Vec<usize> = if count < maxima.len() {
        let (_, &mut least, _) = maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        (0..numbers.len())
            .filter(|&id| numbers[id] >= least)
            .collect()
    } else {
        (0..numbers.len()).collect()
    };
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Enough best ids, best first, to reach `top_p`. A nucleus is small: the whole vocabulary is ordered only when it must
/// be.
fn nucleus_candidates(weights: &[f32], top_p: f64) -> Vec<usize> {
    let total = total(weights);
    let mut count = 64;
    loop {
        let ids = best_first(weights, count);
        let reached: f64 = ids.iter().map(|&id| f64::from(weights[id])).sum();
        if reached >= top_p * total || count >= weights.len() {
            return ids;
        }
        count *= 8;
    }
}

/// Weights whose sum is looked at as a whole before each of them is.
const BAND: usize = 256;

fn total(weights: &[f32]) -> f64 {
    weights.chunks(BAND).map(band).sum()
}

fn band(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}

/// The first place whose cumulative weight exceeds `uniform` of the total.
fn at(weights: &[f32], uniform: f64) -> usize {
    let bands: Vec<f64> = weights.chunks(BAND).map(band).collect();
    let wanted = uniform * bands.iter().sum::<f64>();
    let mut before = 0.0;
    let mut last = 0;
    for (number, &sum) in bands.iter().enumerate() {
        if sum > 0.0 {
            last = number;
        }
        if before + sum > wanted {
            break;
        }
        before += sum;
    }
    // Rounding may leave the end of the last band with weight below what is wanted.
    let start = last * BAND;
    let mut cumulative = bands[..last].iter().sum::<f64>();
    let mut place = start;
    for (id, &weight) in weights[start..].iter().take(BAND).enumerate() {
        cumulative += f64::from(weight);
        if weight > 0.0 {
            place = start + id;
        }
        if cumulative > wanted {
            break;
        }
    }
    place
}
