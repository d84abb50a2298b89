//! Attention of new positions over a key-value cache that stays on the device of the model: the decoding side.

#[cfg(feature = "cube")]
mod cuda;

use burn::tensor::Tensor;

use super::{AttentionShape, CachedRun, Heads, cached_attention};
#[cfg(feature = "cube")]
use crate::device;
use crate::fused;

/// A new position of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedPosition {
    /// Which of the cached sequences.
    pub sequence: usize,
    /// Its place in it; the cache already holds its own key and value.
    pub position: usize,
}

/// Each new position attends to its own sequence up to itself, inside the window. No gradient.
///
/// What a position gets depends on its own cache alone, not on the others it is computed with.
///
/// # Shapes
/// * `q`: `[positions, query heads, head size]`
/// * `keys`, `values`: `[sequences, capacity, kv heads, head size]`
/// * output: as `q`
pub fn decode_attention(
    q: Tensor<3>,
    keys: Tensor<4>,
    values: Tensor<4>,
    positions: &[CachedPosition],
    shape: AttentionShape,
) -> Tensor<3> {
    let [count, heads, size] = q.dims();
    let [sequences, capacity, kv_heads, _] = keys.dims();
    assert_eq!(
        count,
        positions.len(),
        "decode_attention: a position for each row of q"
    );
    assert_eq!(
        keys.dims(),
        [sequences, capacity, kv_heads, size],
        "decode_attention: keys [sequences, capacity, kv heads, head size]"
    );
    assert_eq!(
        keys.dims(),
        values.dims(),
        "decode_attention: values are shaped like keys"
    );
    assert_eq!(
        keys.dtype(),
        q.dtype(),
        "decode_attention: one dtype for q and cache"
    );
    assert_eq!(
        heads % kv_heads,
        0,
        "decode_attention: kv heads divide heads"
    );
    for at in positions {
        assert!(
            at.sequence < sequences && at.position < capacity,
            "decode_attention: {at:?} is outside the cache of {sequences} x {capacity}"
        );
    }
    if count == 0 {
        return q;
    }
    #[cfg(feature = "cube")]
    if device::serves(&q) {
        let reach = shape.window.unwrap_or(usize::MAX);
        let range = |at: &CachedPosition| {
            let (start, end) = (at.sequence * capacity, at.position + 1);
            [start + end.saturating_sub(reach), start + end].map(|row| row as u32)
        };
        let ranges: Vec<u32> = positions.iter().flat_map(range).collect();
        let (keys, values) = (device::primitive(keys), device::primitive(values));
        let out = cuda::attention(device::primitive(q), keys, values, &ranges, shape);
        return device::plain(out);
    }
    let (q, keys, values) = (fused::values(q), fused::values(keys), fused::values(values));
    let length = capacity * kv_heads * size;
    let runs: Vec<CachedRun> = positions
        .iter()
        .map(|at| CachedRun {
            tokens: 1,
            start: at.position,
            keys: &fused::slice(&keys)[at.sequence * length..][..length],
            values: &fused::slice(&values)[at.sequence * length..][..length],
        })
        .collect();
    let heads_of = Heads {
        query: heads,
        key_value: kv_heads,
        size,
    };
    let out = cached_attention(fused::slice(&q), &runs, heads_of, shape);
    fused::plain(out, [count, heads, size])
}
