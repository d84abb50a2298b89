//! Root-mean-square normalisation over the last dimension, in f32.

use burn::tensor::Tensor;

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
    reference(x, weight, eps, plus_one)
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
