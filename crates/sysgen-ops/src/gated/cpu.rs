//! Gated activations on the CPU, forward and gradient in one pass each.

use rayon::prelude::*;

use crate::fused::{Fused, Pass};
use crate::simd::{TASK, sigmoid, tanh, vectorised};

/// The fused operation; inputs are gate and up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gated {
    Silu,
    GeluTanh,
}

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `silu(x)` and its derivative.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// `gelu_tanh(x)` and its derivative.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let square = x * x;
    let t = tanh(ROOT_2_OVER_PI * (x + CUBIC * x * square));
    let slope = ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * square);
    (
        0.5 * x * (1.0 + t),
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope,
    )
}

impl Fused for Gated {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (gate, up) = (inputs[0], inputs[1]);
        let mut out = vec![0.0; gate.len()];
        forward(*self, gate, up, &mut out);
        (out, Vec::new())
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let mut gate = vec![0.0; pass.gradient.len()];
        let mut up = vec![0.0; pass.gradient.len()];
        backward(*self, &pass, &mut gate, &mut up);
        vec![gate, up]
    }
}

fn forward(kind: Gated, gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(TASK)
        .zip(gate.par_chunks(TASK))
        .zip(up.par_chunks(TASK))
        .for_each(|((out, gate), up)| forward_part(kind, gate, up, out));
}

fn backward(kind: Gated, pass: &Pass, d_gate: &mut [f32], d_up: &mut [f32]) {
    let (gate, up) = (pass.inputs[0], pass.inputs[1]);
    d_gate
        .par_chunks_mut(TASK)
        .zip(d_up.par_chunks_mut(TASK))
        .zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK)))
        .zip(pass.gradient.par_chunks(TASK))
        .for_each(|(((d_gate, d_up), (gate, up)), gradient)| {
            backward_part(kind, gate, up, gradient, d_gate, d_up);
        });
}

vectorised! {
    fn forward_part(kind: Gated, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match kind {
            Gated::Silu => values(silu, gate, up, out),
            Gated::GeluTanh => values(gelu_tanh, gate, up, out),
        }
    }

    fn backward_part(
        kind: Gated,
        gate: &[f32],
        up: &[f32],
        gradient: &[f32],
        d_gate: &mut [f32],
        d_up: &mut [f32],
    ) {
        match kind {
            Gated::Silu => gradients(silu, gate, up, gradient, d_gate, d_up),
            Gated::GeluTanh => gradients(gelu_tanh, gate, up, gradient, d_gate, d_up),
        }
    }
}

#[inline(always)]
fn values(activation: impl Fn(f32) -> (f32, f32), gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = activation(gate).0 * up;
    }
}

#[inline(always)]
fn gradients(
    activation: impl Fn(f32) -> (f32, f32),
    gate: &[f32],
    up: &[f32],
    gradient: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let outputs = d_gate.iter_mut().zip(d_up);
    let inputs = gate.iter().zip(up).zip(gradient);
    for ((d_gate, d_up), ((&gate, &up), &gradient)) in outputs.zip(inputs) {
        let (value, slope) = activation(gate);
        *d_gate = gradient * up * slope;
        *d_up = gradient * value;
    }
}
