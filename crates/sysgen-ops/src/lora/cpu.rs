//! `lora_linear` on the CPU: the thin products are added to the wide one where it lies.

use burn_flex::FlexTensor;

use crate::fused::{Fused, Pass, numbers, slice};
use crate::linear::cpu::{outer, project, times_weight};
use crate::matmul::{Matrix, add_product};
use crate::simd::scale;

/// The fused operation; inputs are x, a and b; saves the scaled projection down to the rank.
#[derive(Debug)]
pub(super) struct LoraLinear {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) rank: usize,
    pub(super) scale: f32,
    pub(super) weight: FlexTensor,
    pub(super) bias: Option<FlexTensor>,
}

impl Fused for LoraLinear {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (x, a, b) = (inputs[0], inputs[1], inputs[2]);
        let bias = self.bias.as_ref().map(slice);
        let mut y = numbers(&self.weight).project(x, bias, self.input, self.output);
        let mut down = project(x, a, None, self.input, self.rank);
        scale(&mut down, self.scale);
        add_product(
            Matrix::rows(&down, self.rank),
            Matrix::transposed(b, self.rank),
            (down.len() / self.rank.max(1), self.output, self.rank),
            &mut y,
        );
        (y, vec![down])
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let (x, a, b) = (pass.inputs[0], pass.inputs[1], pass.inputs[2]);
        let (input, output, rank) = (self.input, self.output, self.rank);
        let gradient = pass.gradient;
        let mut results = vec![Vec::new(); 3];
        let mut d_down = times_weight(gradient, b, rank, output);
        scale(&mut d_down, self.scale);
        if pass.wanted[0] {
            let mut dx = numbers(&self.weight).times(gradient, input, output);
            add_product(
                Matrix::rows(&d_down, rank),
                Matrix::rows(a, input),
                (d_down.len() / rank.max(1), input, rank),
                &mut dx,
            );
            results[0] = dx;
        }
        if pass.wanted[1] {
            results[1] = outer(&d_down, x, rank, input);
        }
        if pass.wanted[2] {
            results[2] = outer(gradient, &pass.saved[0], output, rank);
        }
        results
    }
}
