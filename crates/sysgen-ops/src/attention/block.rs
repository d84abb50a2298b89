//! The kernels between the matrix products of a block: scores to weights, and the gradient of the weights to that of
//! the scores.

use std::ops::Range;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::AttentionShape;
use crate::launch::{
    addresses, buffer, cube_max, cube_sum, element, elementwise, empty, empty_like, plane_slots,
    row_wise, softcapped_number,
};

/// Below every score; WGSL has no infinity.
const LOWEST: f64 = -3e38;

/// The queries `from..to` of a row of the batch and the keys `low..to` that any of them sees.
pub(super) struct Block {
    pub(super) row: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) low: usize,
    pub(super) time: usize,
    pub(super) heads: usize,
}

impl Block {
    /// Where the block's keys lie in `[batch, kv_heads, time, size]`.
    pub(super) fn place_of_keys(&self, kv_heads: usize) -> [Range<usize>; 3] {
        [self.row..self.row + 1, 0..kv_heads, self.low..self.to]
    }

    fn place(&self) -> PlaceLaunch {
        PlaceLaunch::new(
            self.to - self.from,
            self.to - self.low,
            self.from - self.low,
            self.low,
            self.row * self.time + self.from,
            self.row * self.heads * self.time + self.from,
            self.time,
            self.heads,
        )
    }
}

/// A [`Block`] as its kernels see it.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Place {
    queries: usize,
    /// Numbers in a row of scores.
    width: usize,
    /// The key of the first query.
    diagonal: usize,
    low: usize,
    /// The first query in `[batch, time]`.
    token: usize,
    /// The first query of the first head in `[batch, heads, time]`.
    sum: usize,
    time: usize,
    heads: usize,
}

/// The weights of a block, and the log-sum-exp of its queries at their place in `sums`.
///
/// # Shapes
/// * `scores`, result: `[kv_heads, group · queries, keys]`
/// * `first`: `[batch · time]`, `sums`: `[batch, heads, time]`
pub(super) fn softmax(
    block: &Block,
    scores: CubeTensor,
    first: &CubeTensor,
    sums: &CubeTensor,
    shape: AttentionShape,
    dtype: DType,
) -> CubeTensor {
    let weights = empty(&scores, scores.meta.shape().clone(), dtype);
    let keys = block.to - block.low;
    let rows = scores.meta.num_elements() / keys;
    let (count, units) = row_wise(&scores.client, rows, keys);
    // SAFETY: a cube touches one of `rows` rows, in steps that end at its width.
    unsafe {
        weigh::launch_unchecked(
            &scores.client,
            count,
            units,
            addresses(&[&scores, sums]),
            buffer(&scores),
            buffer(first),
            buffer(&weights),
            buffer(sums),
            rows,
            block.place(),
            shape.scale,
            shape.softcap.unwrap_or(1.0),
            shape.softcap.is_some(),
            element(&weights),
        );
    }
    weights
}

/// The weights of a block again, and the gradient of its scores before scale and soft-cap.
///
/// # Shapes
/// * `scores`, `d_weights`, results: `[kv_heads, group · queries, keys]`
/// * `first`: `[batch · time]`, `sums`: `[batch, heads, time]`, `pull`: `[batch, time, heads]`
pub(super) fn score_gradients(
    block: &Block,
    [scores, d_weights]: [CubeTensor; 2],
    [first, sums, pull]: [&CubeTensor; 3],
    shape: AttentionShape,
    dtype: DType,
) -> (CubeTensor, CubeTensor) {
    let weights = empty(&scores, scores.meta.shape().clone(), dtype);
    let d_scores = empty_like(&weights);
    let total = scores.meta.num_elements();
    let (count, units) = elementwise(&scores.client, total);
    // SAFETY: units past the last score return.
    unsafe {
        differentiate::launch_unchecked(
            &scores.client,
            count,
            units,
            addresses(&[&scores, sums]),
            buffer(&scores),
            buffer(&d_weights),
            buffer(first),
            buffer(sums),
            buffer(pull),
            buffer(&weights),
            buffer(&d_scores),
            total,
            block.place(),
            shape.scale,
            shape.softcap.unwrap_or(1.0),
            shape.softcap.is_some(),
            element(&weights),
        );
    }
    (weights, d_scores)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn weigh<F: Float>(
    scores: &[f32],
    first: &[u32],
    weights: &mut [F],
    sums: &mut [f32],
    rows: usize,
    place: Place,
    scale: f32,
    cap: f32,
    #[comptime] capped: bool,
    #[define(F)] _type: ElemType,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut slots = plane_slots();
    let start = row * place.width;
    let (head, query) = (row / place.queries, row % place.queries);
    // Padding sees the empty range after itself.
    let begin = first[place.token + query] as usize - place.low;
    let end = place.diagonal + query + 1;

    let mut largest = f32::new(LOWEST);
    let mut j = begin + UNIT_POS as usize;
    while j < end {
        largest = max(
            largest,
            softcapped_number(scores[start + j] * scale, cap, capped),
        );
        j += CUBE_DIM as usize;
    }
    let largest = cube_max(largest, &mut slots);
    let mut sum = 0.0f32;
    let mut j = begin + UNIT_POS as usize;
    while j < end {
        sum += (softcapped_number(scores[start + j] * scale, cap, capped) - largest).exp();
        j += CUBE_DIM as usize;
    }
    let sum = cube_sum(sum, &mut slots);
    let mut j = UNIT_POS as usize;
    while j < place.width {
        let mut weight = 0.0f32;
        if j >= begin && j < end {
            let s = softcapped_number(scores[start + j] * scale, cap, capped);
            weight = (s - largest).exp() / sum;
        }
        weights[start + j] = F::cast_from(weight);
        j += CUBE_DIM as usize;
    }
    if UNIT_POS == 0 {
        let mut total = 0.0f32;
        if begin < end {
            total = largest + sum.ln();
        }
        sums[place.sum + head * place.time + query] = total;
    }
}

/// `dS = P ∘ (dP − pull) · slope · scale`
#[cube(launch_unchecked, address_type = "dynamic")]
fn differentiate<F: Float>(
    scores: &[f32],
    d_weights: &[f32],
    first: &[u32],
    sums: &[f32],
    pull: &[f32],
    weights: &mut [F],
    d_scores: &mut [F],
    total: usize,
    place: Place,
    scale: f32,
    cap: f32,
    #[comptime] capped: bool,
    #[define(F)] _type: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (row, j) = (ABSOLUTE_POS / place.width, ABSOLUTE_POS % place.width);
    let (head, query) = (row / place.queries, row % place.queries);
    let begin = first[place.token + query] as usize - place.low;
    let mut weight = 0.0f32;
    let mut d_score = 0.0f32;
    if j >= begin && j <= place.diagonal + query {
        let s = softcapped_number(scores[ABSOLUTE_POS] * scale, cap, capped);
        weight = (s - sums[place.sum + head * place.time + query]).exp();
        let pull = pull[(place.token + query) * place.heads + head];
        d_score = weight * (d_weights[ABSOLUTE_POS] - pull) * scale;
        if capped {
            d_score *= 1.0 - (s / cap) * (s / cap);
        }
    }
    weights[ABSOLUTE_POS] = F::cast_from(weight);
    d_scores[ABSOLUTE_POS] = F::cast_from(d_score);
}
