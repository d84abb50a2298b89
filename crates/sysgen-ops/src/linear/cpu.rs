//! `linear` on the CPU: three products over packed panels of the right-hand side, spread over the cores.

use rayon::prelude::*;

use crate::fused::{Fused, Pass};
use crate::linear::pack::pack;
use crate::product::{MAX_TILE_COLUMNS, Product, Shared};

/// Multiply-adds below which waking other threads costs more than it gives.
const PARALLEL_WORK: usize = 1 << 18;
/// Numbers of one weight row that are packed at a time; a panel of `48 × 512` stays in the second-level cache.
const DEPTH: usize = 512;
/// Rows of the result one task takes with a panel, at least and at most.
const TASK_ROWS: (usize, usize) = (64, 1024);

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
            results[1] = vec![0.0; self.output * self.input];
            add_outer(pass.gradient, x, self.output, self.input, &mut results[1]);
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
    add_product(
        x,
        (input, 1),
        Right::Transposed(weight),
        (rows, output, input),
        &mut y,
    );
    y
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
    let size = (rows, input, output);
    add_product(
        gradient,
        (output, 1),
        Right::Plain(weight),
        size,
        &mut result,
    );
    result
}

/// `result[m, n] += aᵀ · b` for `a[rows, m]` and `b[rows, n]`.
pub(crate) fn add_outer(a: &[f32], b: &[f32], m: usize, n: usize, result: &mut [f32]) {
    let rows = a.len() / m.max(1);
    add_product(a, (1, m), Right::Plain(b), (m, n, rows), result);
}

/// The right-hand side of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    /// `[k, n]`.
    Plain(&'a [f32]),
    /// `[n, k]`.
    Transposed(&'a [f32]),
}

/// `c[m, n] += a[m, k] · right`, with a's strides. Every number of c is one chain of multiply-adds in ascending
/// `k`, so neither the threads nor the number of rows change its bits.
fn add_product(
    a: &[f32],
    (a_row, a_column): (usize, usize),
    right: Right,
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(
        a.len() > (m - 1) * a_row + (k - 1) * a_column,
        "product: left"
    );
    assert_eq!(c.len(), m * n, "product: result");
    let shared = Shared(c.as_mut_ptr());
    let panels = n.div_ceil(MAX_TILE_COLUMNS);
    let wanted = (4 * rayon::current_num_threads()).div_ceil(panels);
    let (least, most) = TASK_ROWS;
    let task_rows = m.div_ceil(wanted).next_multiple_of(8).clamp(least, most);
    let blocks = m.div_ceil(task_rows);
    let task = |index: usize| {
        let column = index / blocks * MAX_TILE_COLUMNS;
        let columns = (n - column).min(MAX_TILE_COLUMNS);
        let row = index % blocks * task_rows;
        let mut packed = vec![0.0; columns * DEPTH.min(k)];
        for depth in (0..k).step_by(DEPTH) {
            let taken = (k - depth).min(DEPTH);
            match right {
                Right::Transposed(b) => {
                    pack(&b[column * k + depth..], k, columns, taken, &mut packed);
                }
                Right::Plain(b) => {
                    for (packed, b) in packed
                        .chunks_exact_mut(columns)
                        .zip(b[depth * n..(depth + taken) * n].chunks_exact(n))
                    {
                        packed.copy_from_slice(&b[column..column + columns]);
                    }
                }
            }
            let product = Product {
                a: a[row * a_row + depth * a_column..].as_ptr(),
                a_row,
                a_column,
                b: packed.as_ptr(),
                b_row: columns,
                // SAFETY: inside c.
                c: unsafe { shared.at(row * n + column) },
                c_row: n,
                m: (m - row).min(task_rows),
                n: columns,
                k: taken,
                accumulate: true,
            };
            // SAFETY: the slices above cover the matrices; tasks own disjoint blocks of c.
            unsafe { product.run() };
        }
    };
    let (tasks, work) = (panels * blocks, m * n * k);
    if work < PARALLEL_WORK {
        (0..tasks).for_each(task);
    } else {
        // A task should be worth its overhead when rows are few.
        let together = (PARALLEL_WORK / 4 * tasks / work).max(1);
        (0..tasks)
            .into_par_iter()
            .with_min_len(together)
            .for_each(task);
    }
}
