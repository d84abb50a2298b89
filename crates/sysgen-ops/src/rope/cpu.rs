//! `rope` on the CPU. Its gradient is the rotation back.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use crate::fused::{Fused, Pass, slice};
use crate::simd::{TASK, vectorised};

/// The fused operation; its input is x.
#[derive(Debug)]
pub(super) struct Rope {
    pub(super) cos: FlexTensor,
    pub(super) sin: FlexTensor,
    pub(super) half: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Fused for Rope {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        (self.rotate(inputs[0], 1.0), Vec::new())
    }

    fn keeps_input(&self, _index: usize, _wanted: &[bool]) -> bool {
        false
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        vec![self.rotate(pass.gradient, -1.0)]
    }
}

impl Rope {
    /// Rotates by the angles times `direction`.
    fn rotate(&self, x: &[f32], direction: f32) -> Vec<f32> {
        let Self {
            half,
            heads,
            head_dim,
            ..
        } = *self;
        let mut y = vec![0.0; x.len()];
        if half == 0 {
            y.copy_from_slice(x);
            return y;
        }
        let width = heads * head_dim;
        let block = (TASK / width).max(1);
        y.par_chunks_mut(block * width)
            .zip(x.par_chunks(block * width))
            .zip(slice(&self.cos).par_chunks(block * half))
            .zip(slice(&self.sin).par_chunks(block * half))
            .for_each(|(((y, x), cos), sin)| {
                rotate_tokens(x, cos, sin, direction, half, heads, head_dim, y);
            });
        y
    }
}

vectorised! {
    fn rotate_tokens(
        x: &[f32],
        cos: &[f32],
        sin: &[f32],
        direction: f32,
        half: usize,
        heads: usize,
        head_dim: usize,
        y: &mut [f32],
    ) {
        let width = heads * head_dim;
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        let tokens = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((y, x), (cos, sin)) in tokens.zip(angles) {
            let heads = y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim));
            for (y, x) in heads {
                let (y1, y2) = y.split_at_mut(half);
                let (x1, x2) = x.split_at(half);
                let first = y1.iter_mut().zip(x1);
                let second = y2[..half].iter_mut().zip(&x2[..half]);
                let pairs = first.zip(second).zip(cos.iter().zip(sin));
                for (((y1, &x1), (y2, &x2)), (&cos, &sin)) in pairs {
                    let sin = sin * direction;
                    *y1 = x1 * cos - x2 * sin;
                    *y2 = x2 * cos + x1 * sin;
                }
                y2[half..].copy_from_slice(&x2[half..]);
            }
        }
    }
}
