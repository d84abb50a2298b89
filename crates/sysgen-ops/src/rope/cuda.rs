//! `rope` on a device, elementwise in f32. The gradient of a rotation is the rotation back.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::device::Kernels;
use crate::launch::{addresses, buffer, contiguous, element, elementwise, empty_like, vector_size};

/// The input is x; saves nothing.
#[derive(Debug)]
pub(super) struct Rope {
    /// `[batch, time, half]`, contiguous, as `sin`.
    pub(super) cos: CubeTensor,
    pub(super) sin: CubeTensor,
    pub(super) half: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Kernels for Rope {
    fn forward(&self, inputs: Vec<CubeTensor>, _wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [x] = inputs.try_into().expect("one input");
        (self.rotated(x, 1.0), vec![])
    }

    fn backward(
        &self,
        _saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        vec![wanted[0].then(|| self.rotated(gradient, -1.0))]
    }
}

impl Rope {
    /// `x` turned by the angles, or back with a `direction` of −1.
    fn rotated(&self, x: CubeTensor, direction: f32) -> CubeTensor {
        let x = contiguous(x);
        let y = empty_like(&x);
        let (half, head_dim) = (self.half, self.head_dim);
        let tensors = [&x, &self.cos, &self.sin];
        // `half` may be 0, which any vector divides.
        let vector = vector_size(&tensors, &[half, head_dim]);
        // A unit turns a pair of vectors or copies one that is not turned.
        let units_of_a_head = (head_dim - half) / vector;
        let total = x.meta.num_elements() / head_dim * units_of_a_head;
        let (count, units) = elementwise(&x.client, total);
        if total > 0 {
            // SAFETY: units past the last head return.
            unsafe {
                rotate::launch_unchecked(
                    &x.client,
                    count,
                    units,
                    addresses(&tensors),
                    vector,
                    buffer(&x),
                    buffer(&self.cos),
                    buffer(&self.sin),
                    buffer(&y),
                    total,
                    units_of_a_head,
                    half / vector,
                    self.heads,
                    direction,
                    [element(&x), element(&self.cos)],
                );
            }
        }
        y
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate<F: Float, A: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<A, N>],
    sin: &[Vector<A, N>],
    y: &mut [Vector<F, N>],
    total: usize,
    units_of_a_head: usize,
    half: usize,
    heads: usize,
    direction: f32,
    #[define(F, A)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (head, i) = (
        ABSOLUTE_POS / units_of_a_head,
        ABSOLUTE_POS % units_of_a_head,
    );
    let start = head * (units_of_a_head + half);
    if i < half {
        let angle = head / heads * half + i;
        let cos = Vector::<f32, N>::cast_from(cos[angle]);
        let sin = Vector::<f32, N>::cast_from(sin[angle]) * Vector::new(direction);
        let first = Vector::<f32, N>::cast_from(x[start + i]);
        let second = Vector::<f32, N>::cast_from(x[start + half + i]);
        y[start + i] = Vector::cast_from(first * cos - second * sin);
        y[start + half + i] = Vector::cast_from(second * cos + first * sin);
    } else {
        y[start + half + i] = x[start + half + i];
    }
}
