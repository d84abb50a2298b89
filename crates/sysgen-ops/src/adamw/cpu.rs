//! The AdamW step and the squared norm on host slices, in chunks whose order never varies.

use rayon::prelude::*;

use super::AdamW;
use super::rounding::Kept;
use crate::simd::{TASK, vectorised};

/// Numbers that are widened together.
const BLOCK: usize = 1024;

/// Updates parameter and moments in place.
pub(super) fn step<P: Kept>(
    parameter: &mut [P],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    settings: &AdamW,
    step: u64,
) {
    let AdamW {
        learning_rate,
        beta1,
        beta2,
        epsilon,
        weight_decay,
        rounding_seed,
    } = *settings;
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    // As `torch.optim.AdamW` (single tensor): scalars in f64, tensors in f32.
    let keep = (1.0 - learning_rate * weight_decay) as f32;
    let blend = (1.0 - beta1) as f32;
    let (old, new) = (beta2 as f32, (1.0 - beta2) as f32);
    let root_correction = correction2.sqrt() as f32;
    let size = (learning_rate / correction1) as f32;
    let epsilon = epsilon as f32;
    let scalars = [keep, blend, old, new, root_correction, size, epsilon];
    parameter
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(
            first
                .par_chunks_mut(BLOCK)
                .zip(second.par_chunks_mut(BLOCK)),
        )
        .with_min_len(TASK / BLOCK)
        .enumerate()
        .for_each(|(block, ((parameter, gradient), (first, second)))| {
            let mut wide = [0.0; BLOCK];
            let wide = &mut wide[..parameter.len()];
            P::widen(parameter, wide);
            update(wide, gradient, first, second, scalars);
            P::narrow(wide, rounding_seed, block * BLOCK, parameter);
        });
}

/// `Σ x²` in f64.
pub(super) fn squared_norm(values: &[f32]) -> f64 {
    let partial: Vec<f64> = values.par_chunks(TASK).map(sum_of_squares).collect();
    partial.iter().sum()
}

vectorised! {
    fn update(
        parameter: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        scalars: [f32; 7],
    ) {
        let [keep, blend, old, new, root_correction, size, epsilon] = scalars;
        let moments = first.iter_mut().zip(second);
        for ((p, &g), (m, v)) in parameter.iter_mut().zip(gradient).zip(moments) {
            *m += (g - *m) * blend;
            *v = *v * old + g * g * new;
            let root = v.sqrt() / root_correction + epsilon;
            *p = *p * keep - size * (*m / root);
        }
    }

    fn sum_of_squares(values: &[f32]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0.0f64; LANES];
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                let x = f64::from(chunk[lane]);
                lanes[lane] += x * x;
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}
