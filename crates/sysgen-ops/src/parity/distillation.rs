//! The cases that distillation is compared on.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::Bench;
use super::cases::some_weight;
use crate::{Distillation, Divergence, Teacher, TopK};

pub(super) fn linear_distillation(bench: &mut Bench) {
    // Positions, dim, words of the student, words of the teacher; the last ones are more than a chunk.
    let shapes = [
        (0, 4, 5, 5),
        (1, 8, 3, 3),
        (7, 33, 65, 65),
        (129, 16, 301, 260),
        (1100, 8, 97, 97),
    ];
    let divergences = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd(0.3),
        Divergence::Uld,
    ];
    for (positions, dim, vocab, teacher_vocab) in shapes {
        let targets: Vec<u32> = (0..positions as u32)
            .map(|i| (i * 7919 + 1) % vocab as u32)
            .collect();
        for divergence in divergences {
            for top in [false, true] {
                let sorted = divergence == Divergence::Uld;
                // Where two sorted probabilities are equal to rounding, the slope of what lies between them is not known:
                // among so many, some are.
                if sorted && (top || positions > 1000) {
                    continue;
                }
                let softcap = (positions > 7).then_some(3.0);
                let settings = Distillation {
                    divergence,
                    temperature: if top { 1.0 } else { 1.5 },
                    weight: 0.7,
                    cross_entropy_weight: 0.3,
                    softcap,
                };
                let case = format!(
                    "{positions}x{dim}, {vocab} and {teacher_vocab} words, {divergence:?}, top {top}"
                );
                bench.pass(&case, &[&[positions, dim], &[vocab, dim]], |x| {
                    let hidden = x[0].clone().reshape([positions, dim]);
                    let teacher = if top {
                        Teacher::Top(Arc::new(some_top(positions, vocab)))
                    } else {
                        let device = x[0].device().inner();
                        let some = |rows: usize| {
                            let all = Tensor::<1>::from_data(&some_weight(rows * dim)[..], &device);
                            all.cast(x[0].dtype()).reshape([rows, dim])
                        };
                        Teacher::Hidden {
                            hidden: some(positions),
                            head: some(teacher_vocab),
                            softcap,
                        }
                    };
                    let head = x[1].clone().reshape([vocab, dim]);
                    crate::linear_distillation(hidden, head, &targets, &teacher, settings)
                });
            }
        }
    }
}

/// A teacher with other tokens; the last positions are more than a chunk.
pub(super) fn distillation_of_spans(bench: &mut Bench) {
    for (positions, dim, vocab, teacher_vocab) in [(1, 8, 3, 3), (29, 33, 65, 60), (1100, 4, 5, 6)]
    {
        let ids = |count: usize, words: usize| -> Vec<u32> {
            (0..count)
                .map(|i| (i * 7919 + 1) as u32 % words as u32)
                .collect()
        };
        // Of one to three tokens on either side, and now and then a position in no span.
        let (mut spans, mut ours, mut theirs) = (Vec::new(), 0, 0);
        for number in 0.. {
            let lengths = [1 + number % 3, 1 + number * 5 % 4 % 3];
            if ours + lengths[0] > positions {
                break;
            }
            spans.push((ours..ours + lengths[0], theirs..theirs + lengths[1]));
            ours += lengths[0] + usize::from(number % 4 == 3);
            theirs += lengths[1];
        }
        let settings = Distillation {
            divergence: Divergence::Uld,
            temperature: 1.5,
            weight: 0.7,
            cross_entropy_weight: 0.3,
            softcap: Some(3.0),
        };
        let spans = Arc::new(spans);
        let case = format!("{positions}x{dim}, {vocab} and {teacher_vocab} words");
        bench.pass(&case, &[&[positions, dim], &[vocab, dim]], |x| {
            let device = x[0].device().inner();
            let some = |rows: usize| {
                let all = Tensor::<1>::from_data(&some_weight(rows * dim)[..], &device);
                all.cast(x[0].dtype()).reshape([rows, dim])
            };
            let teacher = Teacher::Spans {
                hidden: some(theirs),
                head: some(teacher_vocab),
                softcap: Some(3.0),
                targets: ids(theirs, teacher_vocab),
                spans: spans.clone(),
            };
            let hidden = x[0].clone().reshape([positions, dim]);
            let head = x[1].clone().reshape([vocab, dim]);
            crate::linear_distillation(hidden, head, &ids(positions, vocab), &teacher, settings)
        });
    }
}

/// Two words of each position with most of the probability.
fn some_top(positions: usize, vocab: usize) -> TopK {
    let first = |i: usize| (i * 31 % vocab) as u32;
    let second = |i: usize| ((i * 31 + 1) % vocab) as u32;
    TopK {
        k: 2,
        ids: (0..positions).flat_map(|i| [first(i), second(i)]).collect(),
        log_probabilities: [0.6f32.ln(), 0.3f32.ln()].repeat(positions),
    }
}
