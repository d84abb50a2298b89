//! Training attention on a device: one block of queries at a time, so that the scores of a batch never exist at once.
//!
//! The products run on Burn's matrix kernels, the rest of a block in one kernel each way (`block`). The formulas are
//! those of `cpu`. Where nothing is capped or windowed, flash attention takes over (`flash`).

use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::block::{Block, score_gradients, softmax};
use super::flash::Flash;
use super::{AttentionShape, Segments};
use crate::device::{Kernels, plain, primitive};
use crate::launch::{contiguous, empty, product, transposed, upload};
use crate::reductions::row_products;

/// Bytes of scores that exist at a time; the gradient holds three times as much.
const SCORE_BYTES: usize = 128 << 20;
/// Queries and keys of a block are a multiple of this: the matrix kernels are tuned for each width and want it aligned.
const STEP: usize = 64;
/// Queries of a block, at most.
const MOST: usize = 512;

/// Inputs are q, k and v; saves them, the output and the log-sum-exp of `[batch, heads, time]`.
#[derive(Debug)]
pub(super) struct Attention {
    batch: usize,
    /// Of the inputs.
    given: usize,
    /// Of the blocks: with padding to the next multiple of [`STEP`].
    time: usize,
    heads: usize,
    kv_heads: usize,
    size: usize,
    shape: AttentionShape,
    /// [`Segments::first_visible`], with the padding.
    first: Vec<usize>,
    flash: Option<Flash>,
}

impl Attention {
    pub(super) fn new(
        q: &Tensor<4>,
        k: &Tensor<4>,
        segments: &Segments,
        shape: AttentionShape,
    ) -> Self {
        let [batch, given, heads, size] = q.dims();
        let [_, _, kv_heads, _] = k.dims();
        let widened = widened(segments);
        Self {
            batch,
            given,
            time: widened.time,
            heads,
            kv_heads,
            size,
            shape,
            first: widened.first_visible(shape.window),
            flash: Flash::new(q, k, segments, shape),
        }
    }
}

impl Kernels for Attention {
    fn forward(&self, inputs: Vec<CubeTensor>, wanted: &[bool]) -> (CubeTensor, Vec<CubeTensor>) {
        let [q, k, v]: [_; 3] = inputs.try_into().expect("three inputs");
        let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
        let (out, sums) = match &self.flash {
            Some(flash) => flash.forward(&q, &k, &v),
            None => {
                let (out, sums) = self.in_blocks(&q, &k, &v);
                (out, vec![sums])
            }
        };
        let mut saved = vec![];
        if wanted.contains(&true) {
            saved = vec![q, k, v, out.clone()];
            saved.extend(sums);
        }
        (out, saved)
    }

    fn backward(
        &self,
        saved: Vec<CubeTensor>,
        gradient: CubeTensor,
        wanted: &[bool],
    ) -> Vec<Option<CubeTensor>> {
        let gradient = contiguous(gradient);
        let [q, k, v, out, sums @ ..] = &saved[..] else {
            unreachable!("saved by forward")
        };
        let gradients = match &self.flash {
            Some(flash) => flash.backward([q, k, v, out], sums, &gradient),
            None => self.gradients_in_blocks([q, k, v, out], &sums[0], &gradient),
        };
        let gradients = gradients.into_iter().zip(wanted);
        gradients.map(|(dx, wanted)| wanted.then_some(dx)).collect()
    }
}

impl Attention {
    fn in_blocks(
        &self,
        q: &CubeTensor,
        k: &CubeTensor,
        v: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let [q, k, v] = &[q, k, v].map(|x| self.padded(x));
        let first = self.uploaded_first(q);
        let sums = empty(q, [self.batch, self.heads, self.time], DType::F32);
        let (keys, values) = (heads_first(k), heads_first(v));
        let mut out = self.grouped(q).zeros_like();
        for block in self.blocks() {
            let k = keys_of(&keys, &block);
            let scores = product(self.queries_of(q, &block), transposed(k), DType::F32);
            let weights = softmax(&block, scores, &first, &sums, self.shape, q.dtype);
            let part = product(weights, keys_of(&values, &block), q.dtype);
            out = self.with_queries(out, &block, part);
        }
        (self.cut(self.flat(out)), sums)
    }

    fn gradients_in_blocks(
        &self,
        [q, k, v, out]: [&CubeTensor; 4],
        sums: &CubeTensor,
        d_out: &CubeTensor,
    ) -> Vec<CubeTensor> {
        let [q, k, v, out, d_out] = &[q, k, v, out, d_out].map(|x| self.padded(x));
        let first = self.uploaded_first(q);
        let pull = row_products(d_out, out);
        let (keys, values) = (heads_first(k), heads_first(v));
        let mut d_q = self.grouped(q).zeros_like();
        let mut d_keys = keys.zeros_like().cast(DType::F32);
        let mut d_values = d_keys.zeros_like();
        for block in self.blocks() {
            let (k, v) = (keys_of(&keys, &block), keys_of(&values, &block));
            let (q, d_out) = (self.queries_of(q, &block), self.queries_of(d_out, &block));
            let scores = product(q.clone(), transposed(k.clone()), DType::F32);
            let d_weights = product(d_out.clone(), transposed(v), DType::F32);
            let (weights, d_scores) = score_gradients(
                &block,
                [scores, d_weights],
                [&first, sums, &pull],
                self.shape,
                q.dtype,
            );
            let part = product(transposed(weights), d_out, DType::F32);
            d_values = with_keys(d_values, &block, part);
            let part = product(transposed(d_scores.clone()), q.clone(), DType::F32);
            d_keys = with_keys(d_keys, &block, part);
            let part = product(d_scores, k, q.dtype);
            d_q = self.with_queries(d_q, &block, part);
        }
        let time_first = |x: Tensor<4>, like: &CubeTensor| {
            contiguous(primitive(x.cast(like.dtype).swap_dims(1, 2)))
        };
        [
            self.flat(d_q),
            time_first(d_keys, k),
            time_first(d_values, v),
        ]
        .map(|dx| self.cut(dx))
        .into()
    }

    /// `[batch, given, heads, size]` with zeros up to `time`.
    fn padded(&self, x: &CubeTensor) -> CubeTensor {
        if self.time == self.given {
            return x.clone();
        }
        let x: Tensor<4> = plain(x.clone());
        let [batch, given, heads, size] = x.dims();
        let zeros = Tensor::zeros([batch, self.time, heads, size], (&x.device(), x.dtype()));
        contiguous(primitive(zeros.slice_assign([0..batch, 0..given], x)))
    }

    /// [`Attention::padded`] undone.
    fn cut(&self, x: CubeTensor) -> CubeTensor {
        if self.time == self.given {
            return x;
        }
        let x: Tensor<4> = plain(x);
        contiguous(primitive(x.slice([0..self.batch, 0..self.given])))
    }

    /// `[batch, time, kv_heads, group, size]`
    fn grouped(&self, q: &CubeTensor) -> Tensor<5> {
        let Self {
            batch,
            time,
            heads,
            kv_heads,
            size,
            ..
        } = *self;
        plain::<4>(q.clone()).reshape([batch, time, kv_heads, heads / kv_heads, size])
    }

    /// [`Attention::grouped`] undone.
    fn flat(&self, x: Tensor<5>) -> CubeTensor {
        let Self {
            batch,
            time,
            heads,
            size,
            ..
        } = *self;
        primitive(x.reshape([batch, time, heads, size]))
    }

    /// A block of q for the matrix kernels: `[kv_heads, group · queries, size]`.
    fn queries_of(&self, q: &CubeTensor, block: &Block) -> CubeTensor {
        let Self {
            heads,
            kv_heads,
            size,
            ..
        } = *self;
        let part = self
            .grouped(q)
            .slice([block.row..block.row + 1, block.from..block.to]);
        let part = part.permute([0, 2, 3, 1, 4]);
        let queries = heads / kv_heads * (block.to - block.from);
        contiguous(primitive(part.reshape([kv_heads, queries, size])))
    }

    /// `all` with what [`Attention::queries_of`] took in its place.
    fn with_queries(&self, all: Tensor<5>, block: &Block, part: CubeTensor) -> Tensor<5> {
        let Self {
            heads,
            kv_heads,
            size,
            ..
        } = *self;
        let group = heads / kv_heads;
        let part = plain::<3>(part).reshape([1, kv_heads, group, block.to - block.from, size]);
        let place = [block.row..block.row + 1, block.from..block.to];
        all.slice_assign(place, part.permute([0, 3, 1, 2, 4]))
    }

    /// The blocks in which any query sees a key.
    fn blocks(&self) -> Vec<Block> {
        let Self {
            batch, time, heads, ..
        } = *self;
        let bytes_of_a_query = heads * time * DType::F32.size();
        let queries = (SCORE_BYTES / bytes_of_a_query / STEP * STEP).clamp(STEP, MOST);
        let mut blocks = vec![];
        for row in 0..batch {
            for from in (0..time).step_by(queries) {
                let to = time.min(from + queries);
                debug_assert!(to.is_multiple_of(STEP));
                let first = (from..to).map(|i| self.first[row * time + i].min(i + 1));
                let seen = first.zip(from..to).filter(|(first, i)| first <= i);
                if let Some(low) = seen.map(|(first, _)| first).min() {
                    let low = low.min(from) / STEP * STEP;
                    blocks.push(Block {
                        row,
                        from,
                        to,
                        low,
                        time,
                        heads,
                    });
                }
            }
        }
        blocks
    }

    fn uploaded_first(&self, like: &CubeTensor) -> CubeTensor {
        let first: Vec<u32> = self.first.iter().map(|&first| first as u32).collect();
        upload(like, &first)
    }
}

/// The segments with padding up to a multiple of [`STEP`].
fn widened(segments: &Segments) -> Segments {
    let time = segments.time.next_multiple_of(STEP);
    let padding = || std::iter::repeat_n(0, time - segments.time);
    let rows = segments.ids.chunks(segments.time.max(1));
    Segments {
        batch: segments.batch,
        time,
        ids: rows
            .flat_map(|row| row.iter().copied().chain(padding()))
            .collect(),
    }
}

/// `[batch, kv_heads, time, size]`
fn heads_first(x: &CubeTensor) -> Tensor<4> {
    plain(contiguous(primitive(plain::<4>(x.clone()).swap_dims(1, 2))))
}

/// The keys, or values, that a block sees: `[kv_heads, keys, size]`.
fn keys_of(all: &Tensor<4>, block: &Block) -> CubeTensor {
    let [_, kv_heads, _, size] = all.dims();
    let part = all.clone().slice(block.place_of_keys(kv_heads));
    primitive(part.reshape([kv_heads, block.to - block.low, size]))
}

/// `all` with `part` added where [`keys_of`] looked.
fn with_keys(all: Tensor<4>, block: &Block, part: CubeTensor) -> Tensor<4> {
    let [_, kv_heads, _, size] = all.dims();
    let place = block.place_of_keys(kv_heads);
    let part = plain::<3>(part).reshape([1, kv_heads, block.to - block.low, size]);
    let sum = all.clone().slice(place.clone()) + part;
    all.slice_assign(place, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sides_of_all_blocks_are_multiples_of_a_step() {
        for time in [1, 63, 64, 65, 600, 1025, 3001] {
            for window in [None, Some(100)] {
                let segments = widened(&Segments {
                    batch: 2,
                    time,
                    ids: (0..2 * time).map(|i| (i / 150) as u32).collect(),
                });
                let attention = Attention {
                    batch: 2,
                    given: time,
                    time: segments.time,
                    heads: 4,
                    kv_heads: 2,
                    size: 32,
                    shape: AttentionShape {
                        scale: 1.0,
                        window,
                        softcap: None,
                    },
                    first: segments.first_visible(window),
                    flash: None,
                };
                assert!(segments.time - time < STEP);
                for block in attention.blocks() {
                    for side in [block.to - block.from, block.to - block.low] {
                        assert!(side > 0 && side % STEP == 0, "{time}: {side}");
                    }
                }
            }
        }
    }
}
