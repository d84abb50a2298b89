//! `linear` on the CPU: packed panels of the weight, spread over the cores.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::fused::{Fused, Pass};
use crate::product::{MAX_TILE_COLUMNS, Product, Shared};

/// Multiply-adds below which waking other threads costs more than it gives.
const PARALLEL_WORK: usize = 1 << 18;
/// Numbers of one weight row that are packed at a time; a panel of `48 × 512` stays in the second-level cache.
const DEPTH: usize = 512;
/// Rows of x one task takes with a panel.
const TASK_ROWS: usize = 1024;

/// The fused operation; inputs are x, weight and, if there is one, bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) input: usize,
    pub(super) output: usize,
}

impl Fused for Linear {
    fn forward(&self, inputs: &[&[f32]]) -> (Vec<f32>, Vec<f32>) {
        let bias = inputs.get(2).copied();
        let y = project(inputs[0], inputs[1], bias, self.input, self.output);
        (y, Vec::new())
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let (x, weight) = (pass.inputs[0], pass.inputs[1]);
        let mut results = vec![Vec::new(); pass.inputs.len()];
        if pass.wanted[0] {
            results[0] = times_weight(pass.gradient, weight, self.input, self.output);
        }
        if pass.wanted[1] {
            results[1] = outer(pass.gradient, x, self.output, self.input);
        }
        if pass.wanted.len() == 3 && pass.wanted[2] {
            let mut sums = vec![0.0; self.output];
            for row in pass.gradient.chunks(self.output) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            results[2] = sums;
        }
        results
    }
}

/// `x[rows, input] · weight[output, input]ᵀ + bias`; a row's bits depend on that row alone.
pub(crate) fn project(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    input: usize,
    output: usize,
) -> Vec<f32> {
    assert_eq!(weight.len(), input * output, "linear: weight [out, in]");
    let rows = x.len() / input.max(1);
    let mut y = vec![0.0; rows * output];
    if let Some(bias) = bias {
        assert_eq!(bias.len(), output, "linear: bias [out]");
        y.chunks_mut(output).for_each(|y| y.copy_from_slice(bias));
    }
    let shared = Shared(y.as_mut_ptr());
    let panels = output.div_ceil(MAX_TILE_COLUMNS);
    let blocks = rows.div_ceil(TASK_ROWS);
    let task = |index: usize| {
        let (panel, block) = (index / blocks, index % blocks);
        let column = panel * MAX_TILE_COLUMNS;
        let columns = (output - column).min(MAX_TILE_COLUMNS);
        let row = block * TASK_ROWS;
        let count = (rows - row).min(TASK_ROWS);
        let mut packed = vec![0.0; columns * DEPTH.min(input)];
        for depth in (0..input).step_by(DEPTH) {
            let taken = (input - depth).min(DEPTH);
            pack(
                &weight[column * input + depth..],
                input,
                columns,
                taken,
                &mut packed,
            );
            let product = Product {
                a: x[row * input + depth..].as_ptr(),
                a_row: input,
                a_column: 1,
                b: packed.as_ptr(),
                b_row: columns,
                // SAFETY: inside y.
                c: unsafe { shared.at(row * output + column) },
                c_row: output,
                m: count,
                n: columns,
                k: taken,
                accumulate: true,
            };
            // SAFETY: the slices above cover the matrices; tasks own disjoint blocks of y.
            unsafe { product.run() };
        }
    };
    let work = rows * input * output;
    if work < PARALLEL_WORK {
        (0..panels * blocks).for_each(task);
    } else {
        // A task should be worth its overhead when rows are few.
        let together = (PARALLEL_WORK / 4 * panels * blocks / work.max(1)).max(1);
        (0..panels * blocks)
            .into_par_iter()
            .with_min_len(together)
            .for_each(task);
    }
    y
}

/// `packed[k, j] = weight[j, k]` for `columns` rows and `depth` columns of a weight whose rows are `stride` apart.
fn pack(weight: &[f32], stride: usize, columns: usize, depth: usize, packed: &mut [f32]) {
    const BLOCK: usize = 16;
    for k0 in (0..depth).step_by(BLOCK) {
        let k1 = (k0 + BLOCK).min(depth);
        for j in 0..columns {
            let row = &weight[j * stride..];
            for k in k0..k1 {
                packed[k * columns + j] = row[k];
            }
        }
    }
}

/// `gradient[rows, output] · weight[output, input]`.
pub(crate) fn times_weight(
    gradient: &[f32],
    weight: &[f32],
    input: usize,
    output: usize,
) -> Vec<f32> {
    let rows = gradient.len() / output.max(1);
    let mut result = vec![0.0; rows * input];
    matmul(
        MatMut::from_row_major_slice_mut(&mut result, rows, input),
        Accum::Replace,
        MatRef::from_row_major_slice(gradient, rows, output),
        MatRef::from_row_major_slice(weight, output, input),
        1.0,
        parallelism(rows * input * output),
    );
    result
}

/// `aᵀ · b` for `a[rows, m]` and `b[rows, n]`.
fn outer(a: &[f32], b: &[f32], m: usize, n: usize) -> Vec<f32> {
    let mut result = vec![0.0; m * n];
    add_outer(a, b, m, n, Accum::Replace, &mut result);
    result
}

/// `result (+)= aᵀ · b`.
pub(crate) fn add_outer(
    a: &[f32],
    b: &[f32],
    m: usize,
    n: usize,
    accumulate: Accum,
    result: &mut [f32],
) {
    let rows = a.len() / m.max(1);
    matmul(
        MatMut::from_row_major_slice_mut(result, m, n),
        accumulate,
        MatRef::from_row_major_slice(a, rows, m).transpose(),
        MatRef::from_row_major_slice(b, rows, n),
        1.0,
        parallelism(rows * m * n),
    );
}

/// How many threads faer may use for that many multiply-adds.
fn parallelism(work: usize) -> Par {
    if work < PARALLEL_WORK {
        Par::Seq
    } else {
        Par::rayon(0)
    }
}
