//! `rms_norm` on the CPU: each row is read once forward and once back.

use rayon::prelude::*;

use crate::fused::{Fused, Pass};
use crate::simd::{TASK, dot, vectorised};

/// The fused operation; inputs are x and weight; saves `1 / rms` of every row.
#[derive(Debug)]
pub(super) struct RmsNorm {
    pub(super) eps: f32,
    /// Added to the weight: 1 for Gemma, else 0.
    pub(super) offset: f32,
}

impl Fused for RmsNorm {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (x, weight) = (inputs[0], inputs[1]);
        let dim = weight.len();
        let block = rows_per_task(dim);
        let mut y = vec![0.0; x.len()];
        let mut inverse = vec![0.0; x.len() / dim];
        y.par_chunks_mut(block * dim)
            .zip(x.par_chunks(block * dim))
            .zip(inverse.par_chunks_mut(block))
            .for_each(|((y, x), inverse)| {
                normalise(x, weight, self.eps, self.offset, y, inverse);
            });
        (y, vec![inverse])
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        // With r = 1/rms and g = dy · w:  dx = r · (g − x · r² · mean(g · x)),  dw = Σ dy · x · r.
        let (x, weight) = (pass.inputs[0], pass.inputs[1]);
        let dim = weight.len();
        let block = rows_per_task(dim);
        let mut dx = vec![0.0; x.len()];
        // One partial sum for each block of rows, added up in order: the result does not depend on threads.
        let partial: Vec<Vec<f32>> = dx
            .par_chunks_mut(block * dim)
            .zip(x.par_chunks(block * dim))
            .zip(pass.gradient.par_chunks(block * dim))
            .zip(pass.saved[0].par_chunks(block))
            .map(|(((dx, x), dy), inverse)| {
                let mut dw = vec![0.0; dim];
                gradients(x, weight, self.offset, dy, inverse, dx, &mut dw);
                dw
            })
            .collect();
        let mut dw = vec![0.0; dim];
        for partial in partial {
            for (dw, partial) in dw.iter_mut().zip(partial) {
                *dw += partial;
            }
        }
        vec![dx, dw]
    }
}

fn rows_per_task(dim: usize) -> usize {
    (TASK / dim).max(1)
}

vectorised! {
    fn normalise(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        offset: f32,
        y: &mut [f32],
        inverse: &mut [f32],
    ) {
        let dim = weight.len();
        let rows = y.chunks_exact_mut(dim).zip(x.chunks_exact(dim));
        for ((y, x), inverse) in rows.zip(inverse) {
            let r = 1.0 / (dot(x, x) / dim as f32 + eps).sqrt();
            *inverse = r;
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
                *y = x * r * (weight + offset);
            }
        }
    }

    fn gradients(
        x: &[f32],
        weight: &[f32],
        offset: f32,
        dy: &[f32],
        inverse: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
    ) {
        let dim = weight.len();
        let rows = dx
            .chunks_exact_mut(dim)
            .zip(x.chunks_exact(dim))
            .zip(dy.chunks_exact(dim));
        for (((dx, x), dy), &r) in rows.zip(inverse) {
            let columns = dx.iter_mut().zip(dw.iter_mut()).zip(x).zip(dy).zip(weight);
            for ((((dx, dw), &x), &dy), &weight) in columns {
                *dx = dy * (weight + offset);
                *dw += dy * x * r;
            }
            let mean = dot(dx, x) / dim as f32;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = r * (*dx - x * (r * r * mean));
            }
        }
    }
}
