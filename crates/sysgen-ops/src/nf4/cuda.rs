//! `nf4_linear` on a device: the weight is made whole by one kernel for each product, in the format of what is multiplied.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{BLOCK, OUTER_AT, OUTER_BLOCK, SCALES_AT, VALUES_AT};
use crate::device::Kernels;
use crate::launch::{
    addresses, buffer, element, elementwise, empty, in_dtype, product, transposed,
};
use crate::linear::cuda::{plus_bias, rows};
use crate::reductions::column_sums;

/// A weight as a device keeps it ([`super::Resident`]).
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) values: CubeTensor,
    pub(super) scales: CubeTensor,
    pub(super) numbers: CubeTensor,
    pub(super) shape: [usize; 2],
}

impl Weight {
    /// The weight `[out, in]` in `dtype`.
    pub(super) fn whole(&self, dtype: DType) -> CubeTensor {
        let whole = empty(&self.numbers, self.shape, dtype);
        let count = whole.meta.num_elements();
        let (cubes, units) = elementwise(&whole.client, count);
        if count > 0 {
            // SAFETY: units past the last number return; there is a word for every eight of them, and for every
            // four blocks.
            unsafe {
                unpack::launch_unchecked(
                    &whole.client,
                    cubes,
                    units,
                    addresses(&[&whole]),
                    buffer(&self.values),
                    buffer(&self.scales),
                    buffer(&self.numbers),
                    buffer(&whole),
                    count,
                    element(&whole),
                );
            }
        }
        whole
    }
}

/// Inputs are x and perhaps the bias; saves nothing.
#[derive(Debug)]
pub(super) struct LinearNf4 {
    pub(super) weight: Weight,
    /// Of x.
    pub(super) dtype: DType,
}

impl Kernels for LinearNf4 {
    fn forward(&self, inputs: Vec<CubeTensor>, _wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [output, input] = self.weight.shape;
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("x");
        let shape = with_last(&x, output);
        let weight = self.weight.whole(self.dtype);
        let mut y = product(rows(x, input), transposed(weight), self.dtype);
        if let Some(bias) = inputs.next() {
            y = plus_bias(y, bias);
        }
        (burn_cubecl::ops::reshape(y, shape), vec![])
    }

    fn backward(
        &self,
        _saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let [output, input] = self.weight.shape;
        let shape = with_last(&gradient, input);
        let dy = in_dtype(rows(gradient, output), self.dtype);
        let mut gradients = vec![wanted[0].then(|| {
            let dx = product(dy.clone(), self.weight.whole(self.dtype), self.dtype);
            burn_cubecl::ops::reshape(dx, shape)
        })];
        if wanted.len() == 2 {
            gradients.push(wanted[1].then(|| column_sums(dy, DType::F32)));
        }
        gradients
    }
}

/// The tensor's shape with another last dimension.
fn with_last(tensor: &CubeTensor, size: usize) -> Shape {
    let mut shape = tensor.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = size;
    shape
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn unpack<F: Float>(
    values: &[i32],
    scales: &[i32],
    numbers: &[f32],
    whole: &mut [F],
    count: usize,
    #[define(F)] _type: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= count {
        terminate!();
    }
    let block = i / BLOCK;
    let word = u32::reinterpret(scales[block / 4]);
    let scale = (word >> (24 - 8 * (block % 4) as u32)) & 255;
    let outer = numbers[OUTER_AT + block / OUTER_BLOCK];
    let scale = numbers[SCALES_AT + scale as usize] * outer + numbers[0];
    let word = u32::reinterpret(values[i / 8]);
    let code = (word >> (28 - 4 * (i % 8) as u32)) & 15;
    whole[i] = F::cast_from(numbers[VALUES_AT + code as usize] * scale);
}
