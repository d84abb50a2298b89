//! The gated activations between a decoder's up and down projections.

use burn::tensor::{Tensor, activation};

/// `silu(gate) · up`, elementwise (Llama, Qwen2, Phi-4).
///
/// # Shapes
/// `gate`, `up` and the output have one shape.
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    swiglu_reference(gate, up)
}

/// `gelu_tanh(gate) · up`, elementwise (Gemma-2), with PyTorch's `gelu(approximate="tanh")`.
///
/// # Shapes
/// `gate`, `up` and the output have one shape.
pub fn geglu_tanh<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    geglu_tanh_reference(gate, up)
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
