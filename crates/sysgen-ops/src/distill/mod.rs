//! How far a student's next-token distributions are from a teacher's, from hidden states and heads: no logits of a whole
//! batch ever exist. Definitions are those of TRL's GKD: no factor T².

mod cpu;
mod divergence;
mod ranked;
mod spans;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, activation};

use crate::fused;

/// A distance of two distributions, p the teacher's and q the student's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// `Σ p (ln p − ln q)`
    ForwardKl,
    /// `Σ q (ln q − ln p)`
    ReverseKl,
    /// `β · KL(p‖m) + (1 − β) · KL(q‖m)` with `m = β p + (1 − β) q`, β between 0 and 1.
    Jsd(f32),
    /// `Σ |pᵢ − qᵢ|` of both distributions sorted (universal logit distillation, arXiv 2402.12030), where a span's
    /// distribution is that of its last token times the probabilities of the tokens before it in the span:
    /// `p(v) = Π p(tokenᵢ | before) · p(v | before)`. Every position of [`Teacher::Hidden`] is a span.
    Uld,
}

/// What the teacher says at every position.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // there is one at a time
pub enum Teacher {
    /// Its hidden states `[positions, dim]`, head `[vocab, dim]` and soft-cap, without autodiff. Where the two vocabularies
    /// have different sizes, what both have is compared.
    Hidden {
        /// After the final norm.
        hidden: Tensor<2>,
        /// Its output embedding.
        head: Tensor<2>,
        /// Bound of its logits.
        softcap: Option<f32>,
    },
    /// The largest probabilities; the rest is one more word, on both sides.
    Top(Arc<TopK>),
    /// A teacher with other words, which read the same text: hidden states of its own positions `[its positions, dim]`, head
    /// and soft-cap as above. What no span holds has no distance.
    Spans {
        /// After the final norm.
        hidden: Tensor<2>,
        /// Its output embedding.
        head: Tensor<2>,
        /// Bound of its logits.
        softcap: Option<f32>,
        /// The token of the text that each of its positions stands before.
        targets: Vec<u32>,
        /// Stretches of text that both have as whole tokens, in the order of the text, by the positions that predict them:
        /// the student's and the teacher's.
        spans: Arc<Vec<(Range<usize>, Range<usize>)>>,
    },
}

/// A stretch of text by the positions that predict it: the student's and the teacher's.
pub(crate) type Span = (Range<usize>, Range<usize>);

/// The `k` most likely words of every position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopK {
    /// Words of a position.
    pub k: usize,
    /// `[positions, k]`
    pub ids: Vec<u32>,
    /// Natural logarithms of their probabilities, `[positions, k]`.
    pub log_probabilities: Vec<f32>,
}

/// How teacher and student are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// The distance.
    pub divergence: Divergence,
    /// Both sides' logits are divided by it; 1 with [`Teacher::Top`].
    pub temperature: f32,
    /// Multiplies the distance.
    pub weight: f32,
    /// Multiplies the cross-entropy of the targets, which is added.
    pub cross_entropy_weight: f32,
    /// The student's soft-cap.
    pub softcap: Option<f32>,
}

/// The mixed loss of every position; gradients go to hidden and head. The distance of a span stands at its last position.
///
/// # Shapes
/// * `hidden`: `[positions, dim]`, `head`: `[vocab, dim]`, `targets`: `positions` ids below `vocab`
/// * output: `[positions]`
pub fn linear_distillation(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[u32],
    teacher: &Teacher,
    settings: Distillation,
) -> Tensor<1> {
    let ([positions, dim], [vocab, _]) = (hidden.dims(), head.dims());
    assert_eq!(
        dim,
        head.dims()[1],
        "hidden [positions, dim], head [vocab, dim]"
    );
    assert_eq!(positions, targets.len(), "one target for each position");
    match teacher {
        Teacher::Hidden { hidden, .. } => {
            assert_eq!(hidden.dims()[0], positions, "the teacher's positions");
        }
        Teacher::Spans {
            hidden,
            targets,
            spans,
            ..
        } => {
            assert_eq!(hidden.dims()[0], targets.len(), "the teacher's positions");
            assert!(
                settings.divergence == Divergence::Uld,
                "other words can be compared sorted alone"
            );
            let mut end = (0, 0);
            for (student, teacher) in spans.iter() {
                assert!(
                    end.0 <= student.start && end.1 <= teacher.start,
                    "spans follow each other"
                );
                assert!(!student.is_empty() && !teacher.is_empty(), "an empty span");
                end = (student.end, teacher.end);
            }
            assert!(
                end.0 <= positions && end.1 <= targets.len(),
                "a span ends behind the positions"
            );
        }
        Teacher::Top(top) => {
            assert_eq!(top.ids.len(), positions * top.k, "the teacher's words");
            assert!(
                top.ids.iter().all(|&id| (id as usize) < vocab),
                "a teacher's word is outside the vocabulary"
            );
            assert!(
                settings.temperature == 1.0,
                "stored probabilities have temperature 1"
            );
            assert!(
                settings.divergence != Divergence::Uld,
                "sorted distributions have to be whole"
            );
        }
    }
    if !fused::serves(&hidden) {
        return reference(hidden, head, targets, teacher, settings);
    }
    let op = cpu::LinearDistillation {
        targets: targets.to_vec(),
        dim,
        vocab,
        teacher: cpu::Side::of(teacher),
        settings,
        bf16: fused::in_bf16(&head),
    };
    fused::apply(op, [hidden.into(), head.into()], [positions])
}

/// [`linear_distillation`] in plain Burn tensors; holds all logits.
pub fn reference(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[u32],
    teacher: &Teacher,
    settings: Distillation,
) -> Tensor<1> {
    if let Teacher::Spans { .. } = teacher {
        return spans::reference(hidden, head, targets, teacher, settings);
    }
    let cap = |logits: Tensor<2>, softcap: Option<f32>| match softcap {
        Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        None => logits,
    };
    let plain = |tensor: Tensor<2>| match hidden.is_autodiff() {
        true => tensor.autodiff(),
        false => tensor,
    };
    let (positions, t) = (targets.len(), settings.temperature);
    let head = head.cast(hidden.dtype());
    let logits = cap(
        hidden.clone().matmul(head.clone().transpose()),
        settings.softcap,
    );
    let ids: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
    let ids = Tensor::<2, burn::tensor::Int>::from_data(
        TensorData::new(ids, [positions, 1]),
        &hidden.device(),
    );
    let cross_entropy = activation::log_softmax(logits.clone(), 1)
        .gather(1, ids)
        .neg();
    let (log_p, log_q) = match teacher {
        Teacher::Hidden {
            hidden,
            head,
            softcap,
        } => {
            let head = head.clone().cast(hidden.dtype());
            let teacher = plain(cap(hidden.clone().matmul(head.transpose()), *softcap));
            let both = if settings.divergence == Divergence::Uld {
                usize::MAX
            } else {
                teacher.dims()[1].min(logits.dims()[1])
            };
            let words = |logits: Tensor<2>| {
                let width = logits.dims()[1].min(both);
                activation::log_softmax(logits.narrow(1, 0, width).div_scalar(t), 1)
            };
            (words(teacher), words(logits))
        }
        Teacher::Top(top) => {
            let device = hidden.device();
            let ids: Vec<i64> = top.ids.iter().map(|&id| i64::from(id)).collect();
            let ids = Tensor::<2, burn::tensor::Int>::from_data(
                TensorData::new(ids, [positions, top.k]),
                &device,
            );
            let p = Tensor::<2>::from_data(
                TensorData::new(top.log_probabilities.clone(), [positions, top.k]),
                &device,
            );
            let q = activation::log_softmax(logits, 1).gather(1, ids);
            let with_rest = |log: Tensor<2>| {
                let rest = log
                    .clone()
                    .exp()
                    .sum_dim(1)
                    .neg()
                    .add_scalar(1.0)
                    .clamp_min(divergence::LEAST)
                    .log();
                Tensor::cat(vec![log, rest], 1)
            };
            (with_rest(p), with_rest(q))
        }
        Teacher::Spans { .. } => unreachable!("spans have a reference of their own"),
    };
    let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
    let distance = match settings.divergence {
        Divergence::ForwardKl => (p * (log_p - log_q)).sum_dim(1),
        Divergence::ReverseKl => (q * (log_q - log_p)).sum_dim(1),
        Divergence::Jsd(beta) => {
            let log_m = (p.clone().mul_scalar(beta) + q.clone().mul_scalar(1.0 - beta)).log();
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
    };
    let mixed = distance.mul_scalar(settings.weight)
        + cross_entropy.mul_scalar(settings.cross_entropy_weight);
    mixed.reshape([positions])
}
