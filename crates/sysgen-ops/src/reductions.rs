//! Sums of products whose order never varies: down the columns (gradients of weights that all rows share, in two
//! stages) and along the rows.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::launch::{
    addresses, buffer, contiguous, cube_sum, element, elementwise, empty, plane_slots, row_wise,
    vector_size,
};

/// Rows that one unit adds up before their sums are added up in turn.
const STRIPE: usize = 64;

/// `Σ a · b · scale` over the rows, `[dim]` in `dtype`.
///
/// # Shapes
/// `a`, `b`: `[.., dim]`, contiguous; `scale`: one f32 for each row
pub(crate) fn column_products(
    a: &CubeTensor,
    b: &CubeTensor,
    scale: &CubeTensor,
    dtype: DType,
) -> CubeTensor {
    let shape = a.meta.shape();
    let dim = shape[shape.num_dims() - 1];
    let rows = a.meta.num_elements() / dim;
    let stripes = rows.div_ceil(STRIPE);
    let partial = empty(a, [stripes, dim], DType::F32);
    let vector = vector_size(&[a, b, &partial], &[dim]);
    let (count, units) = elementwise(&a.client, stripes * (dim / vector));
    if stripes > 0 {
        // SAFETY: units past the last stripe return, rows end at `rows`.
        unsafe {
            stripe_products::launch_unchecked(
                &a.client,
                count,
                units,
                addresses(&[a]),
                vector,
                buffer(a),
                buffer(b),
                buffer(scale),
                buffer(&partial),
                rows,
                dim / vector,
                STRIPE,
                [element(a), element(b)],
            );
        }
    }
    add_all_rows(&partial, dtype)
}

/// The sum of the rows of `a`, `[dim]` in `dtype`.
///
/// # Shapes
/// `a`: `[.., dim]`
pub(crate) fn column_sums(a: CubeTensor, dtype: DType) -> CubeTensor {
    add_all_rows(&add_rows(&contiguous(a), STRIPE, DType::F32), dtype)
}

fn add_all_rows(a: &CubeTensor, dtype: DType) -> CubeTensor {
    let [rows, dim] = a.meta.shape().dims();
    burn_cubecl::ops::reshape(add_rows(a, rows.max(1), dtype), Shape::new([dim]))
}

/// The sums of every `stripe` rows, `[rows / stripe, dim]`; zeros for a matrix without rows.
fn add_rows(a: &CubeTensor, stripe: usize, dtype: DType) -> CubeTensor {
    let shape = a.meta.shape();
    let dim = shape[shape.num_dims() - 1];
    let rows = a.meta.num_elements() / dim;
    let stripes = rows.div_ceil(stripe).max(1);
    let out = empty(a, [stripes, dim], dtype);
    let vector = vector_size(&[a, &out], &[dim]);
    let (count, units) = elementwise(&a.client, stripes * (dim / vector));
    // SAFETY: units past the last stripe return, rows end at `rows`.
    unsafe {
        stripe_sums::launch_unchecked(
            &a.client,
            count,
            units,
            addresses(&[a]),
            vector,
            buffer(a),
            buffer(&out),
            rows,
            dim / vector,
            stripe,
            stripes,
            [element(a), element(&out)],
        );
    }
    out
}

/// `Σ a · b` over the last dimension, in f32.
///
/// # Shapes
/// `a`, `b`: `[batch, time, heads, size]`, contiguous; result: `[batch, time, heads]`
pub(crate) fn row_products(a: &CubeTensor, b: &CubeTensor) -> CubeTensor {
    let [batch, time, heads, size] = a.meta.shape().dims();
    let out = empty(a, [batch, time, heads], DType::F32);
    let rows = batch * time * heads;
    let vector = vector_size(&[a, b], &[size]);
    let (count, units) = row_wise(&a.client, rows, size / vector);
    // SAFETY: a cube touches one of `rows` rows, in steps that end at its width.
    unsafe {
        multiply_rows::launch_unchecked(
            &a.client,
            count,
            units,
            addresses(&[a]),
            vector,
            buffer(a),
            buffer(b),
            buffer(&out),
            rows,
            size / vector,
            [element(a), element(b)],
        );
    }
    out
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn stripe_products<A: Float, B: Float, N: Size>(
    a: &[Vector<A, N>],
    b: &[Vector<B, N>],
    scale: &[f32],
    out: &mut [Vector<f32, N>],
    rows: usize,
    width: usize,
    stripe: usize,
    #[define(A, B)] _types: [ElemType; 2],
) {
    let (index, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    let first = index * stripe;
    if first >= rows {
        terminate!();
    }
    let last = min(first + stripe, rows);
    let mut sum = Vector::<f32, N>::new(0.0);
    for row in first..last {
        let a = Vector::<f32, N>::cast_from(a[row * width + column]);
        let b = Vector::<f32, N>::cast_from(b[row * width + column]);
        sum += a * b * Vector::new(scale[row]);
    }
    out[ABSOLUTE_POS] = sum;
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn stripe_sums<A: Float, O: Float, N: Size>(
    a: &[Vector<A, N>],
    out: &mut [Vector<O, N>],
    rows: usize,
    width: usize,
    stripe: usize,
    stripes: usize,
    #[define(A, O)] _types: [ElemType; 2],
) {
    let (index, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    if index >= stripes {
        terminate!();
    }
    let first = index * stripe;
    let last = min(first + stripe, rows);
    let mut sum = Vector::<f32, N>::new(0.0);
    for row in first..last {
        sum += Vector::<f32, N>::cast_from(a[row * width + column]);
    }
    out[ABSOLUTE_POS] = Vector::cast_from(sum);
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn multiply_rows<A: Float, B: Float, N: Size>(
    a: &[Vector<A, N>],
    b: &[Vector<B, N>],
    out: &mut [f32],
    rows: usize,
    width: usize,
    #[define(A, B)] _types: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut slots = plane_slots();
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let a = Vector::<f32, N>::cast_from(a[row * width + i]);
        let b = Vector::<f32, N>::cast_from(b[row * width + i]);
        sum += a * b;
        i += CUBE_DIM as usize;
    }
    let sum = cube_sum(sum.vector_sum(), &mut slots);
    if UNIT_POS == 0 {
        out[row] = sum;
    }
}
