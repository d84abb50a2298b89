//! Root-mean-square normalisation over the last dimension, in f32.

mod cpu;
#[cfg(feature = "cube")]
mod cuda;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

/// `x / sqrt(mean(x²) + eps) · w`, or `· (1 + w)` with `plus_one` (Gemma).
///
/// # Shapes
/// * `x`: `[.., dim]`, `weight`: `[dim]`
/// * output: as `x`
pub fn rms_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    eps: f64,
    plus_one: bool,
) -> Tensor<D> {
    let shape = x.dims();
    assert_eq!(
        [shape[D - 1]],
        weight.dims(),
        "rms_norm: one weight for each number"
    );
    let offset = if plus_one { 1.0 } else { 0.0 };
    let eps32 = eps as f32;
    #[cfg(feature = "cube")]
    if device::serves(&x) {
        let op = cuda::RmsNorm { eps: eps32, offset };
        return device::apply(op, [x.into(), weight.into()]);
    }
    if !fused::serves(&x) {
        return reference(x, weight, eps, plus_one);
    }
    let op = cpu::RmsNorm { eps: eps32, offset };
    fused::apply(op, [x.into(), weight.into()], shape)
}

/// [`rms_norm`] in plain Burn tensors.
pub fn reference<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    eps: f64,
    plus_one: bool,
) -> Tensor<D> {
    let dims = x.dims();
    let dim = dims[D - 1];
    let rows: usize = dims[..D - 1].iter().product();
    let x = x.reshape([rows, dim]);
    let scale = if plus_one {
        weight.add_scalar(1.0)
    } else {
        weight
    };
    let mean_square = x.clone().powi_scalar(2).mean_dim(1);
    let y = x / mean_square.add_scalar(eps).sqrt() * scale.reshape([1, dim]);
    y.reshape(dims)
}
