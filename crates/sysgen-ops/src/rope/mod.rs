//! Rotary position embedding, half-split as in Hugging Face's `rotate_half`. The angles come from the caller.

mod cpu;
#[cfg(feature = "cube")]
mod cuda;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;
#[cfg(feature = "cube")]
use crate::launch;

/// Rotates the first `rotary` dimensions of every head; the rest passes unchanged (partial rotary).
///
/// Dimension `i < rotary/2` is paired with `i + rotary/2`. No gradient flows to `cos` and `sin`.
///
/// # Shapes
/// * `x`: `[batch, time, heads, head_dim]`
/// * `cos`, `sin`: `[batch, time, rotary / 2]`
/// * output: as `x`
pub fn rope(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let shape = x.dims();
    let [batch, time, heads, head_dim] = shape;
    let [_, _, half] = cos.dims();
    assert!(
        2 * half <= head_dim,
        "rope: {half} angles for a head of {head_dim}"
    );
    assert_eq!(
        cos.dims(),
        [batch, time, half],
        "rope: cos [batch, time, rotary / 2]"
    );
    assert_eq!(
        sin.dims(),
        [batch, time, half],
        "rope: sin [batch, time, rotary / 2]"
    );
    #[cfg(feature = "cube")]
    if device::serves(&x) {
        let op = cuda::Rope {
            cos: launch::contiguous(device::primitive(cos)),
            sin: launch::contiguous(device::primitive(sin)),
            half,
            heads,
            head_dim,
        };
        return device::apply(op, [x.into()]);
    }
    if !fused::serves(&x) {
        return reference(x, cos, sin);
    }
    let op = cpu::Rope {
        cos: fused::values(cos),
        sin: fused::values(sin),
        half,
        heads,
        head_dim,
    };
    fused::apply(op, [x.into()], shape)
}

/// [`rope`] in plain Burn tensors.
pub fn reference(x: Tensor<4>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<4> {
    let [batch, time, heads, head_dim] = x.dims();
    let [_, _, half] = cos.dims();
    assert!(
        2 * half <= head_dim,
        "rope: {half} angles for a head of {head_dim}"
    );
    let cos = cos.reshape([batch, time, 1, half]);
    let sin = sin.reshape([batch, time, 1, half]);
    let part = |from: usize, to: usize| x.clone().slice([0..batch, 0..time, 0..heads, from..to]);
    let (first, second) = (part(0, half), part(half, 2 * half));
    let mut parts = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    if 2 * half < head_dim {
        parts.push(part(2 * half, head_dim));
    }
    Tensor::cat(parts, 3)
}
