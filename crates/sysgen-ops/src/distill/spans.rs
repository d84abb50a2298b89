//! Spans in plain Burn tensors: what the CPU's version is compared with, and what a device runs; holds all logits.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, activation};

use super::{Distillation, Span, Teacher};

/// [`linear_distillation`](super::linear_distillation) from a teacher with other words.
pub(super) fn reference(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &[u32],
    teacher: &Teacher,
    settings: Distillation,
) -> Tensor<1> {
    let Teacher::Spans {
        hidden: of_teacher,
        head: teachers_head,
        softcap,
        targets: theirs,
        spans,
    } = teacher
    else {
        unreachable!("asked for spans alone");
    };
    let logits = |hidden: Tensor<2>, head: Tensor<2>, softcap: Option<f32>| {
        let head = head.cast(hidden.dtype());
        let logits = hidden.matmul(head.transpose());
        match softcap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    };
    let (positions, t) = (targets.len(), settings.temperature);
    let in_graph = hidden.is_autodiff();
    let q = logits(hidden, head, settings.softcap);
    let of_teacher = of_teacher.clone().cast(q.dtype());
    let p = logits(of_teacher, teachers_head.clone(), *softcap);
    let p = if in_graph { p.autodiff() } else { p };
    let cross_entropy = of_targets(activation::log_softmax(q.clone(), 1), targets)
        .neg()
        .reshape([positions]);
    let log = [q, p].map(|logits| activation::log_softmax(logits.div_scalar(t), 1));
    of_spans(log, [targets, theirs], spans).mul_scalar(settings.weight)
        + cross_entropy.mul_scalar(settings.cross_entropy_weight)
}

/// The row's number at its target, `[positions, 1]`.
fn of_targets(rows: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    let ids: Vec<i64> = targets.iter().map(|&id| i64::from(id)).collect();
    let ids = TensorData::new(ids, [targets.len(), 1]);
    let ids = Tensor::<2, Int>::from_data(ids, &rows.device());
    rows.gather(1, ids)
}

/// The distance of every span at its last position of the student, from both sides' `ln p`, `[positions]`.
fn of_spans(log: [Tensor<2>; 2], targets: [&[u32]; 2], spans: &[Span]) -> Tensor<1> {
    let [log_q, log_p] = log;
    let ([positions, _], device) = (log_q.dims(), log_q.device());
    if spans.is_empty() {
        return log_q.sum_dim(1).mul_scalar(0.0).reshape([positions]);
    }
    let last = |ranges: &[Range<usize>]| -> Vec<i64> {
        ranges.iter().map(|range| range.end as i64 - 1).collect()
    };
    // Sorted, and as wide as the wider side.
    let sorted = |log: Tensor<2>, targets: &[u32], ranges: &[Range<usize>]| {
        let of_tokens = of_targets(log.clone(), targets);
        // 1 where a position of the row's span stands before its last.
        let mut before = vec![0.0f32; ranges.len() * targets.len()];
        for (row, range) in ranges.iter().enumerate() {
            before[row * targets.len()..][range.start..range.end - 1].fill(1.0);
        }
        let before = TensorData::new(before, [ranges.len(), targets.len()]);
        let before = Tensor::<2>::from_data(before, &device).cast(log.dtype());
        let last = Tensor::<1, Int>::from_data(&last(ranges)[..], &device);
        let log = log.select(0, last) + before.matmul(of_tokens);
        log.exp().sort_descending(1)
    };
    let ours: Vec<_> = spans.iter().map(|(student, _)| student.clone()).collect();
    let theirs: Vec<_> = spans.iter().map(|(_, teacher)| teacher.clone()).collect();
    let q = sorted(log_q, targets[0], &ours);
    let p = sorted(log_p, targets[1], &theirs);
    let both = p.dims()[1].min(q.dims()[1]);
    let rest = |x: &Tensor<2>| match x.dims()[1] - both {
        0 => x.clone().sum_dim(1).mul_scalar(0.0),
        more => x.clone().narrow(1, both, more).sum_dim(1),
    };
    let surplus = rest(&p) + rest(&q);
    let distance = (p.narrow(1, 0, both) - q.narrow(1, 0, both))
        .abs()
        .sum_dim(1)
        + surplus;
    // One more row of nothing, for the positions that end no span.
    let nothing = Tensor::<2>::zeros([1, 1], &device).cast(distance.dtype());
    let mut at = vec![spans.len() as i64; positions];
    for (number, position) in last(&ours).into_iter().enumerate() {
        at[position as usize] = number as i64;
    }
    let at = Tensor::<1, Int>::from_data(&at[..], &device);
    Tensor::cat(vec![distance, nothing], 0)
        .select(0, at)
        .reshape([positions])
}
