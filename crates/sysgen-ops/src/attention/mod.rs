//! Causal attention inside packed segments, with grouped heads, a sliding window and a soft-cap.
//!
//! [`attention`] is for training (whole rows), [`PagedCache`] for decoding.

#[cfg(feature = "cube")]
mod block;
mod cpu;
#[cfg(feature = "cube")]
mod cuda;
#[cfg(feature = "cube")]
mod flash;
pub(crate) mod paged;

use std::sync::Arc;

use burn::tensor::{Bool, Tensor, TensorData, activation};

#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

pub use paged::{BLOCK_MULTIPLE, PagedCache, PagedRun, PagedShape, PagedStep};

/// How scores are made and which keys are in reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Multiplies `q · k`; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Key `j` is visible to query `i` if `i − j < window`; all earlier keys without one.
    pub window: Option<usize>,
    /// Scores become `c · tanh(score / c)` (Gemma-2).
    pub softcap: Option<f32>,
}

/// Which conversation each position of a batch belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Segments {
    /// Rows.
    pub batch: usize,
    /// Positions in a row.
    pub time: usize,
    /// `[batch, time]`, row-major; 0 is padding, which sees nothing and is seen by nothing.
    /// An id's positions in a row lie side by side.
    pub ids: Vec<u32>,
}

impl Segments {
    /// The first key each position may see, `[batch, time]`: of its own segment and in the window.
    /// Padding gets the position after itself, an empty range.
    pub(crate) fn first_visible(&self, window: Option<usize>) -> Vec<usize> {
        let Self { batch, time, ids } = self;
        assert_eq!(ids.len(), batch * time, "segments: [{batch}, {time}] ids");
        let mut first = Vec::with_capacity(ids.len());
        for row in ids.chunks(*time) {
            let mut start = 0;
            for (i, &id) in row.iter().enumerate() {
                if i > 0 && row[i - 1] != id {
                    start = i;
                }
                let reach = window.map_or(0, |window| (i + 1).saturating_sub(window));
                first.push(if id == 0 { i + 1 } else { start.max(reach) });
            }
        }
        first
    }
}

/// Causal attention; a position sees itself and earlier positions of its own segment, inside the window.
/// Rows of padding give 0.
///
/// # Shapes
/// * `q`: `[batch, time, heads, head_dim]`
/// * `k`, `v`: `[batch, time, kv_heads, head_dim]`, query head `h` uses kv head `h / (heads / kv_heads)`
/// * output: as `q`
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    segments: &Arc<Segments>,
    shape: AttentionShape,
) -> Tensor<4> {
    let [batch, time, heads, size] = q.dims();
    let [_, _, kv_heads, _] = k.dims();
    assert_eq!(
        k.dims(),
        [batch, time, kv_heads, size],
        "attention: k [batch, time, kv_heads, head_dim]"
    );
    assert_eq!(v.dims(), k.dims(), "attention: v is shaped like k");
    assert_eq!(heads % kv_heads, 0, "attention: kv heads divide heads");
    assert_eq!(
        (segments.batch, segments.time),
        (batch, time),
        "attention: segments [batch, time]"
    );
    #[cfg(feature = "cube")]
    if device::serves(&q) {
        let op = cuda::Attention::new(&q, &k, segments, shape);
        return device::apply(op, [q.into(), k.into(), v.into()]);
    }
    if !fused::serves(&q) {
        return reference(q, k, v, segments, shape);
    }
    let op = cpu::Attention {
        batch,
        time,
        heads,
        kv_heads,
        size,
        first: segments.first_visible(shape.window),
        shape,
    };
    fused::apply(
        op,
        [q.into(), k.into(), v.into()],
        [batch, time, heads, size],
    )
}

/// [`attention`] in plain Burn tensors; holds all scores.
pub fn reference(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    segments: &Segments,
    shape: AttentionShape,
) -> Tensor<4> {
    let [batch, time, heads, head_dim] = q.dims();
    let [_, _, kv_heads, _] = k.dims();
    let group = heads / kv_heads;
    let device = q.device();

    let first = segments.first_visible(shape.window);
    let hidden: Vec<bool> = (0..batch * time)
        .flat_map(|row| {
            let (first, i) = (first[row], row % time);
            (0..time).map(move |j| j < first || j > i)
        })
        .collect();
    let hidden =
        Tensor::<5, Bool>::from_data(TensorData::new(hidden, [batch, 1, 1, time, time]), &device)
            .expand([batch, kv_heads, group, time, time]);

    let q = q
        .reshape([batch, time, kv_heads, group, head_dim])
        .permute([0, 2, 3, 1, 4]);
    let spread = |x: Tensor<4>| {
        x.reshape([batch, time, kv_heads, 1, head_dim])
            .permute([0, 2, 3, 1, 4])
            .expand([batch, kv_heads, group, time, head_dim])
    };
    let mut scores = q.matmul(spread(k).swap_dims(3, 4)).mul_scalar(shape.scale);
    if let Some(cap) = shape.softcap {
        scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
    }
    // Finite, so that a row of padding stays finite too; its evenly spread weights are then set to 0.
    let weights = activation::softmax(scores.mask_fill(hidden.clone(), -1e9), 4);
    weights
        .mask_fill(hidden, 0.0)
        .matmul(spread(v))
        .permute([0, 3, 1, 2, 4])
        .reshape([batch, time, heads, head_dim])
}
