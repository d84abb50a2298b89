//! `linear_distillation` against its plain reference.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use sysgen_ops::{Distillation, Divergence, Teacher, TopK, linear_distillation, reference};

use crate::agree;
use crate::common::tensor;

/// Student and reference with random hidden states and head, learning from `teacher`.
fn distillation_agrees(
    name: &str,
    [positions, dim, vocab]: [usize; 3],
    targets: &[u32],
    teacher: &Teacher,
    divergence: Divergence,
    temperature: f32,
) {
    type Op = fn(Tensor<2>, Tensor<2>, &[u32], &Teacher, Distillation) -> Tensor<1>;
    let settings = Distillation {
        divergence,
        temperature,
        weight: 0.7,
        cross_entropy_weight: 0.3,
        softcap: Some(3.0),
    };
    let ops = [linear_distillation as Op, reference::linear_distillation];
    agree(name, &[&[positions, dim], &[vocab, dim]], ops, |op, x| {
        let hidden = x[0].clone().reshape([positions, dim]);
        let head = x[1].clone().reshape([vocab, dim]);
        op(hidden, head, targets, teacher, settings)
    });
}

#[test]
fn linear_distillation_agrees() {
    let kinds = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd(0.1),
        Divergence::Jsd(0.5),
        Divergence::Uld,
    ];
    // The last two: the teacher has fewer words, or more.
    let sizes = [
        ([1, 4, 5], 5),
        ([7, 33, 65], 65),
        ([70, 20, 40], 33),
        ([9, 20, 33], 40),
    ];
    let device = Device::flex();
    for (size, teacher_vocab) in sizes {
        let [positions, dim, vocab] = size;
        let targets: Vec<u32> = (0..positions as u32)
            .map(|i| i * 7 % 33 % vocab as u32)
            .collect();
        let run = Teacher::Hidden {
            hidden: tensor(11, [positions, 8], &device),
            head: tensor(12, [teacher_vocab, 8], &device),
            softcap: Some(5.0),
        };
        let stored = top_words(positions, 3);
        for kind in kinds {
            for (what, teacher, temperature) in [("run", &run, 2.0), ("stored", &stored, 1.0)] {
                if what == "stored" && kind == Divergence::Uld {
                    continue;
                }
                let name = format!("{kind:?}, {what}, {positions}x{dim}x{vocab}");
                distillation_agrees(&name, size, &targets, teacher, kind, temperature);
            }
        }
    }
}

#[test]
fn linear_distillation_agrees_across_vocabularies() {
    // Spans of one and of several tokens on either side, positions between them, and a text that no span ends; the last case
    // has more positions than are held at a time.
    let device = Device::flex();
    let sizes = [
        (1, 4, 5, 7),
        (12, 33, 65, 40),
        (12, 20, 33, 90),
        (1100, 8, 50, 70),
    ];
    for (positions, dim, vocab, teacher_vocab) in sizes {
        let mut spans = Vec::new();
        let (mut ours, mut theirs) = (0, 0);
        for number in 0.. {
            let (of_student, of_teacher) = [(1, 1), (2, 1), (1, 3), (3, 2)][number % 4];
            if ours + of_student > positions {
                break;
            }
            spans.push((ours..ours + of_student, theirs..theirs + of_teacher));
            // One of either side in five belongs to no span.
            ours += of_student + usize::from(number % 5 == 4);
            theirs += of_teacher + usize::from(number % 5 == 2);
        }
        theirs += 1;
        let words = |count: usize, vocab: usize| -> Vec<u32> {
            (0..count as u32).map(|i| i * 7 % vocab as u32).collect()
        };
        let (targets, of_teacher) = (words(positions, vocab), words(theirs, teacher_vocab));
        for spans in [
            spans.clone(),
            spans[..spans.len().div_ceil(2)].to_vec(),
            Vec::new(),
        ] {
            let teacher = Teacher::Spans {
                hidden: tensor(11, [theirs, 8], &device),
                head: tensor(12, [teacher_vocab, 8], &device),
                softcap: Some(5.0),
                targets: of_teacher.clone(),
                spans: Arc::new(spans.clone()),
            };
            let name = format!("{} spans, {positions}x{dim}x{vocab}", spans.len());
            let size = [positions, dim, vocab];
            distillation_agrees(&name, size, &targets, &teacher, Divergence::Uld, 2.0);
        }
    }
}

/// Three likely words of every position.
fn top_words(positions: usize, k: usize) -> Teacher {
    let words = (0..positions).flat_map(|at| (0..k).map(move |i| ((at + i) % 5) as u32));
    let shares = (0..positions * k).map(|i| (0.1f32 + 0.05 * (i % 4) as f32).ln());
    Teacher::Top(Arc::new(TopK {
        k,
        ids: words.collect(),
        log_probabilities: shares.collect(),
    }))
}
