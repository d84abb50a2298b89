//! NF4 on the CPU: quantising, making whole again, and the products with a weight that is whole for their length only.

use std::sync::Arc;

use rayon::prelude::*;

use super::{BLOCK, Codes, OUTER_BLOCK, VALUES};
use crate::dynamic::{SIGNED, largest};
use crate::fused::{Fused, Pass};
use crate::linear::cpu::{column_sums, project, times_weight};

/// Blocks that a task takes.
const TASK_BLOCKS: usize = 256;

pub(super) fn quantise(weight: &[f32]) -> Codes {
    let blocks = weight.len().div_ceil(BLOCK);
    let mut scales = vec![0.0f32; blocks];
    let mut values = vec![0u8; weight.len().div_ceil(2)];
    values
        .par_chunks_mut(TASK_BLOCKS * BLOCK / 2)
        .zip(scales.par_chunks_mut(TASK_BLOCKS))
        .zip(weight.par_chunks(TASK_BLOCKS * BLOCK))
        .for_each(|((values, scales), weight)| {
            let blocks = values
                .chunks_mut(BLOCK / 2)
                .zip(scales)
                .zip(weight.chunks(BLOCK));
            for ((values, scale), block) in blocks {
                *scale = largest(block);
                let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
                for (byte, pair) in values.iter_mut().zip(block.chunks(2)) {
                    let second = pair.get(1).map_or(0, |x| nearest(x * inverse));
                    *byte = nearest(pair[0] * inverse) << 4 | second;
                }
            }
        });
    let mean = (scales.iter().map(|&s| f64::from(s)).sum::<f64>() / blocks.max(1) as f64) as f32;
    let mut quantised = vec![0; blocks];
    let outer = scales
        .chunks_mut(OUTER_BLOCK)
        .zip(quantised.chunks_mut(OUTER_BLOCK))
        .map(|(scales, codes)| {
            scales.iter_mut().for_each(|scale| *scale -= mean);
            SIGNED.quantise(scales, codes)
        })
        .collect();
    Codes {
        values,
        scales: quantised,
        outer,
        mean,
    }
}

/// The code whose number is nearest; of two, the lower.
fn nearest(x: f32) -> u8 {
    VALUES
        .windows(2)
        .filter(|pair| x > (pair[0] + pair[1]) / 2.0)
        .count() as u8
}

/// The first `count` values.
pub(super) fn dequantise(codes: &Codes, count: usize) -> Vec<f32> {
    let mut weight = vec![0.0; count];
    weight
        .par_chunks_mut(BLOCK)
        .with_min_len(TASK_BLOCKS)
        .enumerate()
        .for_each(|(block, weight)| {
            let scale = codes.scale(block);
            let numbers = VALUES.map(|value| value * scale);
            let bytes = &codes.values[block * BLOCK / 2..];
            for (pair, byte) in weight.chunks_mut(2).zip(bytes) {
                pair[0] = numbers[usize::from(byte >> 4)];
                if let Some(second) = pair.get_mut(1) {
                    *second = numbers[usize::from(byte & 15)];
                }
            }
        });
    weight
}

/// The fused operation; inputs are x and, if there is one, bias.
#[derive(Debug)]
pub(super) struct LinearNf4 {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) codes: Arc<Codes>,
}

impl Fused for LinearNf4 {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let weight = dequantise(&self.codes, self.input * self.output);
        let bias = inputs.get(1).copied();
        let y = project(inputs[0], &weight, bias, self.input, self.output);
        (y, Vec::new())
    }

    fn keeps_input(&self, _index: usize, _wanted: &[bool]) -> bool {
        false
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let mut results = vec![Vec::new(); pass.inputs.len()];
        if pass.wanted[0] {
            let weight = dequantise(&self.codes, self.input * self.output);
            results[0] = times_weight(pass.gradient, &weight, self.input, self.output);
        }
        if pass.wanted.len() == 2 && pass.wanted[1] {
            results[1] = column_sums(pass.gradient, self.output);
        }
        results
    }
}
