//! A frozen projection with a low-rank update beside it (LoRA, arXiv 2106.09685): `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ + bias`.
//! The sum of the weights is never formed, and the frozen one never has a gradient.

mod cpu;

use burn::tensor::Tensor;

use crate::fused;
#[cfg(feature = "cube")]
use crate::linear;
use crate::linear::reference as plain;

/// The low-rank update of one projection.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Down to the rank, `[rank, in]` (`lora_A`).
    pub a: Tensor<2>,
    /// Up from the rank, `[out, rank]` (`lora_B`).
    pub b: Tensor<2>,
    /// Multiplies the update: `alpha / rank`.
    pub scale: f32,
}

/// [`linear`](crate::linear) with an adapter; gradients go to x and the adapter.
///
/// # Shapes
/// * `x`: `[.., in]`, `weight`: `[out, in]`, `bias`: `[out]`, the last two frozen
/// * output: `[.., out]`
pub fn lora_linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter: &Adapter,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [output, input] = weight.dims();
    let [rank, _] = adapter.a.dims();
    assert_eq!(
        shape[D - 1],
        input,
        "lora_linear: x [.., in], weight [out, in]"
    );
    assert_eq!(adapter.a.dims(), [rank, input], "lora_linear: a [rank, in]");
    assert_eq!(
        adapter.b.dims(),
        [output, rank],
        "lora_linear: b [out, rank]"
    );
    #[cfg(feature = "cube")]
    if crate::device::serves(&x) {
        let down = linear(x.clone(), adapter.a.clone(), None).mul_scalar(adapter.scale);
        return linear(x, weight, bias) + linear(down, adapter.b.clone(), None);
    }
    if !fused::serves(&x) {
        return reference(x, weight, bias, adapter);
    }
    shape[D - 1] = output;
    let op = cpu::LoraLinear {
        input,
        output,
        rank,
        scale: adapter.scale,
        weight: fused::frozen(weight),
        bias: bias.map(fused::frozen),
    };
    let inputs = [x.into(), adapter.a.clone().into(), adapter.b.clone().into()];
    fused::apply(op, inputs, shape)
}

/// [`lora_linear`] in plain Burn tensors.
pub fn reference<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter: &Adapter,
) -> Tensor<D> {
    let down = plain(x.clone(), adapter.a.clone(), None).mul_scalar(adapter.scale);
    plain(x, weight, bias) + plain(down, adapter.b.clone(), None)
}
