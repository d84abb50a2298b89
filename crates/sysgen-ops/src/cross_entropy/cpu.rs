//! `linear_cross_entropy` on the CPU. The gradient is made in the forward pass, while a chunk's logits are at hand: the
//! loss is nearly always summed, and then the gradient that comes back is one factor for all positions.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::rows::{Positions, Softmax, gradients, statistics};
use crate::fused::{Fused, Numbers, Pass, numbers};
use crate::matmul::{Block, Matrix, block};
use crate::pack::Number;
use crate::product::{MAX_TILE_COLUMNS, Shared};

/// Logits held at a time: 32 MB, or 96 million numbers where the vocabulary is so large that 256 positions need them.
const CHUNK_LOGITS: usize = 8 << 20;
const MOST_LOGITS: usize = 96 << 20;
/// Positions in a chunk: fewer would read and write the head's gradient too often.
const CHUNK_POSITIONS: (usize, usize) = (256, 1024);
/// Vocabulary entries that one task takes through softmax and products while they are in its cache.
const STRIPE: usize = 10 * MAX_TILE_COLUMNS;
/// Partial sums of hidden's gradient. A fixed number, so that threads do not change the order of addition.
const PARTS: usize = 8;

/// The fused operation; inputs are hidden and head; saves the gradients of both for an incoming gradient of 1.
#[derive(Debug)]
pub(super) struct LinearCrossEntropy {
    pub(super) targets: Vec<u32>,
    pub(super) dim: usize,
    pub(super) vocab: usize,
    pub(super) weight: f32,
    pub(super) softcap: Option<f32>,
    /// The head, where it is kept in bf16.
    pub(super) bf16: Option<FlexTensor>,
}

impl Fused for LinearCrossEntropy {
    fn forward(&self, inputs: &[&[f32]], wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let weights = vec![self.weight; self.targets.len()];
        self.losses(inputs, wanted, &weights)
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        pass.saved_or(|pass| {
            let weights: Vec<f32> = pass.gradient.iter().map(|g| g * self.weight).collect();
            self.losses(pass.inputs, pass.wanted, &weights).1
        })
    }
}

impl LinearCrossEntropy {
    /// Weighted losses, and the wanted gradients of their sum.
    fn losses(
        &self,
        inputs: &[&[f32]],
        wanted: &[bool],
        weights: &[f32],
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        match self.bf16.as_ref().map_or(Numbers::F32(inputs[1]), numbers) {
            Numbers::F32(head) => self.run(inputs[0], head, wanted, weights),
            Numbers::Bf16(head) => self.run(inputs[0], head, wanted, weights),
        }
    }

    fn run<T: Number>(
        &self,
        hidden: &[f32],
        head: &[T],
        wanted: &[bool],
        weights: &[f32],
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut losses = Vec::with_capacity(self.targets.len());
        let mut d_hidden = vec![0.0; if wanted[0] { hidden.len() } else { 0 }];
        let mut d_head = vec![0.0; if wanted[1] { head.len() } else { 0 }];
        let (least, most) = CHUNK_POSITIONS;
        let chunk = (CHUNK_LOGITS / self.vocab)
            .clamp(least, most)
            .min(MOST_LOGITS / self.vocab)
            .clamp(1, self.targets.len().max(1));
        let mut logits = vec![0.0; chunk * self.vocab];
        for from in (0..self.targets.len()).step_by(chunk) {
            let to = (from + chunk).min(self.targets.len());
            let hidden = &hidden[from * self.dim..to * self.dim];
            let targets = &self.targets[from..to];
            let weights = &weights[from..to];
            let softmax = self.logits(hidden, head, &mut logits);
            losses.extend(softmax.iter().zip(targets).zip(weights).enumerate().map(
                |(row, ((softmax, &target), &weight))| {
                    weight * (softmax.log_sum() - logits[row * self.vocab + target as usize])
                },
            ));
            let positions = Positions {
                targets,
                weights,
                softmax: &softmax,
                softcap: self.softcap,
            };
            let chunk = Chunk {
                op: self,
                hidden,
                head,
                positions,
            };
            if wanted[0] || wanted[1] {
                let d_hidden = wanted[0].then(|| &mut d_hidden[from * self.dim..to * self.dim]);
                chunk.gradients(&mut logits, d_hidden, wanted[1].then_some(&mut d_head));
            }
        }
        (losses, vec![d_hidden, d_head])
    }

    /// Fills the logits of a chunk, soft-capped, and returns maximum and sum of exponents of every position.
    fn logits<T: Number>(&self, hidden: &[f32], head: &[T], logits: &mut [f32]) -> Vec<Softmax> {
        let (dim, vocab) = (self.dim, self.vocab);
        let rows = hidden.len() / dim;
        let shared = Shared(logits.as_mut_ptr());
        let stripes: Vec<Vec<Softmax>> = (0..vocab.div_ceil(STRIPE))
            .into_par_iter()
            .map(|stripe| {
                let part = stripe_of(stripe, vocab, rows);
                // SAFETY: logits hold [rows, vocab] and this task alone has these columns of them.
                unsafe {
                    let (a, b) = (Matrix::rows(hidden, dim), Matrix::transposed(head, dim));
                    block(a, b, part, dim, shared, vocab, false);
                    let start = shared.at(part.column);
                    statistics(start, vocab, rows, part.columns, self.softcap)
                }
            })
            .collect();
        let mut total = vec![Softmax::default(); rows];
        for stripe in stripes {
            total.iter_mut().zip(stripe).for_each(|(a, b)| a.add(b));
        }
        total
    }
}

/// Positions whose logits exist.
struct Chunk<'a, T> {
    op: &'a LinearCrossEntropy,
    hidden: &'a [f32],
    head: &'a [T],
    positions: Positions<'a>,
}

impl<T: Number> Chunk<'_, T> {
    /// Makes the gradient of the logits, a stripe at a time, and adds its two products: `d_hidden += dl · head`, `d_head += dlᵀ · hidden`.
    fn gradients(
        &self,
        logits: &mut [f32],
        d_hidden: Option<&mut [f32]>,
        d_head: Option<&mut Vec<f32>>,
    ) {
        let (dim, vocab, rows) = (self.op.dim, self.op.vocab, self.positions.targets.len());
        let shared = Shared(logits.as_mut_ptr());
        let d_head = d_head.map(|values| Shared(values.as_mut_ptr()));
        let stripes = vocab.div_ceil(STRIPE);
        let per_part = stripes.div_ceil(PARTS);
        let parts: Vec<Vec<f32>> = (0..stripes.div_ceil(per_part))
            .into_par_iter()
            .with_max_len(1)
            .map(|part| {
                let size = if d_hidden.is_some() { rows * dim } else { 0 };
                let mut sums = vec![0.0; size];
                let mut dl = vec![0.0; rows * STRIPE.min(vocab)];
                for stripe in part * per_part..((part + 1) * per_part).min(stripes) {
                    let Block {
                        column, columns, ..
                    } = stripe_of(stripe, vocab, rows);
                    let dl = &mut dl[..rows * columns];
                    // SAFETY: the logits hold [rows, vocab]; this task alone writes `sums`, and these rows of the
                    // head's gradient.
                    unsafe {
                        gradients(shared.at(column), vocab, column, self.positions, dl);
                        if d_hidden.is_some() {
                            let (a, b) = (
                                Matrix::rows(dl, columns),
                                Matrix::rows(&self.head[column * dim..], dim),
                            );
                            let sums = Shared(sums.as_mut_ptr());
                            block(a, b, whole(rows, dim), columns, sums, dim, true);
                        }
                        if let Some(d_head) = d_head {
                            let a = Matrix::transposed(dl, columns);
                            let b = Matrix::rows(self.hidden, dim);
                            let target = Shared(d_head.at(column * dim));
                            block(a, b, whole(columns, dim), rows, target, dim, true);
                        }
                    }
                }
                sums
            })
            .collect();
        if let Some(d_hidden) = d_hidden {
            for part in parts {
                d_hidden.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            }
        }
    }
}

fn stripe_of(stripe: usize, vocab: usize, rows: usize) -> Block {
    let column = stripe * STRIPE;
    Block {
        row: 0,
        rows,
        column,
        columns: (vocab - column).min(STRIPE),
    }
}

fn whole(rows: usize, columns: usize) -> Block {
    Block {
        row: 0,
        rows,
        column: 0,
        columns,
    }
}
