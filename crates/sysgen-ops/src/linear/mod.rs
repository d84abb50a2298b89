//! `x · Wᵀ + b` with the weight as Hugging Face stores it, `[out, in]`.

pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cuda;

use burn::tensor::{DType, Tensor};

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

/// Projects the last dimension of `x`.
///
/// A row's result does not depend, to the bit, on how many rows `x` has (CPU). A weight in bf16 beside an f32 `x` is read
/// as it is, half the memory and the same numbers as its f32 copy (CPU). On a device `x` says what is multiplied and what
/// comes out; sums are f32. The gradients of weight and bias are f32.
///
/// # Shapes
/// * `x`: `[.., in]`, `weight`: `[out, in]`, `bias`: `[out]`
/// * output: `[.., out]`
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let result = x.dtype();
    linear_to(x, weight, bias, result)
}

/// [`linear`] whose output is in `result`, the format of `x` or f32.
pub(crate) fn linear_to<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    result: DType,
) -> Tensor<D> {
    let mut shape = x.dims();
    let [output, input] = weight.dims();
    assert_eq!(
        shape[D - 1],
        input,
        "linear: x [.., in] and weight [out, in]"
    );
    shape[D - 1] = output;
    #[cfg(feature = "cube")]
    if device::serves(&x) {
        let dtype = x.dtype();
        let op = cuda::Linear {
            input,
            output,
            dtype,
            result,
        };
        return match bias {
            None => device::apply(op, [x.into(), weight.into()]),
            Some(bias) => device::apply(op, [x.into(), weight.into(), bias.into()]),
        };
    }
    if !fused::serves(&x) {
        return reference(x, weight, bias).cast(result);
    }
    let bf16 = fused::in_bf16(&weight);
    let op = cpu::Linear {
        input,
        output,
        bf16,
    };
    match bias {
        None => fused::apply(op, [x.into(), weight.into()], shape),
        Some(bias) => fused::apply(op, [x.into(), weight.into(), bias.into()], shape),
    }
}

/// [`linear`] in plain Burn tensors.
pub fn reference<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let mut dims = x.dims();
    let input = dims[D - 1];
    let rows: usize = dims[..D - 1].iter().product();
    let [output, _] = weight.dims();
    let weight = weight.cast(x.dtype());
    let mut y = x.reshape([rows, input]).matmul(weight.transpose());
    if let Some(bias) = bias {
        y = y + bias.reshape([1, output]);
    }
    dims[D - 1] = output;
    y.reshape(dims)
}
