//! Training attention on the CPU: one task for each row and kv head, scores for one block of queries at a time.
//!
//! With `s = scale · q·k` (soft-capped), `P = exp(s − lse)`, `O = P V`, the gradient recomputes P from the saved lse:
//! `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P ∘ (dP − rowsum(dO ∘ O))`, `dQ = dS K`, `dK = dSᵀ Q`
//! (FlashAttention-2, algorithm 2).

use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use crate::fused::{Fused, Pass};
use crate::product::{Product, Shared, TILE_ROWS};
use crate::simd::{dot, exp, max, sum, tanh, vectorised};

/// Queries whose scores exist together.
const BLOCK: usize = 64;
/// Multiply-adds below which one thread does it all.
const PARALLEL_WORK: usize = 1 << 18;

/// The fused operation; inputs are q, k and v; saves the log-sum-exp of `[batch, heads, time]`.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) batch: usize,
    pub(super) time: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) size: usize,
    /// [`Segments::first_visible`](super::Segments::first_visible).
    pub(super) first: Vec<usize>,
    pub(super) shape: AttentionShape,
}

/// The queries `from..to` of one head and the keys `low..to` that any of them sees.
#[derive(Clone, Copy)]
struct Block {
    row: usize,
    head: usize,
    from: usize,
    to: usize,
    low: usize,
}

impl Block {
    fn queries(&self) -> usize {
        self.to - self.from
    }

    fn keys(&self) -> usize {
        self.to - self.low
    }
}

impl Fused for Attention {
    fn forward(&self, inputs: &[&[f32]], _wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        let mut out = vec![0.0; q.len()];
        let mut sums = vec![0.0; self.batch * self.heads * self.time];
        let (shared_out, shared_sums) = (Shared(out.as_mut_ptr()), Shared(sums.as_mut_ptr()));
        self.for_each_kv_head(|row, kv_head| {
            let keys = self.transposed(k, row, kv_head);
            let mut scores = vec![0.0; BLOCK * self.time];
            for block in self.blocks(row, kv_head) {
                let width = block.keys();
                let scores = &mut scores[..block.queries() * width];
                self.scores(q, &keys, block, scores);
                let mut scale = [0.0; BLOCK];
                for (index, scores) in scores.chunks_exact_mut(width).enumerate() {
                    let i = block.from + index;
                    let (total, log_sum) = exponents(scores, self.visible(block, i), self.shape);
                    scale[index] = if total > 0.0 || total.is_nan() {
                        1.0 / total
                    } else {
                        0.0
                    };
                    // SAFETY: this task alone writes this head's sums.
                    unsafe {
                        *shared_sums.at((row * self.heads + block.head) * self.time + i) = log_sum;
                    }
                }
                let (value, stride) = self.kv_at(row, block.low, kv_head);
                let target = self.q_at(block);
                // SAFETY: inside v and out; this task alone writes this head's output.
                unsafe {
                    Product {
                        a: scores.as_ptr(),
                        a_row: width,
                        a_column: 1,
                        a_tile: TILE_ROWS * width,
                        b: v[value..].as_ptr(),
                        b_row: stride,
                        c: shared_out.at(target),
                        c_row: self.heads * self.size,
                        m: block.queries(),
                        n: self.size,
                        k: width,
                        accumulate: false,
                        ahead: None,
                    }
                    .run();
                    for (index, scale) in scale[..block.queries()].iter().enumerate() {
                        let start = shared_out.at(target + index * self.heads * self.size);
                        for x in std::slice::from_raw_parts_mut(start, self.size) {
                            *x *= scale;
                        }
                    }
                }
            }
        });
        (out, vec![sums])
    }

    fn keeps_output(&self) -> bool {
        true
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        let log_sums = &pass.saved[0];
        let (q, k, v) = (pass.inputs[0], pass.inputs[1], pass.inputs[2]);
        let mut results = vec![vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
        let [dq, dk, dv] = [0, 1, 2].map(|index| Shared(results[index].as_mut_ptr()));
        let q_stride = self.heads * self.size;
        self.for_each_kv_head(|row, kv_head| {
            let keys = self.transposed(k, row, kv_head);
            let values = self.transposed(v, row, kv_head);
            let mut weights = vec![0.0; BLOCK * self.time];
            let mut d_scores = vec![0.0; BLOCK * self.time];
            for block in self.blocks(row, kv_head) {
                let (queries, width) = (block.queries(), block.keys());
                let weights = &mut weights[..queries * width];
                let d_scores = &mut d_scores[..queries * width];
                self.scores(q, &keys, block, weights);
                self.scores(pass.gradient, &values, block, d_scores);
                let at = self.q_at(block);
                let rows = weights
                    .chunks_exact_mut(width)
                    .zip(d_scores.chunks_exact_mut(width));
                for (index, (weights, d_scores)) in rows.enumerate() {
                    let i = block.from + index;
                    let log_sum = log_sums[(row * self.heads + block.head) * self.time + i];
                    let here = at + index * q_stride;
                    score_gradient(
                        weights,
                        d_scores,
                        self.visible(block, i),
                        self.shape,
                        log_sum,
                        &pass.output[here..here + self.size],
                        &pass.gradient[here..here + self.size],
                    );
                }
                let (low, kv_stride) = self.kv_at(row, block.low, kv_head);
                // SAFETY: the offsets are inside tensors of these shapes; this task alone writes this kv head's
                // gradients and those of its query heads.
                unsafe {
                    let scores_times = |b: &[f32], c: *mut f32| Product {
                        a: d_scores.as_ptr(),
                        a_row: width,
                        a_column: 1,
                        a_tile: TILE_ROWS * width,
                        b: b.as_ptr(),
                        b_row: kv_stride,
                        c,
                        c_row: q_stride,
                        m: queries,
                        n: self.size,
                        k: width,
                        accumulate: false,
                        ahead: None,
                    };
                    scores_times(&k[low..], dq.at(at)).run();
                    let transposed_times = |a: &[f32], b: &[f32], c: *mut f32| Product {
                        a: a.as_ptr(),
                        a_row: 1,
                        a_column: width,
                        a_tile: TILE_ROWS,
                        b: b.as_ptr(),
                        b_row: q_stride,
                        c,
                        c_row: kv_stride,
                        m: width,
                        n: self.size,
                        k: queries,
                        accumulate: true,
                        ahead: None,
                    };
                    transposed_times(d_scores, &q[at..], dk.at(low)).run();
                    transposed_times(weights, &pass.gradient[at..], dv.at(low)).run();
                }
            }
        });
        results
    }
}

impl Attention {
    fn for_each_kv_head(&self, task: impl Fn(usize, usize) + Sync) {
        let tasks = self.batch * self.kv_heads;
        let task = |index: usize| task(index / self.kv_heads, index % self.kv_heads);
        if self.batch * self.heads * self.time * self.time * self.size < PARALLEL_WORK {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(task);
        }
    }

    /// The blocks of queries, of every head that uses this kv head, in which anything is visible.
    fn blocks(&self, row: usize, kv_head: usize) -> impl Iterator<Item = Block> + '_ {
        let group = self.heads / self.kv_heads;
        let heads = kv_head * group..(kv_head + 1) * group;
        heads.flat_map(move |head| {
            (0..self.time).step_by(BLOCK).filter_map(move |from| {
                let to = (from + BLOCK).min(self.time);
                let visible = (from..to).filter(|i| self.first[row * self.time + i] <= *i);
                let low = visible.map(|i| self.first[row * self.time + i]).min()?;
                Some(Block {
                    row,
                    head,
                    from,
                    to,
                    low,
                })
            })
        })
    }

    /// Offset of a block's first query in a tensor shaped like q.
    fn q_at(&self, block: Block) -> usize {
        ((block.row * self.time + block.from) * self.heads + block.head) * self.size
    }

    /// Offset of position `j` of a kv head, and the distance to the next position.
    fn kv_at(&self, row: usize, j: usize, kv_head: usize) -> (usize, usize) {
        let stride = self.kv_heads * self.size;
        ((row * self.time + j) * stride + kv_head * self.size, stride)
    }

    /// One kv head of k or v as `[size, time]`.
    fn transposed(&self, x: &[f32], row: usize, kv_head: usize) -> Vec<f32> {
        let mut result = vec![0.0; self.size * self.time];
        for j in 0..self.time {
            let (start, _) = self.kv_at(row, j, kv_head);
            for (d, &x) in x[start..start + self.size].iter().enumerate() {
                result[d * self.time + j] = x;
            }
        }
        result
    }

    /// `scores[queries, keys] = x · transposed` for a block's rows of `x`, shaped like q.
    fn scores(&self, x: &[f32], transposed: &[f32], block: Block, scores: &mut [f32]) {
        let product = Product {
            a: x[self.q_at(block)..].as_ptr(),
            a_row: self.heads * self.size,
            a_column: 1,
            a_tile: TILE_ROWS * (self.heads * self.size),
            b: transposed[block.low..].as_ptr(),
            b_row: self.time,
            c: scores.as_mut_ptr(),
            c_row: block.keys(),
            m: block.queries(),
            n: block.keys(),
            k: self.size,
            accumulate: false,
            ahead: None,
        };
        // SAFETY: x has the block's rows, `transposed` is [size, time], `scores` [queries, keys].
        unsafe { product.run() };
    }

    /// Where in a block's row of scores query `i` sees keys.
    fn visible(&self, block: Block, i: usize) -> std::ops::Range<usize> {
        let first = self.first[block.row * self.time + i];
        if first > i {
            return 0..0;
        }
        first - block.low..i - block.low + 1
    }
}

vectorised! {
    /// Turns raw products into `exp(s − max)`, 0 out of sight. Returns their sum and the log-sum-exp.
    fn exponents(scores: &mut [f32], visible: Range<usize>, shape: AttentionShape) -> (f32, f32) {
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let scores = &mut scores[visible];
        if scores.is_empty() {
            return (0.0, 0.0);
        }
        scale_and_cap(scores, shape);
        let max = max(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        let total = sum(scores);
        (total, max + total.ln())
    }

    /// Turns raw products into P, and `d_scores` from dP into the gradient of the raw products.
    fn score_gradient(
        weights: &mut [f32],
        d_scores: &mut [f32],
        visible: Range<usize>,
        shape: AttentionShape,
        log_sum: f32,
        output: &[f32],
        gradient: &[f32],
    ) {
        for row in [&mut *weights, &mut *d_scores] {
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
        }
        let (weights, d_scores) = (&mut weights[visible.clone()], &mut d_scores[visible]);
        let (scale, delta) = (shape.scale, dot(output, gradient));
        scale_and_cap(weights, shape);
        match shape.softcap {
            None => {
                for (weight, d_score) in weights.iter_mut().zip(d_scores) {
                    *weight = exp(*weight - log_sum);
                    *d_score = *weight * (*d_score - delta) * scale;
                }
            }
            Some(cap) => {
                for (weight, d_score) in weights.iter_mut().zip(d_scores) {
                    let tanh = *weight / cap;
                    *weight = exp(*weight - log_sum);
                    *d_score = *weight * (*d_score - delta) * scale * (1.0 - tanh * tanh);
                }
            }
        }
    }
}

#[inline(always)]
fn scale_and_cap(scores: &mut [f32], shape: AttentionShape) {
    let scale = shape.scale;
    match shape.softcap {
        None => {
            for score in scores {
                *score *= scale;
            }
        }
        Some(cap) => {
            for score in scores {
                *score = cap * tanh(*score * scale / cap);
            }
        }
    }
}
