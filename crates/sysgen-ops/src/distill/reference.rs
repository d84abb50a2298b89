//! `linear_distillation` in plain Burn tensors: all logits at once, or those of some positions for `cuda`.

use burn::tensor::{Int, Tensor, TensorData, activation};

use super::spans::of_spans;
use super::{Distillation, Divergence, Span, Teacher, divergence::LEAST};

/// [`linear_distillation`](crate::linear_distillation) in plain Burn tensors; holds all logits.
pub fn reference(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[u32],
    teacher: &Teacher,
    settings: Distillation,
) -> Tensor<1> {
    let logits = |hidden: &Tensor<2>, head: &Tensor<2>| {
        let head = head.clone().cast(hidden.dtype());
        hidden.clone().matmul(head.transpose())
    };
    let theirs = match teacher {
        Teacher::Hidden {
            hidden,
            head,
            softcap,
        } => Theirs::Logits(logits(hidden, head), *softcap),
        Teacher::Top(top) => Theirs::Top(top.ids.clone(), top.log_probabilities.clone()),
        Teacher::Spans { spans, .. } if spans.is_empty() => Theirs::Nothing,
        Teacher::Spans {
            hidden,
            head,
            softcap,
            targets,
            spans,
        } => Theirs::Spans {
            logits: logits(hidden, head),
            softcap: *softcap,
            targets: targets.clone(),
            spans: spans.to_vec(),
        },
    };
    losses(logits(&hidden, &head), targets, theirs, settings)
}

/// What the teacher says of some positions.
#[allow(clippy::large_enum_variant)] // there is one at a time
pub(super) enum Theirs {
    /// Its logits `[positions, vocab]` before the soft-cap, without autodiff.
    Logits(Tensor<2>, Option<f32>),
    /// Its most likely words and their log-probabilities, `[positions, k]`.
    Top(Vec<u32>, Vec<f32>),
    /// The logits of its own tokens as above, the tokens, and which spans of both sides are compared.
    Spans {
        logits: Tensor<2>,
        softcap: Option<f32>,
        targets: Vec<u32>,
        spans: Vec<Span>,
    },
    /// None of them is compared.
    Nothing,
}

/// The losses from the student's logits `[positions, vocab]` before the soft-cap.
pub(super) fn losses(
    logits: Tensor<2>,
    targets: &[u32],
    theirs: Theirs,
    settings: Distillation,
) -> Tensor<1> {
    let (positions, t) = (targets.len(), settings.temperature);
    let device = logits.device();
    let logits = capped(logits, settings.softcap);
    let cross_entropy = activation::log_softmax(logits.clone(), 1)
        .gather(1, integers(targets, [positions, 1], &device))
        .neg();
    let in_graph = logits.is_autodiff();
    let beside = |theirs: Tensor<2>, softcap: Option<f32>| {
        let theirs = if in_graph { theirs.autodiff() } else { theirs };
        capped(theirs, softcap)
    };
    let softened = |logits: Tensor<2>| activation::log_softmax(logits.div_scalar(t), 1);
    let distances = match theirs {
        Theirs::Logits(theirs, softcap) => {
            let theirs = beside(theirs, softcap);
            let both = match settings.divergence {
                Divergence::Uld => usize::MAX,
                _ => theirs.dims()[1].min(logits.dims()[1]),
            };
            let words = |logits: Tensor<2>| {
                let width = logits.dims()[1].min(both);
                softened(logits.narrow(1, 0, width))
            };
            distance(settings.divergence, words(theirs), words(logits))
        }
        Theirs::Top(ids, log_probabilities) => {
            let shape = [positions, ids.len() / positions.max(1)];
            let p = Tensor::<2>::from_data(TensorData::new(log_probabilities, shape), &device);
            let q = activation::log_softmax(logits, 1).gather(1, integers(&ids, shape, &device));
            distance(settings.divergence, with_rest(p), with_rest(q))
        }
        Theirs::Spans {
            logits: theirs,
            softcap,
            targets: their_targets,
            spans,
        } => {
            let [q, p] = [logits, beside(theirs, softcap)].map(softened);
            of_spans([p, q], [&their_targets, targets], &spans)
        }
        Theirs::Nothing => cross_entropy.clone().mul_scalar(0.0),
    };
    let mixed = distances.mul_scalar(settings.weight)
        + cross_entropy.mul_scalar(settings.cross_entropy_weight);
    mixed.reshape([positions])
}

/// The distance at every position, `[positions, 1]`.
pub(super) fn distance(divergence: Divergence, log_p: Tensor<2>, log_q: Tensor<2>) -> Tensor<2> {
    let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
    match divergence {
        Divergence::ForwardKl => (p * (log_p - log_q)).sum_dim(1),
        Divergence::ReverseKl => (q * (log_q - log_p)).sum_dim(1),
        Divergence::Jsd(beta) => {
            // Words that neither side gives anything to: 0 · ln 0 would be no number.
            let m = p.clone().mul_scalar(beta) + q.clone().mul_scalar(1.0 - beta);
            let log_m = m.clamp_min(f32::MIN_POSITIVE).log();
            (p * (log_p - log_m.clone())).sum_dim(1).mul_scalar(beta)
                + (q * (log_q - log_m)).sum_dim(1).mul_scalar(1.0 - beta)
        }
        Divergence::Uld => {
            let (p, q) = (p.sort_descending(1), q.sort_descending(1));
            let both = p.dims()[1].min(q.dims()[1]);
            let rest = |x: &Tensor<2>| match x.dims()[1] - both {
                0 => x.clone().sum_dim(1).mul_scalar(0.0),
                more => x.clone().narrow(1, both, more).sum_dim(1),
            };
            let surplus = rest(&p) + rest(&q);
            (p.narrow(1, 0, both) - q.narrow(1, 0, both))
                .abs()
                .sum_dim(1)
                + surplus
        }
    }
}

fn capped(logits: Tensor<2>, softcap: Option<f32>) -> Tensor<2> {
    match softcap {
        Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        None => logits,
    }
}

/// The words that were not stored as one more.
fn with_rest(log: Tensor<2>) -> Tensor<2> {
    let known = log.clone().exp().sum_dim(1);
    let rest = known.neg().add_scalar(1.0).clamp_min(LEAST).log();
    Tensor::cat(vec![log, rest], 1)
}

pub(super) fn integers(
    values: &[u32],
    shape: [usize; 2],
    device: &burn::tensor::Device,
) -> Tensor<2, Int> {
    let values: Vec<i64> = values.iter().map(|&value| i64::from(value)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}
