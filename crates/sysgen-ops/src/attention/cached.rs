//! Attention of a few new positions over cached keys and values, on host memory: the decoding side.
//! A query's result is a function of its own cache alone, so neighbours in the batch cannot change it.

use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use crate::simd::{dot, exp, max, sum, tanh, vectorised};

/// Multiply-adds below which waking other threads costs more than it gives.
const PARALLEL_WORK: usize = 1 << 17;

/// Head counts and size of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; divides `query`.
    pub key_value: usize,
    /// Numbers in one head.
    pub size: usize,
}

/// New positions of one sequence and the cache they look at, which already holds their own keys and values.
#[derive(Clone, Copy, Debug)]
pub struct CachedRun<'a> {
    /// New positions.
    pub tokens: usize,
    /// Position of the first of them.
    pub start: usize,
    /// `[start + tokens or more, kv_heads, head size]`.
    pub keys: &'a [f32],
    /// As `keys`.
    pub values: &'a [f32],
}

/// Each new position attends to its own sequence up to itself, inside the window.
///
/// # Shapes
/// * `q`: `[sum of the runs' tokens, query heads, head size]`, run after run
/// * output: as `q`
pub fn cached_attention(
    q: &[f32],
    runs: &[CachedRun],
    heads: Heads,
    shape: AttentionShape,
) -> Vec<f32> {
    let Heads {
        query,
        key_value,
        size,
    } = heads;
    let tokens: usize = runs.iter().map(|run| run.tokens).sum();
    assert_eq!(
        q.len(),
        tokens * query * size,
        "cached_attention: q's length"
    );
    let width = key_value * size;
    for run in runs {
        let needed = (run.start + run.tokens) * width;
        assert!(
            run.keys.len() >= needed && run.values.len() >= needed,
            "cached_attention: the cache ends before the run's last position"
        );
    }
    // (run, position) of every row of q.
    let rows: Vec<(&CachedRun, usize)> = runs
        .iter()
        .flat_map(|run| (run.start..run.start + run.tokens).map(move |position| (run, position)))
        .collect();

    let mut out = vec![0.0; q.len()];
    let task = |index: usize, out: &mut [f32], q: &[f32]| {
        let (run, position) = rows[index / query];
        let head = index % query / (query / key_value);
        let first = shape
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        attend(q, run, width, head * size, first..position + 1, shape, out);
    };
    let work: usize = rows
        .iter()
        .map(|(_, position)| position * query * size)
        .sum();
    if work < PARALLEL_WORK {
        let heads = out.chunks_mut(size).zip(q.chunks(size)).enumerate();
        heads.for_each(|(index, (out, q))| task(index, out, q));
    } else {
        let heads = out.par_chunks_mut(size).zip(q.par_chunks(size)).enumerate();
        heads.for_each(|(index, (out, q))| task(index, out, q));
    }
    out
}

vectorised! {
    /// One query of one head. `offset` is where the head lies in a cached row of `width`.
    fn attend(
        q: &[f32],
        run: &CachedRun<'_>,
        width: usize,
        offset: usize,
        visible: Range<usize>,
        shape: AttentionShape,
        out: &mut [f32],
    ) {
        let size = q.len();
        // Loops and no `collect`: only what is inlined here is compiled for the CPU's vectors.
        let mut scores = vec![0.0; visible.len()];
        for (score, j) in scores.iter_mut().zip(visible.clone()) {
            *score = dot(q, &run.keys[j * width + offset..][..size]) * shape.scale;
        }
        if let Some(cap) = shape.softcap {
            for score in &mut scores {
                *score = cap * tanh(*score / cap);
            }
        }
        let max = max(&scores);
        for score in &mut scores {
            *score = exp(*score - max);
        }
        let total = sum(&scores);
        for (&weight, j) in scores.iter().zip(visible) {
            let value = &run.values[j * width + offset..][..size];
            for (out, &value) in out.iter_mut().zip(value) {
                *out = weight.mul_add(value, *out);
            }
        }
        for out in out {
            *out /= total;
        }
    }
}
