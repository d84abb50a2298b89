//! `linear_distillation` on the CPU, some positions at a time: both sides' logits, the losses, the gradient of the logits in
//! their place, and its two products. As in `linear_cross_entropy`, the gradient is made on the way forward.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{Distillation, Divergence, Span, Teacher, TopK, divergence::LEAST, ranked};
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
    Hidden(Whole),
    Top(Arc<TopK>),
    Spans {
        model: Whole,
        targets: Vec<u32>,
        spans: Arc<Vec<Span>>,
    },
}

/// A teacher whose logits are made here.
#[derive(Debug)]
pub(super) struct Whole {
    hidden: FlexTensor,
    head: FlexTensor,
    dim: usize,
    vocab: usize,
    softcap: Option<f32>,
}

impl Side {
    pub(super) fn of(teacher: &Teacher) -> Side {
        match teacher {
            Teacher::Hidden {
                hidden,
                head,
                softcap,
            } => Side::Hidden(Whole::new(hidden, head, *softcap)),
            Teacher::Top(top) => Side::Top(top.clone()),
            Teacher::Spans {
                hidden,
                head,
                softcap,
                targets,
                spans,
            } => Side::Spans {
                model: Whole::new(hidden, head, *softcap),
                targets: targets.clone(),
                spans: spans.clone(),
            },
        }
    }

    /// What is compared with what, in order: every position, or every span and the positions between.
    fn units(&self, positions: usize) -> Vec<Span> {
        let one = |at: usize, teacher: Range<usize>| (at..at + 1, teacher);
        match self {
            Side::Hidden(_) => (0..positions).map(|at| one(at, at..at + 1)).collect(),
            Side::Top(_) => (0..positions).map(|at| one(at, 0..0)).collect(),
            Side::Spans { spans, .. } => {
                let mut units = Vec::new();
                let (mut ours, mut theirs) = (0, 0);
                for (student, teacher) in spans.iter() {
                    units.extend((ours..student.start).map(|at| one(at, theirs..theirs)));
                    units.push((student.clone(), teacher.clone()));
                    (ours, theirs) = (student.end, teacher.end);
                }
                units.extend((ours..positions).map(|at| one(at, theirs..theirs)));
                units
            }
        }
    }

    /// The teacher's logits of some of its positions; none of one that is stored.
    fn logits(&self, positions: Range<usize>) -> Vec<f32> {
        match self {
            Side::Hidden(model) | Side::Spans { model, .. } => model.logits(positions),
            Side::Top(_) => Vec::new(),
        }
    }
}

impl Whole {
    fn new(hidden: &Tensor<2>, head: &Tensor<2>, softcap: Option<f32>) -> Whole {
        let [vocab, dim] = head.dims();
        Whole {
            hidden: fused::frozen(hidden.clone()),
            head: fused::frozen(head.clone()),
            dim,
            vocab,
            softcap,
        }
    }

    /// The soft-capped logits of some positions.
    fn logits(&self, positions: Range<usize>) -> Vec<f32> {
        if positions.is_empty() {
            return Vec::new();
        }
        let rows = &slice(&self.hidden)[positions.start * self.dim..positions.end * self.dim];
        let mut logits = numbers(&self.head).project(rows, None, self.dim, self.vocab);
        capped(&mut logits, self.softcap);
        logits
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
        let units = self.teacher.units(positions);
        let mut done = 0;
        while done < units.len() {
            let units = &units[done..done + self.fitting(&units[done..])];
            done += units.len();
            let (from, to) = both_ends(units, |unit| &unit.0);
            let (of_teacher, until) = both_ends(units, |unit| &unit.1);
            let rows = &hidden[from * self.dim..to * self.dim];
            let mut logits = head.project(rows, None, self.dim, self.vocab);
            let teacher = self.teacher.logits(of_teacher..until);
            let width = teacher.len() / (until - of_teacher).max(1);
            let mut parts = Vec::with_capacity(units.len());
            let mut rest = logits.as_mut_slice();
            for unit in units {
                let (part, others) = rest.split_at_mut(unit.0.len() * self.vocab);
                parts.push((unit, part));
                rest = others;
            }
            losses.par_extend(parts.into_par_iter().flat_map_iter(|(unit, logits)| {
                let theirs = &unit.1;
                let teacher = &teacher
                    [(theirs.start - of_teacher) * width..(theirs.end - of_teacher) * width];
                self.unit(unit, logits, teacher, &factors[unit.0.clone()])
            }));
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

    /// How many units are held at a time; a long span alone, if need be.
    fn fitting(&self, units: &[Span]) -> usize {
        let (least, most) = CHUNK_POSITIONS;
        let chunk = (CHUNK_LOGITS / self.vocab.max(1)).clamp(least, most);
        let first = &units[0];
        let fits = |unit: &Span| {
            unit.0.end - first.0.start <= chunk && unit.1.end.saturating_sub(first.1.start) <= chunk
        };
        units.iter().take_while(|unit| fits(unit)).count().max(1)
    }

    /// The losses of a unit's positions; their logits become their gradients times their factors.
    fn unit(
        &self,
        (ours, theirs): &Span,
        logits: &mut [f32],
        teacher: &[f32],
        factors: &[f32],
    ) -> Vec<f32> {
        let Distillation {
            divergence,
            temperature,
            weight,
            cross_entropy_weight,
            softcap,
        } = self.settings;
        capped(logits, softcap);
        let mut gradient = vec![0.0; logits.len()];
        let distance = match &self.teacher {
            Side::Top(top) => {
                let position = ours.start;
                let words = position * top.k..(position + 1) * top.k;
                let (ids, log_p) = (&top.ids[words.clone()], &top.log_probabilities[words]);
                of_top(divergence, ids, log_p, logits, weight, &mut gradient)
            }
            // Its only position is its last one: what stands there is not asked for.
            Side::Hidden(_) if divergence == Divergence::Uld => {
                let ours = (&*logits, &self.targets[ours.clone()]);
                ranked::of_span(ours, (teacher, &[0]), temperature, weight, &mut gradient)
            }
            Side::Hidden(_) => of_all(
                divergence,
                temperature,
                teacher,
                logits,
                weight,
                &mut gradient,
            ),
            Side::Spans { .. } if theirs.is_empty() => 0.0,
            Side::Spans { targets, .. } => {
                let ours = (&*logits, &self.targets[ours.clone()]);
                let theirs = (teacher, &targets[theirs.clone()]);
                ranked::of_span(ours, theirs, temperature, weight, &mut gradient)
            }
        };
        // The distance stands at the last position, whose factor is that of all its gradients.
        let last = factors.len() - 1;
        let mut losses = Vec::with_capacity(factors.len());
        let positions = gradient.chunks_exact(self.vocab);
        for (at, (gradient, logits)) in positions
            .zip(logits.chunks_exact_mut(self.vocab))
            .enumerate()
        {
            let target = self.targets[ours.start + at] as usize;
            let log_sum = log_sum(logits, 1.0);
            let cross_entropy = cross_entropy_weight * (log_sum - logits[target]);
            let own = cross_entropy_weight * factors[at];
            for (word, (gradient, logit)) in gradient.iter().zip(logits.iter_mut()).enumerate() {
                let hit = f32::from(u8::from(word == target));
                let slope = softcap.map_or(1.0, |cap| 1.0 - (*logit / cap).powi(2));
                let all = factors[last] * gradient + own * ((*logit - log_sum).exp() - hit);
                *logit = slope * all;
            }
            let distance = if at == last { weight * distance } else { 0.0 };
            losses.push(distance + cross_entropy);
        }
        losses
    }
}

/// From the first one's beginning to the last one's end.
fn both_ends(units: &[Span], side: impl Fn(&Span) -> &Range<usize>) -> (usize, usize) {
    let (first, last) = (&units[0], &units[units.len() - 1]);
    (side(first).start, side(last).end)
}

fn capped(logits: &mut [f32], softcap: Option<f32>) {
    if let Some(cap) = softcap {
        logits
            .iter_mut()
            .for_each(|logit| *logit = cap * (*logit / cap).tanh());
    }
}

/// The distance over the words both vocabularies have; adds its gradient by the student's logits.
fn of_all(
    divergence: Divergence,
    temperature: f32,
    teacher: &[f32],
    logits: &[f32],
    weight: f32,
    gradient: &mut [f32],
) -> f32 {
    let both = teacher.len().min(logits.len());
    let log_p = log_softmax(&teacher[..both], temperature);
    let log_q = log_softmax(&logits[..both], temperature);
    let mut slopes = vec![0.0; both];
    let distance = divergence.distance(&log_p, &log_q, &mut slopes);
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

/// `l / T − ln Σ exp(l / T)`.
pub(super) fn log_softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let log_sum = log_sum(logits, temperature);
    let logits = logits.iter();
    logits.map(|logit| logit / temperature - log_sum).collect()
}

/// `ln Σ exp(l / T)`.
pub(super) fn log_sum(logits: &[f32], temperature: f32) -> f32 {
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
pub(super) fn mean(log_q: &[f32], slopes: &[f32]) -> f32 {
    let products = log_q.iter().zip(slopes);
    products
        .map(|(q, slope)| f64::from(q.exp() * slope))
        .sum::<f64>() as f32
}
