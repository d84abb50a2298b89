//! How far a student's next-token distributions are from a teacher's, from hidden states and heads: no logits of a whole
//! batch ever exist. Definitions are those of TRL's GKD: no factor T².

mod cpu;
#[cfg(feature = "cube")]
mod cuda;
mod divergence;
mod ranked;
mod reference;
mod spans;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

pub use reference::reference;

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

/// Bytes of one side's logits that exist at a time on a device; going back holds some twenty times as much. Where a head of
/// `head` numbers learns, a gradient in its shape is made and added for each slice of the positions, so slices grow with it.
pub fn distilled_logit_bytes(head: usize, learns: bool) -> usize {
    let (least, most) = (64 << 20, 256 << 20);
    if learns {
        (head * size_of::<f32>() / 8).clamp(least, most)
    } else {
        least
    }
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
    #[cfg(feature = "cube")]
    if device::serves(&hidden) {
        let op = cuda::LinearDistillation {
            targets: targets.to_vec(),
            teacher: teacher.clone(),
            settings,
        };
        return device::apply(op, [hidden.into(), head.into()]);
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
