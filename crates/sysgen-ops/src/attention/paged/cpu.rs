//! Paged attention on the CPU. A task is one kv head and a few positions of one text, with all query heads that share
//! the kv head. Every sum runs in an order that depends on the position alone.

use std::ops::Range;

use rayon::prelude::*;

use super::{BLOCK_MULTIPLE as LANES, PagedRun, PagedShape};
use crate::attention::AttentionShape;
use crate::simd::{exp, max, sum, tanh, vectorised};

/// Multiply-adds below which waking other threads costs more than it gives.
const PARALLEL_WORK: usize = 1 << 17;
/// Positions of a task: they share what is read of the cache.
const POSITIONS: usize = 8;
/// Sums that are formed at a time: as many as hide the time a multiply-add takes.
const SUMS: usize = 4;

/// The cache as `attend` sees it.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) shape: PagedShape,
    /// `[blocks, kv_heads, head_size, block_size]`
    pub(super) keys: &'a [f32],
    /// `[blocks, kv_heads, block_size, head_size]`
    pub(super) values: &'a [f32],
}

/// `[keys, values]` of new positions, `[tokens, kv_heads, head_size]` each, to their places.
pub(super) fn write(
    shape: PagedShape,
    keys: &mut [f32],
    values: &mut [f32],
    new: [&[f32]; 2],
    runs: &[PagedRun],
) {
    let PagedShape {
        block_size,
        kv_heads,
        head_size,
        ..
    } = shape;
    let [new_keys, new_values] = new;
    let mut at = 0;
    for run in runs {
        for position in run.start..run.start + run.tokens {
            let block = run.blocks[position / block_size] as usize;
            let offset = position % block_size;
            for head in 0..kv_heads {
                let start = (block * kv_heads + head) * block_size * head_size;
                let columns = keys[start..][..block_size * head_size].chunks_exact_mut(block_size);
                for (column, &number) in columns.zip(&new_keys[at..at + head_size]) {
                    column[offset] = number;
                }
                values[start + offset * head_size..][..head_size]
                    .copy_from_slice(&new_values[at..at + head_size]);
                at += head_size;
            }
        }
    }
}

struct Task<'a> {
    run: &'a PagedRun<'a>,
    /// Places in the text.
    positions: Range<usize>,
    /// Row of `q` of the first of them.
    row: usize,
    kv_head: usize,
}

pub(super) fn attend(
    q: &[f32],
    heads: usize,
    view: View,
    runs: &[PagedRun],
    shape: AttentionShape,
) -> Vec<f32> {
    let PagedShape {
        kv_heads,
        head_size,
        ..
    } = view.shape;
    let width = heads / kv_heads * head_size;
    let mut tasks = Vec::new();
    let (mut row, mut work) = (0, 0);
    for run in runs {
        let end = run.start + run.tokens;
        for start in (run.start..end).step_by(POSITIONS) {
            let positions = start..end.min(start + POSITIONS);
            work += positions.len() * positions.end * heads * head_size;
            for kv_head in 0..kv_heads {
                tasks.push(Task {
                    run,
                    positions: positions.clone(),
                    row,
                    kv_head,
                });
            }
            row += positions.len();
        }
    }

    let solve = |task: &Task| {
        // `[positions, query heads of the kv head, head_size]`
        let mut part = Vec::with_capacity(task.positions.len() * width);
        for row in task.row..task.row + task.positions.len() {
            part.extend_from_slice(&q[(row * kv_heads + task.kv_head) * width..][..width]);
        }
        let mut out = vec![0.0; part.len()];
        heads_of_a_task(
            &part,
            task.run.blocks,
            task.kv_head,
            task.positions.clone(),
            view,
            shape,
            &mut out,
        );
        out
    };
    let parts: Vec<Vec<f32>> = if work < PARALLEL_WORK {
        tasks.iter().map(solve).collect()
    } else {
        tasks.par_iter().map(solve).collect()
    };
    let mut out = vec![0.0; q.len()];
    for (task, part) in tasks.iter().zip(parts) {
        for (row, part) in (task.row..).zip(part.chunks_exact(width)) {
            out[(row * kv_heads + task.kv_head) * width..][..width].copy_from_slice(part);
        }
    }
    out
}

vectorised! {
    /// `q` and `out`: `[positions, query heads of the kv head, head_size]`.
    fn heads_of_a_task(
        q: &[f32],
        blocks: &[u32],
        kv_head: usize,
        positions: Range<usize>,
        view: View<'_>,
        shape: AttentionShape,
        out: &mut [f32],
    ) {
        let PagedShape { block_size, kv_heads, head_size, .. } = view.shape;
        let group = q.len() / (positions.len() * head_size);
        let reach = |position: usize| shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        // Keys are looked at in whole lots of LANES; lots that nobody sees are left out.
        let lots = reach(positions.start) / LANES..positions.end.div_ceil(LANES);
        let first = lots.start * LANES;
        let length = lots.len() * LANES;
        let place = |lot: usize| {
            let position = lot * LANES;
            let block = blocks[position / block_size] as usize;
            (
                (block * kv_heads + kv_head) * block_size * head_size,
                position % block_size,
            )
        };

        // scores[row][key - first] of all rows; in lots, so that a lot's keys are read once for all rows.
        let rows = q.len() / head_size;
        let mut scores = vec![0.0f32; rows * length];
        for (number, lot) in lots.clone().enumerate() {
            let (start, offset) = place(lot);
            let keys = &view.keys[start + offset..start + block_size * head_size];
            let mut row = 0;
            while row < rows {
                // Past the last row, the first one once more.
                let mut taken = [row; SUMS];
                for (i, taken) in taken.iter_mut().enumerate() {
                    *taken = if row + i < rows { row + i } else { row };
                }
                let mut sums = [[0.0f32; LANES]; SUMS];
                if row + 1 < rows {
                    for d in 0..head_size {
                        let key = &keys[d * block_size..d * block_size + LANES];
                        for (sums, row) in sums.iter_mut().zip(taken) {
                            let number = q[row * head_size + d];
                            for (sum, &key) in sums.iter_mut().zip(key) {
                                *sum = number.mul_add(key, *sum);
                            }
                        }
                    }
                } else {
                    for d in 0..head_size {
                        let key = &keys[d * block_size..d * block_size + LANES];
                        let number = q[row * head_size + d];
                        for (sum, &key) in sums[0].iter_mut().zip(key) {
                            *sum = number.mul_add(key, *sum);
                        }
                    }
                }
                for (row, sums) in (row..rows).zip(&sums) {
                    let target = row * length + number * LANES;
                    scores[target..target + LANES].copy_from_slice(sums);
                }
                row += SUMS;
            }
        }

        for row in 0..rows {
            let position = positions.start + row / group;
            let visible = reach(position)..position + 1;
            let weights = &mut scores[row * length..][..length][visible.start - first..visible.end - first];
            for weight in weights.iter_mut() {
                *weight *= shape.scale;
            }
            if let Some(cap) = shape.softcap {
                for weight in weights.iter_mut() {
                    *weight = cap * tanh(*weight / cap);
                }
            }
            let largest = max(weights);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - largest);
            }
            let total = sum(weights);

            let out = &mut out[row * head_size..][..head_size];
            let mut column = 0;
            while column < head_size {
                if head_size - column >= SUMS * LANES {
                    weigh::<{ SUMS * LANES }>(weights, &visible, column, view, &place, out);
                    column += SUMS * LANES;
                } else if head_size - column >= LANES {
                    weigh::<LANES>(weights, &visible, column, view, &place, out);
                    column += LANES;
                } else {
                    weigh::<1>(weights, &visible, column, view, &place, out);
                    column += 1;
                }
            }
            for out in out {
                *out /= total;
            }
        }
    }
}

/// `out[column..column + WIDTH] = Σ weight · value` over the visible positions, in their order.
#[inline(always)]
fn weigh<const WIDTH: usize>(
    weights: &[f32],
    visible: &Range<usize>,
    column: usize,
    view: View<'_>,
    place: &impl Fn(usize) -> (usize, usize),
    out: &mut [f32],
) {
    let size = view.shape.head_size;
    let mut sums = [0.0f32; WIDTH];
    let mut position = visible.start;
    while position < visible.end {
        let lot = position / LANES;
        let end = visible.end.min((lot + 1) * LANES);
        let (start, offset) = place(lot);
        let values = &view.values[start..][..view.shape.block_size * size];
        for j in position..end {
            let weight = weights[j - visible.start];
            let value = &values[(offset + j - lot * LANES) * size + column..][..WIDTH];
            for i in 0..WIDTH {
                sums[i] = weight.mul_add(value[i], sums[i]);
            }
        }
        position = end;
    }
    out[column..column + WIDTH].copy_from_slice(&sums);
}
