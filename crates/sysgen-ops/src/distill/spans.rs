//! The distance of spans in plain Burn tensors.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};

use super::reference::{distance, integers};
use super::{Divergence, Span};

/// The distance of every span at its last position of the student and 0 elsewhere, `[positions, 1]`, from the teacher's and
/// the student's `ln p` and tokens.
pub(super) fn of_spans(log: [Tensor<2>; 2], targets: [&[u32]; 2], spans: &[Span]) -> Tensor<2> {
    let [log_p, log_q] = log;
    let ([positions, _], device) = (log_q.dims(), log_q.device());
    let last = |ranges: &[Range<usize>]| -> Vec<i64> {
        ranges.iter().map(|range| range.end as i64 - 1).collect()
    };
    let of_ranges = |log: Tensor<2>, targets: &[u32], ranges: &[Range<usize>]| {
        let tokens = integers(targets, [targets.len(), 1], &device);
        let of_tokens = log.clone().gather(1, tokens);
        // 1 where a position of the row's span stands before its last.
        let mut before = vec![0.0f32; ranges.len() * targets.len()];
        for (row, range) in ranges.iter().enumerate() {
            before[row * targets.len()..][range.start..range.end - 1].fill(1.0);
        }
        let before = TensorData::new(before, [ranges.len(), targets.len()]);
        let before = Tensor::<2>::from_data(before, &device).cast(log.dtype());
        let last = Tensor::<1, Int>::from_data(&last(ranges)[..], &device);
        log.select(0, last) + before.matmul(of_tokens)
    };
    let (ours, theirs): (Vec<_>, Vec<_>) = spans.iter().cloned().unzip();
    let log_p = of_ranges(log_p, targets[0], &theirs);
    let log_q = of_ranges(log_q, targets[1], &ours);
    let distances = distance(Divergence::Uld, log_p, log_q);
    // One more row of nothing, for the positions that end no span.
    let nothing = Tensor::<2>::zeros([1, 1], &device).cast(distances.dtype());
    let mut at = vec![spans.len() as i64; positions];
    for (number, position) in last(&ours).into_iter().enumerate() {
        at[position as usize] = number as i64;
    }
    let at = Tensor::<1, Int>::from_data(&at[..], &device);
    Tensor::cat(vec![distances, nothing], 0).select(0, at)
}
