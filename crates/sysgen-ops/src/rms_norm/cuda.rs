//! `rms_norm` on a device: a cube for each row, f32 inside whatever the tensors are.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::device::Kernels;
use crate::launch::{
    addresses, buffer, contiguous, cube_sum, element, empty, empty_like, plane_slots, row_wise,
    vector_size,
};
use crate::reductions::column_products;

/// Inputs are x and weight; saves them and `1 / rms` of every row.
#[derive(Debug)]
pub(super) struct RmsNorm {
    pub(super) eps: f32,
    /// Added to the weight: 1 for Gemma, else 0.
    pub(super) offset: f32,
}

impl Kernels for RmsNorm {
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [x, weight] = inputs.try_into().expect("two inputs");
        let (x, weight) = (contiguous(x), contiguous(weight));
        let dim = weight.meta.shape()[0];
        let rows = x.meta.num_elements() / dim;
        let y = empty_like(&x);
        let inverse = empty(&x, [rows], DType::F32);
        let vector = vector_size(&[&x, &weight], &[dim]);
        let (count, units) = row_wise(&x.client, rows, dim / vector);
        if rows > 0 {
            // SAFETY: a cube touches one row of `rows`, in steps that end at its width.
            unsafe {
                normalise::launch_unchecked(
                    &x.client,
                    count,
                    units,
                    addresses(&[&x]),
                    vector,
                    buffer(&x),
                    buffer(&weight),
                    buffer(&y),
                    buffer(&inverse),
                    rows,
                    dim / vector,
                    self.eps,
                    self.offset,
                    [element(&x), element(&weight)],
                );
            }
        }
        let saved = match wanted {
            [false, false] => vec![],
            _ => vec![x, weight, inverse],
        };
        (y, saved)
    }

    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let [x, weight, inverse] = saved.try_into().expect("three saved tensors");
        let dy = contiguous(gradient);
        let dim = weight.meta.shape()[0];
        let rows = x.meta.num_elements() / dim;
        let dx = wanted[0].then(|| {
            let dx = empty_like(&x);
            let vector = vector_size(&[&x, &weight], &[dim]);
            let (count, units) = row_wise(&x.client, rows, dim / vector);
            if rows > 0 {
                // SAFETY: as forward.
                unsafe {
                    gradients::launch_unchecked(
                        &x.client,
                        count,
                        units,
                        addresses(&[&x]),
                        vector,
                        buffer(&x),
                        buffer(&weight),
                        buffer(&inverse),
                        buffer(&dy),
                        buffer(&dx),
                        rows,
                        dim / vector,
                        self.offset,
                        [element(&x), element(&weight)],
                    );
                }
            }
            dx
        });
        // dw = Σ dy · x · r over the rows.
        let dw = wanted[1].then(|| column_products(&dy, &x, &inverse, weight.dtype));
        vec![dx, dw]
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn normalise<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    y: &mut [Vector<F, N>],
    inverse: &mut [f32],
    rows: usize,
    width: usize,
    eps: f32,
    offset: f32,
    #[define(F, W)] _types: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut slots = plane_slots();
    let start = row * width;
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        squares += x * x;
        i += CUBE_DIM as usize;
    }
    let total = cube_sum(squares.vector_sum(), &mut slots);
    let r = 1.0 / (total / (width * N::value()) as f32 + eps).sqrt();
    if UNIT_POS == 0 {
        inverse[row] = r;
    }
    let mut i = UNIT_POS as usize;
    while i < width {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        let weight = Vector::<f32, N>::cast_from(weight[i]) + Vector::new(offset);
        y[start + i] = Vector::cast_from(x * Vector::new(r) * weight);
        i += CUBE_DIM as usize;
    }
}

/// With `g = dy · w`: `dx = r · (g − x · r² · mean(g · x))`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gradients<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    inverse: &[f32],
    dy: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    rows: usize,
    width: usize,
    offset: f32,
    #[define(F, W)] _types: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut slots = plane_slots();
    let start = row * width;
    let mut products = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        let weight = Vector::<f32, N>::cast_from(weight[i]) + Vector::new(offset);
        products += Vector::<f32, N>::cast_from(dy[start + i]) * weight * x;
        i += CUBE_DIM as usize;
    }
    let total = cube_sum(products.vector_sum(), &mut slots);
    let r = inverse[row];
    let pull = r * r * total / (width * N::value()) as f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let x = Vector::<f32, N>::cast_from(x[start + i]);
        let weight = Vector::<f32, N>::cast_from(weight[i]) + Vector::new(offset);
        let g = Vector::<f32, N>::cast_from(dy[start + i]) * weight;
        dx[start + i] = Vector::cast_from(Vector::new(r) * (g - x * Vector::new(pull)));
        i += CUBE_DIM as usize;
    }
}
