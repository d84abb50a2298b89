//! The softmax over a vocabulary, a stripe of its columns at a time.

use crate::simd::{exp, max, sum, tanh, vectorised};

/// Maximum and sum of exponents of the logits seen so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    max: f32,
    sum: f32,
}

impl Default for Softmax {
    fn default() -> Self {
        Self {
            max: f32::NEG_INFINITY,
            sum: 0.0,
        }
    }
}

impl Softmax {
    /// Takes in another part of the same row.
    pub(super) fn add(&mut self, other: Self) {
        // A NaN has to survive: `f32::max` would drop it.
        let max = if other.max > self.max {
            other.max
        } else {
            self.max
        };
        let scaled = |part: Self| part.sum * (part.max - max).exp();
        let sum = scaled(*self) + scaled(other);
        *self = Self { max, sum };
    }

    /// `ln Σ exp(l)`.
    pub(super) fn log_sum(self) -> f32 {
        self.max + self.sum.ln()
    }
}

/// Soft-caps a stripe of logits in place and returns every row's share of the softmax.
///
/// # Safety
/// `logits` points at `rows` rows, `stride` numbers apart, of `columns` numbers that nobody else touches.
pub(super) unsafe fn statistics(
    logits: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    softcap: Option<f32>,
) -> Vec<Softmax> {
    (0..rows)
        .map(|row| {
            // SAFETY: the caller's.
            let logits =
                unsafe { std::slice::from_raw_parts_mut(logits.add(row * stride), columns) };
            row_statistics(logits, softcap)
        })
        .collect()
}

/// What is known of the positions of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Positions<'a> {
    pub(super) targets: &'a [u32],
    pub(super) weights: &'a [f32],
    pub(super) softmax: &'a [Softmax],
    pub(super) softcap: Option<f32>,
}

/// The gradient of the weighted losses for a stripe of soft-capped logits that begins at vocabulary entry `first`:
/// `gradient[rows, columns]`.
///
/// # Safety
/// `logits` points at a row for each position, `stride` numbers apart, whose columns nobody writes meanwhile.
pub(super) unsafe fn gradients(
    logits: *const f32,
    stride: usize,
    first: usize,
    positions: Positions,
    gradient: &mut [f32],
) {
    let Positions {
        targets,
        weights,
        softmax,
        softcap,
    } = positions;
    let columns = gradient.len() / targets.len();
    let rows = targets.iter().zip(weights).zip(softmax);
    for (row, (gradient, ((&target, &weight), softmax))) in
        gradient.chunks_exact_mut(columns).zip(rows).enumerate()
    {
        // SAFETY: the caller's.
        let logits = unsafe { std::slice::from_raw_parts(logits.add(row * stride), columns) };
        row_gradient(logits, weight, softmax.log_sum(), softcap, gradient);
        let target = (target as usize).wrapping_sub(first);
        if target < columns {
            let slope = softcap.map_or(1.0, |cap| 1.0 - (logits[target] / cap).powi(2));
            gradient[target] -= weight * slope;
        }
    }
}

vectorised! {
    fn row_statistics(logits: &mut [f32], softcap: Option<f32>) -> Softmax {
        if let Some(cap) = softcap {
            for logit in logits.iter_mut() {
                *logit = cap * tanh(*logit / cap);
            }
        }
        let max = max(logits);
        let mut exponents = [0.0f32; 512];
        let mut total = 0.0;
        for logits in logits.chunks(exponents.len()) {
            let exponents = &mut exponents[..logits.len()];
            for (exponent, &logit) in exponents.iter_mut().zip(logits) {
                *exponent = exp(logit - max);
            }
            total += sum(exponents);
        }
        Softmax { max, sum: total }
    }

    /// `softmax(l) · weight`, through the cap's slope `1 − (l / c)²`.
    fn row_gradient(
        logits: &[f32],
        weight: f32,
        log_sum: f32,
        softcap: Option<f32>,
        gradient: &mut [f32],
    ) {
        match softcap {
            None => {
                for (gradient, &l) in gradient.iter_mut().zip(logits) {
                    *gradient = exp(l - log_sum) * weight;
                }
            }
            Some(cap) => {
                for (gradient, &l) in gradient.iter_mut().zip(logits) {
                    *gradient = exp(l - log_sum) * weight * (1.0 - (l / cap) * (l / cap));
                }
            }
        }
    }
}
