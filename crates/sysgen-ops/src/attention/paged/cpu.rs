//! Paged attention on the CPU. A task is some kv heads and a few positions of one text, with all query heads that share
//! the kv heads: a block's heads lie side by side, so that it reads long stretches of memory. Every sum runs in an order
//! that depends on the position alone.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{BLOCK_MULTIPLE as LANES, PagedRun, PagedShape};
use crate::attention::AttentionShape;
use crate::product::Shared;
use crate::simd::{exp, max, sum, tanh, vectorised};

/// Multiply-adds below which waking other threads costs more than it gives.
const PARALLEL_WORK: usize = 1 << 17;
/// Numbers below which keys and values are written by one thread.
const PARALLEL_WRITE: usize = 1 << 12;
/// Positions of a task: they share what is read of the cache.
const POSITIONS: usize = 8;
/// Tasks for each thread, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 4;
/// Scores that a task keeps, unless one kv head has more: they stay in the second-level cache.
const SCORES: usize = 1 << 16;

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
    let (held_keys, held_values) = (Shared(keys.as_mut_ptr()), Shared(values.as_mut_ptr()));
    let head = |head: usize| {
        let mut at = head * head_size;
        for run in runs {
            for position in run.start..run.start + run.tokens {
                let block = run.blocks[position / block_size] as usize;
                let offset = position % block_size;
                let start = (block * kv_heads + head) * block_size * head_size;
                // SAFETY: the blocks are in the cache, as `PagedCache` asserts, and each task has a head of them to itself.
                let [keys, values] = [held_keys, held_values].map(|held| unsafe {
                    std::slice::from_raw_parts_mut(held.at(start), block_size * head_size)
                });
                let columns = keys.chunks_exact_mut(block_size);
                for (column, &number) in columns.zip(&new_keys[at..at + head_size]) {
                    column[offset] = number;
                }
                values[offset * head_size..][..head_size]
                    .copy_from_slice(&new_values[at..at + head_size]);
                at += kv_heads * head_size;
            }
        }
    };
    if new_keys.len() < PARALLEL_WRITE {
        (0..kv_heads).for_each(head);
    } else {
        (0..kv_heads).into_par_iter().for_each(head);
    }
}

struct Task<'a> {
    run: &'a PagedRun<'a>,
    /// Places in the text.
    positions: Range<usize>,
    /// Row of `q` of the first of them.
    row: usize,
    kv_heads: Range<usize>,
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
    let group = heads / kv_heads;
    let width = group * head_size;
    let pieces: usize = runs.iter().map(|run| run.tokens.div_ceil(POSITIONS)).sum();
    let wanted = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(pieces.max(1));
    let mut tasks = Vec::new();
    let (mut row, mut work) = (0, 0);
    for run in runs {
        let end = run.start + run.tokens;
        for start in (run.start..end).step_by(POSITIONS) {
            let positions = start..end.min(start + POSITIONS);
            work += positions.len() * positions.end * heads * head_size;
            let scores = positions.len() * group * positions.end;
            let together = (kv_heads / wanted).min(SCORES / scores).max(1);
            for first in (0..kv_heads).step_by(together) {
                tasks.push(Task {
                    run,
                    positions: positions.clone(),
                    row,
                    kv_heads: first..kv_heads.min(first + together),
                });
            }
            row += positions.len();
        }
    }

    let mut out = vec![0.0; q.len()];
    let target = Shared(out.as_mut_ptr());
    let solve = |task: &Task| {
        // `[kv heads, positions, query heads of the kv head, head_size]`
        let mut part = Vec::with_capacity(task.kv_heads.len() * task.positions.len() * width);
        let places = || {
            let rows = task.row..task.row + task.positions.len();
            let heads = task.kv_heads.clone();
            heads.flat_map(move |head| rows.clone().map(move |row| (row * kv_heads + head) * width))
        };
        for place in places() {
            part.extend_from_slice(&q[place..place + width]);
        }
        let mut attended = vec![0.0; part.len()];
        heads_of_a_task(
            &part,
            task.run.blocks,
            task.kv_heads.clone(),
            task.positions.clone(),
            view,
            shape,
            &mut attended,
        );
        for (place, attended) in places().zip(attended.chunks_exact(width)) {
            // SAFETY: `out` is as long as `q`, and no other task has these rows and heads.
            let out = unsafe { std::slice::from_raw_parts_mut(target.at(place), width) };
            out.copy_from_slice(attended);
        }
    };
    if work < PARALLEL_WORK {
        tasks.iter().for_each(solve);
    } else {
        tasks.par_iter().for_each(solve);
    }
    out
}

vectorised! {
    /// `q` and `out`: `[kv heads, positions, query heads of the kv head, head_size]`; `out` holds zeros.
    fn heads_of_a_task(
        q: &[f32],
        blocks: &[u32],
        kv_heads: Range<usize>,
        positions: Range<usize>,
        view: View<'_>,
        shape: AttentionShape,
        out: &mut [f32],
    ) {
        let PagedShape { block_size, head_size, .. } = view.shape;
        // Of one kv head.
        let rows = q.len() / (kv_heads.len() * head_size);
        let group = rows / positions.len();
        let reach = |position: usize| shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        // Keys are looked at in whole lots of LANES; lots that nobody sees are left out.
        let lots = reach(positions.start) / LANES..positions.end.div_ceil(LANES);
        let first = lots.start * LANES;
        let length = lots.len() * LANES;
        let place = |lot: usize, head: usize| {
            let position = lot * LANES;
            let block = blocks[position / block_size] as usize;
            (
                (block * view.shape.kv_heads + head) * block_size * head_size,
                position % block_size,
            )
        };

        // scores[head][row][key - first]; in lots, so that a lot's keys are read once for all rows.
        let mut scores = vec![0.0f32; kv_heads.len() * rows * length];
        for (number, lot) in lots.clone().enumerate() {
            let (start, offset) = place(lot, kv_heads.start);
            pulp::Arch::new().dispatch(Lot {
                q,
                keys: &view.keys[start + offset..],
                heads: kv_heads.len(),
                head_size,
                block_size,
                scores: &mut scores,
                column: number * LANES,
            });
        }

        let mut totals = vec![0.0f32; kv_heads.len() * rows];
        for (row, (scores, total)) in scores.chunks_exact_mut(length).zip(&mut totals).enumerate() {
            let position = positions.start + row % rows / group;
            let weights = &mut scores[reach(position) - first..position + 1 - first];
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
            *total = sum(weights);
        }

        for lot in lots {
            for (index, head) in kv_heads.clone().enumerate() {
                let (start, offset) = place(lot, head);
                let values = &view.values[start + offset * head_size..][..LANES * head_size];
                for row in 0..rows {
                    let position = positions.start + row / group;
                    let from = reach(position).max(lot * LANES);
                    let end = (position + 1).min((lot + 1) * LANES);
                    if from >= end {
                        continue;
                    }
                    let row = index * rows + row;
                    let weights = &scores[row * length + from - first..][..end - from];
                    let values = &values[(from - lot * LANES) * head_size..];
                    weigh(weights, values, &mut out[row * head_size..][..head_size]);
                }
            }
        }
        for (out, total) in out.chunks_exact_mut(head_size).zip(totals) {
            for out in out {
                *out /= total;
            }
        }
    }
}

/// The scores of one lot of keys.
struct Lot<'a> {
    /// `[kv heads, rows, head_size]`
    q: &'a [f32],
    /// Of the first kv head and the first of the keys; `[kv heads, head_size, block_size]` from there on.
    keys: &'a [f32],
    heads: usize,
    head_size: usize,
    block_size: usize,
    /// `[kv heads, rows, length]`
    scores: &'a mut [f32],
    /// Where the lot's scores begin in a row of them.
    column: usize,
}

impl WithSimd for Lot<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let rows = self.q.len() / (self.heads * self.head_size);
        for head in 0..self.heads {
            // Four rows share what is loaded of the keys.
            for row in (0..rows).step_by(4) {
                let first = head * rows + row;
                match rows - row {
                    1 => self.rows::<S, 1>(simd, head, first),
                    2 => self.rows::<S, 2>(simd, head, first),
                    3 => self.rows::<S, 3>(simd, head, first),
                    _ => self.rows::<S, 4>(simd, head, first),
                }
            }
        }
    }
}

impl Lot<'_> {
    /// `M` rows of `q` from `first` on, which look at `head`.
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(&mut self, simd: S, head: usize, first: usize) {
        let lanes = S::F32_LANES;
        let size = self.head_size;
        let length = self.scores.len() / (self.q.len() / size);
        let q = &self.q[first * size..(first + M) * size];
        for lane in (0..LANES).step_by(lanes) {
            let keys = &self.keys[head * size * self.block_size + lane..];
            let mut sums = [simd.splat_f32s(0.0); M];
            for (d, keys) in keys.chunks(self.block_size).take(size).enumerate() {
                // SAFETY: a vector's numbers, and any bits are one.
                let keys = unsafe { keys[..lanes].as_ptr().cast::<S::f32s>().read_unaligned() };
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add_f32s(simd.splat_f32s(q[m * size + d]), keys, *sum);
                }
            }
            for (m, sum) in sums.into_iter().enumerate() {
                let column = (first + m) * length + self.column + lane;
                let scores = &mut self.scores[column..column + lanes];
                // SAFETY: a vector's numbers.
                unsafe { scores.as_mut_ptr().cast::<S::f32s>().write_unaligned(sum) };
            }
        }
    }
}

/// `out += Σ weight · value`, in the order of the positions; `values`: `[positions, head_size]` or more.
#[inline(always)]
fn weigh(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let mut column = 0;
    while out.len() - column >= 4 * LANES {
        weigh_columns::<{ 4 * LANES }>(weights, values, column, out);
        column += 4 * LANES;
    }
    if out.len() - column >= 3 * LANES {
        weigh_columns::<{ 3 * LANES }>(weights, values, column, out);
        column += 3 * LANES;
    }
    while out.len() - column >= LANES {
        weigh_columns::<LANES>(weights, values, column, out);
        column += LANES;
    }
    while column < out.len() {
        weigh_columns::<1>(weights, values, column, out);
        column += 1;
    }
}

#[inline(always)]
fn weigh_columns<const WIDTH: usize>(
    weights: &[f32],
    values: &[f32],
    column: usize,
    out: &mut [f32],
) {
    let size = out.len();
    let out = &mut out[column..column + WIDTH];
    let mut sums = [0.0f32; WIDTH];
    sums.copy_from_slice(out);
    for (&weight, value) in weights.iter().zip(values.chunks_exact(size)) {
        let value = &value[column..column + WIDTH];
        for i in 0..WIDTH {
            sums[i] = weight.mul_add(value[i], sums[i]);
        }
    }
    out.copy_from_slice(&sums);
}
