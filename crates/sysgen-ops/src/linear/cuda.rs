//! `linear` on a device: Burn's products on transposed views, so that no weight is ever copied.

use burn::tensor::Shape;
use burn_cubecl::tensor::CubeTensor;

use crate::device::Kernels;
use crate::launch::{contiguous, product, transposed};
use crate::reductions::column_sums;

/// Inputs are x, the weight and perhaps the bias; saves of x and the weight what a wanted gradient needs.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) input: usize,
    pub(super) output: usize,
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
        let mut y = product(x.clone(), transposed(weight.clone()), x.dtype);
        if let Some(bias) = inputs.next() {
            let bias = burn_cubecl::ops::reshape(bias, Shape::new([1, self.output]));
            y = burn_cubecl::ops::numeric::add(y, bias);
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
        let dy = rows(gradient, self.output);
        let dx = wanted[0].then(|| {
            let weight = saved.next().expect("saved for dx");
            burn_cubecl::ops::reshape(product(dy.clone(), weight, dy.dtype), shape)
        });
        let dw = wanted[1].then(|| {
            let x = saved.next().expect("saved for dw");
            let dtype = x.dtype;
            product(transposed(dy.clone()), x, dtype)
        });
        let mut gradients = vec![dx, dw];
        if wanted.len() == 3 {
            gradients.push(wanted[2].then(|| column_sums(dy.clone(), dy.dtype)));
        }
        gradients
    }
}

/// All but the last dimension as one.
fn rows(tensor: CubeTensor, width: usize) -> CubeTensor {
    let count = tensor.meta.num_elements() / width;
    burn_cubecl::ops::reshape(contiguous(tensor), Shape::new([count, width]))
}
