//! `nf4_linear` on a device: the weight is made whole by one kernel for each product, in the format of what is multiplied.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{BLOCK, CODES_PER_WORD, VALUES};
use crate::device::Kernels;
use crate::launch::{
    addresses, buffer, element, elementwise, empty, in_dtype, product, transposed, upload_floats,
};
use crate::linear::cuda::{plus_bias, rows};
use crate::reductions::column_sums;

/// A weight as a device keeps it: eight codes a word, the first in the uppermost bits, and the scales of the blocks.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) words: CubeTensor,
    pub(super) scales: CubeTensor,
    pub(super) shape: [usize; 2],
}

impl Resident {
    /// The weight `[out, in]` in `dtype`.
    pub(super) fn whole(&self, dtype: DType) -> CubeTensor {
        let whole = empty(&self.scales, self.shape, dtype);
        let count = whole.meta.num_elements();
        let table = upload_floats(&self.scales, &VALUES);
        let (cubes, units) = elementwise(&whole.client, count);
        if count > 0 {
            // SAFETY: units past the last number return; there is a word for every eight, a scale for every block.
            unsafe {
                unpack::launch_unchecked(
                    &whole.client,
                    cubes,
                    units,
                    addresses(&[&whole]),
                    buffer(&self.words),
                    buffer(&self.scales),
                    buffer(&table),
                    buffer(&whole),
                    count,
                    CODES_PER_WORD,
                    BLOCK,
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
    pub(super) weight: Resident,
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
    words: &[i32],
    scales: &[f32],
    values: &[f32],
    whole: &mut [F],
    count: usize,
    codes_per_word: usize,
    block: usize,
    #[define(F)] _type: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= count {
        terminate!();
    }
    let word = u32::reinterpret(words[i / codes_per_word]);
    let from_the_top = (i % codes_per_word) as u32;
    let code = (word >> (28 - 4 * from_the_top)) & 15;
    whole[i] = F::cast_from(values[code as usize] * scales[i / block]);
}
