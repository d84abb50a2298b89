//! `linear` on a device: Burn's products on transposed views, so that no weight is ever copied.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;

use crate::device::Kernels;
use crate::launch::{contiguous, in_dtype, product, transposed};
use crate::reductions::column_sums;

/// Inputs are x, the weight and perhaps the bias; saves of x and the weight what a wanted gradient needs. The gradients of
/// weight and bias are f32.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) input: usize,
    pub(super) output: usize,
    /// Of x, and of what is multiplied: a weight in another format (an adapter in f32) is converted for each product.
    pub(super) dtype: DType,
    /// Of the output.
    pub(super) result: DType,
}

impl Kernels for Linear {
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("x");
        let weight = inputs.next().expect("weight");
        let mut shape = x.meta.shape().clone();
        let last = shape.num_dims() - 1;
        shape[last] = self.output;
        let x = rows(x, self.input);
        let right = transposed(in_dtype(weight.clone(), self.dtype));
        let mut y = product(x.clone(), right, self.result);
        if let Some(bias) = inputs.next() {
            y = plus_bias(y, bias);
        }
        // dx needs the weight, dw needs x.
        let mut saved = vec![];
        if wanted[0] {
            saved.push(weight);
        }
        if wanted[1] {
            saved.push(x);
        }
        (burn_cubecl::ops::reshape(y, shape), saved)
    }

    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let mut saved = saved.into_iter();
        let mut shape = gradient.meta.shape().clone();
        let last = shape.num_dims() - 1;
        shape[last] = self.input;
        let dy = in_dtype(rows(gradient, self.output), self.dtype);
        let dx = wanted[0].then(|| {
            let weight = in_dtype(saved.next().expect("saved for dx"), self.dtype);
            burn_cubecl::ops::reshape(product(dy.clone(), weight, self.dtype), shape)
        });
        let dw = wanted[1].then(|| {
            let x = saved.next().expect("saved for dw");
            product(transposed(dy.clone()), x, DType::F32)
        });
        let mut gradients = vec![dx, dw];
        if wanted.len() == 3 {
            gradients.push(wanted[2].then(|| column_sums(dy.clone(), DType::F32)));
        }
        gradients
    }
}

/// `[rows, output]` with `bias` added to every row.
pub(crate) fn plus_bias(y: CubeTensor, bias: CubeTensor) -> CubeTensor {
    let output = bias.meta.num_elements();
    let bias = in_dtype(bias, y.dtype);
    let bias = burn_cubecl::ops::reshape(bias, Shape::new([1, output]));
    burn_cubecl::ops::numeric::add(y, bias)
}

/// All but the last dimension as one.
pub(crate) fn rows(tensor: CubeTensor, width: usize) -> CubeTensor {
    let count = tensor.meta.num_elements() / width;
    burn_cubecl::ops::reshape(contiguous(tensor), Shape::new([count, width]))
}
