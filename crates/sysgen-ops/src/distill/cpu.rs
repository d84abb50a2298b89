//! `linear_distillation` on the CPU, some positions at a time: both sides' logits, the losses, the gradient of the logits in
//! their place, and its two products. As in `linear_cross_entropy`, the gradient is made on the way forward.

use std::sync::Arc;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{Distillation, Divergence, Teacher, TopK, divergence::LEAST, ranked};
use crate::fused::{self, Fused, Numbers, Pass, numbers, slice};
use crate::matmul::{Matrix, add_product};

/// Logits of one side held at a time: 32 MB.
const CHUNK_LOGITS: usize = 8 << 20;
/// Positions of a chunk.
const CHUNK_POSITIONS: (usize, usize) = (64, 1024);

/// The teacher as numbers.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // there is one at a time
pub(super) enum Side {
    Hidden {
        hidden: FlexTensor,
        head: FlexTensor,
        dim: usize,
        vocab: usize,
        softcap: Option<f32>,
    },
    Top(Arc<TopK>),
}

impl Side {
    pub(super) fn of(teacher: &Teacher) -> Side {
        match teacher {
            Teacher::Hidden {
                hidden,
                head,
                softcap,
            } => {
                let [vocab, dim] = head.dims();
                Side::Hidden {
                    hidden: fused::frozen(hidden.clone()),
                    head: fused::frozen(head.clone()),
                    dim,
                    vocab,
                    softcap: *softcap,
                }
            }
            Teacher::Top(top) => Side::Top(top.clone()),
        }
    }
}

/// The fused operation; inputs are hidden and head; saves the gradients of both for an incoming gradient of 1.
#[derive(Debug)]
pub(super) struct LinearDistillation {
    pub(super) targets: Vec<u32>,
    pub(super) dim: usize,
    pub(super) vocab: usize,
    pub(super) teacher: Side,
    pub(super) settings: Distillation,
    /// The head, where it is kept in bf16.
    pub(super) bf16: Option<FlexTensor>,
}

impl Fused for LinearDistillation {
    fn forward(&self, inputs: &[&[f32]], wanted: &[bool]) -> (Vec<f32>, Vec<Vec<f32>>) {
        self.run(inputs, wanted, &vec![1.0; self.targets.len()])
    }

    fn backward(&self, pass: Pass) -> Vec<Vec<f32>> {
        pass.saved_or(|pass| self.run(pass.inputs, pass.wanted, pass.gradient).1)
    }
}

impl LinearDistillation {
    /// The losses, and the wanted gradients of their sum with these factors.
    fn run(
        &self,
        inputs: &[&[f32]],
        wanted: &[bool],
        factors: &[f32],
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let hidden = inputs[0];
        let head = self.bf16.as_ref().map_or(Numbers::F32(inputs[1]), numbers);
        let positions = self.targets.len();
        let mut losses = Vec::with_capacity(positions);
        let mut d_hidden = Vec::with_capacity(if wanted[0] { hidden.len() } else { 0 });
        let mut d_head = vec![0.0; if wanted[1] { self.vocab * self.dim } else { 0 }];
        let (least, most) = CHUNK_POSITIONS;
        let chunk = (CHUNK_LOGITS / self.vocab.max(1)).clamp(least, most);
        for from in (0..positions).step_by(chunk) {
            let to = (from + chunk).min(positions);
            let rows = &hidden[from * self.dim..to * self.dim];
            let mut logits = head.project(rows, None, self.dim, self.vocab);
            let teacher = self.teacher_logits(from, to);
            let width = teacher.len() / (to - from);
            losses.par_extend(logits.par_chunks_mut(self.vocab).enumerate().map(
                |(row, logits)| {
                    let teacher = &teacher[row * width..(row + 1) * width];
                    self.position(from + row, logits, teacher, factors[from + row])
                },
            ));
            if wanted[0] {
                d_hidden.extend(head.times(&logits, self.dim, self.vocab));
            }
            if wanted[1] {
                let (left, right) = (
                    Matrix::transposed(&logits, self.vocab),
                    Matrix::rows(rows, self.dim),
                );
                add_product(left, right, (self.vocab, self.dim, to - from), &mut d_head);
            }
        }
        (losses, vec![d_hidden, d_head])
    }

    /// The teacher's soft-capped logits of some positions; none of one that is stored.
    fn teacher_logits(&self, from: usize, to: usize) -> Vec<f32> {
        let Side::Hidden {
            hidden,
            head,
            dim,
            vocab,
            softcap,
        } = &self.teacher
        else {
            return Vec::new();
        };
        let rows = &slice(hidden)[from * dim..to * dim];
        let mut logits = numbers(head).project(rows, None, *dim, *vocab);
        if let Some(cap) = softcap {
            logits
                .par_iter_mut()
                .for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        logits
    }

    /// The loss of one position; its logits become their gradient times `factor`.
    fn position(&self, position: usize, logits: &mut [f32], teacher: &[f32], factor: f32) -> f32 {
        let Distillation {
            divergence,
            temperature,
            weight,
            cross_entropy_weight,
            softcap,
        } = self.settings;
        if let Some(cap) = softcap {
            logits
                .iter_mut()
                .for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        let mut gradient = vec![0.0; logits.len()];
        let distance = match &self.teacher {
            Side::Top(top) => {
                let words = position * top.k..(position + 1) * top.k;
                let (ids, log_p) = (&top.ids[words.clone()], &top.log_probabilities[words]);
                of_top(divergence, ids, log_p, logits, weight, &mut gradient)
            }
            Side::Hidden { .. } => of_all(
                divergence,
                temperature,
                teacher,
                logits,
                weight,
                &mut gradient,
            ),
        };
        let target = self.targets[position] as usize;
        let log_sum = log_sum(logits, 1.0);
        let cross_entropy = log_sum - logits[target];
        for (word, (gradient, logit)) in gradient.iter_mut().zip(logits.iter_mut()).enumerate() {
            let hit = f32::from(u8::from(word == target));
            let slope = softcap.map_or(1.0, |cap| 1.0 - (*logit / cap).powi(2));
            let all = *gradient + cross_entropy_weight * ((*logit - log_sum).exp() - hit);
            *logit = factor * slope * all;
        }
        weight * distance + cross_entropy_weight * cross_entropy
    }
}

/// The distance over the words both vocabularies have, or over ranks; adds its gradient by the student's logits.
fn of_all(
    divergence: Divergence,
    temperature: f32,
    teacher: &[f32],
    logits: &[f32],
    weight: f32,
    gradient: &mut [f32],
) -> f32 {
    let both = match divergence {
        Divergence::Uld => usize::MAX,
        _ => teacher.len().min(logits.len()),
    };
    let log_softmax = |logits: &[f32]| -> Vec<f32> {
        let logits = &logits[..logits.len().min(both)];
        let log_sum = log_sum(logits, temperature);
        logits
            .iter()
            .map(|logit| logit / temperature - log_sum)
            .collect()
    };
    let (mut log_p, log_q) = (log_softmax(teacher), log_softmax(logits));
    let mut slopes = vec![0.0; log_q.len()];
    let distance = match divergence {
        Divergence::Uld => {
            log_p.iter_mut().for_each(|p| *p = p.exp());
            let q: Vec<f32> = log_q.iter().map(|q| q.exp()).collect();
            ranked::distance(&mut log_p, &q, &mut slopes)
        }
        _ => divergence.distance(&log_p, &log_q, &mut slopes),
    };
    let mean = mean(&log_q, &slopes);
    for ((gradient, log_q), slope) in gradient.iter_mut().zip(&log_q).zip(&slopes) {
        *gradient += weight / temperature * log_q.exp() * (slope - mean);
    }
    distance
}

/// The distance over the teacher's words and the rest as one; adds its gradient by the student's logits.
fn of_top(
    divergence: Divergence,
    ids: &[u32],
    log_p: &[f32],
    logits: &[f32],
    weight: f32,
    gradient: &mut [f32],
) -> f32 {
    let log_sum = log_sum(logits, 1.0);
    let rest = |log: &[f32]| {
        let known: f64 = log.iter().map(|log| f64::from(*log).exp()).sum();
        ((1.0 - known) as f32).max(LEAST).ln()
    };
    let mut log_q: Vec<f32> = ids
        .iter()
        .map(|&id| logits[id as usize] - log_sum)
        .collect();
    log_q.push(rest(&log_q));
    let mut log_p = log_p.to_vec();
    log_p.push(rest(&log_p));
    let mut slopes = vec![0.0; log_q.len()];
    let distance = divergence.distance(&log_p, &log_q, &mut slopes);
    let mean = mean(&log_q, &slopes);
    let of_rest = slopes[ids.len()];
    for (gradient, logit) in gradient.iter_mut().zip(logits) {
        *gradient += weight * (logit - log_sum).exp() * (of_rest - mean);
    }
    for (&id, slope) in ids.iter().zip(&slopes) {
        let id = id as usize;
        gradient[id] += weight * (logits[id] - log_sum).exp() * (slope - of_rest);
    }
    distance
}

/// `ln Σ exp(l / T)`.
fn log_sum(logits: &[f32], temperature: f32) -> f32 {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &l| {
        if l > most || l.is_nan() { l } else { most }
    });
    let sum: f64 = logits
        .iter()
        .map(|l| f64::from(((l - most) / temperature).exp()))
        .sum();
    most / temperature + sum.ln() as f32
}

/// `Σ q · slope`.
fn mean(log_q: &[f32], slopes: &[f32]) -> f32 {
    let products = log_q.iter().zip(slopes);
    products
        .map(|(q, slope)| f64::from(q.exp() * slope))
        .sum::<f64>() as f32
}
