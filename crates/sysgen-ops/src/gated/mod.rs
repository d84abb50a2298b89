//! The gated activations between a decoder's up and down projections.

mod cpu;
#[cfg(feature = "cube")]
mod cuda;

use burn::tensor::{Tensor, activation};

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

/// `silu(gate) · up`, elementwise (Llama, Qwen2, Phi-4).
///
/// # Shapes
/// `gate`, `up` and the output have one shape.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(cpu::Gated::Silu, swiglu_reference, gate, up)
}

/// `gelu_tanh(gate) · up`, elementwise (Gemma-2), with PyTorch's `gelu(approximate="tanh")`.
///
/// # Shapes
/// `gate`, `up` and the output have one shape.
pub fn geglu_tanh<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(cpu::Gated::GeluTanh, geglu_tanh_reference, gate, up)
}

fn gated<const D: usize>(
    op: cpu::Gated,
    reference: fn(Tensor<D>, Tensor<D>) -> Tensor<D>,
    gate: Tensor<D>,
    up: Tensor<D>,
) -> Tensor<D> {
    let shape = gate.dims();
    assert_eq!(shape, up.dims(), "gate and up have one shape");
    #[cfg(feature = "cube")]
    if device::serves(&gate) {
        let op = match op {
            cpu::Gated::Silu => cuda::Gated::Silu,
            cpu::Gated::GeluTanh => cuda::Gated::GeluTanh,
        };
        return device::apply(op, [gate.into(), up.into()]);
    }
    if fused::serves(&gate) {
        fused::apply(op, [gate.into(), up.into()], shape)
    } else {
        reference(gate, up)
    }
}

/// [`swiglu`] in plain Burn tensors.
pub fn swiglu_reference<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    activation::silu(gate) * up
}

/// [`geglu_tanh`] in plain Burn tensors.
pub fn geglu_tanh_reference<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    // gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
    let cubic = gate.clone() * gate.clone() * gate.clone();
    let inner = (gate.clone() + cubic.mul_scalar(0.044_715))
        .mul_scalar((2.0 / std::f64::consts::PI).sqrt());
    gate.mul_scalar(0.5) * inner.tanh().add_scalar(1.0) * up
}
