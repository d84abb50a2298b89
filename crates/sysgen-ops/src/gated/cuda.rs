//! The gated activations on a device, elementwise in f32.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::device::Kernels;
use crate::launch::{
    addresses, bounded_tanh, buffer, contiguous, element, elementwise, empty_like, vector_size,
};

/// Inputs are gate and up; saves both.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Gated {
    Silu,
    GeluTanh,
}

impl Kernels for Gated {
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let inputs: Vec<_> = inputs.into_iter().map(contiguous).collect();
        let (gate, up) = (&inputs[0], &inputs[1]);
        let out = empty_like(gate);
        let total = gate.meta.num_elements();
        let vector = vector_size(&[gate], &[total]);
        let (count, units) = elementwise(&gate.client, total / vector);
        if total > 0 {
            // SAFETY: units past the last vector return.
            unsafe {
                activate::launch_unchecked(
                    &gate.client,
                    count,
                    units,
                    addresses(&[gate]),
                    vector,
                    buffer(gate),
                    buffer(up),
                    buffer(&out),
                    total / vector,
                    *self == Gated::GeluTanh,
                    element(gate),
                );
            }
        }
        let saved = if wanted.contains(&true) {
            inputs
        } else {
            vec![]
        };
        (out, saved)
    }

    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let (gate, up) = (&saved[0], &saved[1]);
        let dy = contiguous(gradient);
        let (d_gate, d_up) = (empty_like(gate), empty_like(up));
        let total = gate.meta.num_elements();
        let vector = vector_size(&[gate], &[total]);
        let (count, units) = elementwise(&gate.client, total / vector);
        if total > 0 {
            // SAFETY: as forward.
            unsafe {
                gradients::launch_unchecked(
                    &gate.client,
                    count,
                    units,
                    addresses(&[gate]),
                    vector,
                    buffer(gate),
                    buffer(up),
                    buffer(&dy),
                    buffer(&d_gate),
                    buffer(&d_up),
                    total / vector,
                    *self == Gated::GeluTanh,
                    element(gate),
                );
            }
        }
        vec![wanted[0].then_some(d_gate), wanted[1].then_some(d_up)]
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn activate<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    total: usize,
    #[comptime] gelu: bool,
    #[define(F)] _type: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= total {
        terminate!();
    }
    let (value, _slope) = activation(Vector::<f32, N>::cast_from(gate[i]), gelu);
    out[i] = Vector::cast_from(value * Vector::<f32, N>::cast_from(up[i]));
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn gradients<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    dy: &[Vector<F, N>],
    d_gate: &mut [Vector<F, N>],
    d_up: &mut [Vector<F, N>],
    total: usize,
    #[comptime] gelu: bool,
    #[define(F)] _type: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= total {
        terminate!();
    }
    let dy = Vector::<f32, N>::cast_from(dy[i]);
    let up = Vector::<f32, N>::cast_from(up[i]);
    let (value, slope) = activation(Vector::<f32, N>::cast_from(gate[i]), gelu);
    d_gate[i] = Vector::cast_from(dy * up * slope);
    d_up[i] = Vector::cast_from(dy * value);
}

/// The activation of a gate and its slope there.
#[cube]
fn activation<N: Size>(
    x: Vector<f32, N>,
    #[comptime] gelu: bool,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::<f32, N>::new(1.0);
    if gelu {
        // x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
        let root = Vector::<f32, N>::new(0.797_884_6);
        let cubic = Vector::<f32, N>::new(0.044_715);
        let half = Vector::<f32, N>::new(0.5);
        let t = bounded_tanh(root * (x + cubic * x * x * x));
        let inner = root * (one + Vector::new(3.0) * cubic * x * x);
        let slope = half * (one + t) + half * x * (one - t * t) * inner;
        (half * x * (one + t), slope)
    } else {
        let s = one / (one + (-x).exp());
        (x * s, s * (one + x * (one - s)))
    }
}
