//! Attention over a paged KV cache: the decoding side. Keys and values of all texts lie in blocks of a fixed number of
//! positions; a text names its blocks in order, and texts that begin alike name the same ones.
//!
//! What a position gets depends on its own text alone: neither on the others it is computed with, nor on the size of
//! the blocks or where they lie (on the CPU not by a bit).

mod cpu;
#[cfg(feature = "cube")]
mod cuda;

use burn::tensor::{DType, Device, Tensor};
#[cfg(feature = "cube")]
use burn_cubecl::tensor::CubeTensor;

use super::AttentionShape;
#[cfg(feature = "cube")]
use crate::device;
use crate::fused;
#[cfg(feature = "cube")]
use crate::launch::empty;

/// Block sizes are multiples of this: the CPU looks at so many keys at once.
pub const BLOCK_MULTIPLE: usize = 16;

/// New positions of one text.
#[derive(Clone, Copy, Debug)]
pub struct PagedRun<'a> {
    /// How many.
    pub tokens: usize,
    /// The first one's place in the text.
    pub start: usize,
    /// The text's blocks, in order; enough of them for `start + tokens` positions.
    pub blocks: &'a [u32],
}

/// Sizes of a [`PagedCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedShape {
    /// Blocks.
    pub blocks: usize,
    /// Positions of a block, a multiple of [`BLOCK_MULTIPLE`].
    pub block_size: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head_size: usize,
}

impl PagedShape {
    /// Numbers of keys, or of values, in all blocks.
    fn numbers(&self) -> usize {
        self.blocks * self.block_size * self.kv_heads * self.head_size
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct PagedCache {
    shape: PagedShape,
    held: Held,
}

#[derive(Debug)]
enum Held {
    /// Keys `[blocks, kv_heads, head_size, block_size]`, so that one number of many keys is one load, and values
    /// `[blocks, kv_heads, block_size, head_size]`. Memory that was never written takes no room.
    Host { keys: Vec<f32>, values: Vec<f32> },
    /// The numbers of `[blocks, kv_heads, block_size, head_size]`, one after the other.
    #[cfg(feature = "cube")]
    Device {
        keys: CubeTensor,
        values: CubeTensor,
    },
}

impl PagedCache {
    /// A cache for tensors of `dtype` on `device`.
    ///
    /// # Panics
    /// The block size is not a positive multiple of [`BLOCK_MULTIPLE`]; or the device is the CPU and `dtype` not f32.
    pub fn new(shape: PagedShape, device: &Device, dtype: DType) -> PagedCache {
        assert!(
            shape.block_size > 0 && shape.block_size.is_multiple_of(BLOCK_MULTIPLE),
            "PagedCache: block size {} is no multiple of {BLOCK_MULTIPLE}",
            shape.block_size
        );
        let probe = Tensor::<1>::zeros([1], (device, dtype));
        #[cfg(feature = "cube")]
        if device::serves(&probe) {
            let probe = device::primitive(probe);
            let [keys, values] = [(); 2].map(|()| empty(&probe, [shape.numbers()], dtype));
            return PagedCache {
                shape,
                held: Held::Device { keys, values },
            };
        }
        assert!(
            fused::serves(&probe),
            "PagedCache: no cache of {dtype:?} on {device:?}"
        );
        let held = Held::Host {
            keys: vec![0.0; shape.numbers()],
            values: vec![0.0; shape.numbers()],
        };
        PagedCache { shape, held }
    }

    /// Its sizes.
    pub fn shape(&self) -> PagedShape {
        self.shape
    }

    /// Writes the keys and values of new positions; what their places held before is replaced.
    ///
    /// # Shapes
    /// * `keys`, `values`: `[sum of the runs' tokens, kv heads, head size]`, run after run
    pub fn write(&mut self, keys: Tensor<3>, values: Tensor<3>, runs: &[PagedRun]) {
        let PagedShape {
            kv_heads,
            head_size,
            ..
        } = self.shape;
        let tokens: usize = runs.iter().map(|run| run.tokens).sum();
        for tensor in [&keys, &values] {
            assert_eq!(
                tensor.dims(),
                [tokens, kv_heads, head_size],
                "PagedCache::write: [tokens of all runs, kv heads, head size]"
            );
        }
        self.assert_holds(runs);
        match &mut self.held {
            Held::Host {
                keys: held_keys,
                values: held_values,
            } => {
                let (keys, values) = (fused::values(keys), fused::values(values));
                let new = [fused::slice(&keys), fused::slice(&values)];
                cpu::write(self.shape, held_keys, held_values, new, runs);
            }
            #[cfg(feature = "cube")]
            Held::Device {
                keys: held_keys,
                values: held_values,
            } => {
                let held = [&*held_keys, &*held_values];
                let new = [keys, values].map(device::primitive);
                cuda::write(self.shape, held, new, runs);
            }
        }
    }

    /// Each new position attends to its own text up to itself, inside the window; its own key and value must have been
    /// written. No gradient.
    ///
    /// # Shapes
    /// * `q`: `[sum of the runs' tokens, query heads, head size]`, run after run; query head `h` uses kv head
    ///   `h / (query heads / kv heads)`
    /// * output: as `q`
    pub fn attend(&self, q: Tensor<3>, runs: &[PagedRun], shape: AttentionShape) -> Tensor<3> {
        let PagedShape {
            kv_heads,
            head_size,
            ..
        } = self.shape;
        let tokens: usize = runs.iter().map(|run| run.tokens).sum();
        let [rows, heads, size] = q.dims();
        assert_eq!(
            [rows, size],
            [tokens, head_size],
            "PagedCache::attend: q [tokens of all runs, query heads, head size]"
        );
        assert_eq!(
            heads % kv_heads,
            0,
            "PagedCache::attend: kv heads divide query heads"
        );
        self.assert_holds(runs);
        if tokens == 0 {
            return q;
        }
        match &self.held {
            Held::Host { keys, values } => {
                let q = fused::values(q);
                let view = cpu::View {
                    shape: self.shape,
                    keys,
                    values,
                };
                let out = cpu::attend(fused::slice(&q), heads, view, runs, shape);
                fused::plain(out, [tokens, heads, size])
            }
            #[cfg(feature = "cube")]
            Held::Device { keys, values } => {
                let q = device::primitive(q);
                device::plain(cuda::attend(self.shape, q, [keys, values], runs, shape))
            }
        }
    }

    fn assert_holds(&self, runs: &[PagedRun]) {
        for run in runs {
            assert!(
                run.start + run.tokens <= run.blocks.len() * self.shape.block_size,
                "PagedCache: {} blocks of {} for {} positions",
                run.blocks.len(),
                self.shape.block_size,
                run.start + run.tokens
            );
            assert!(
                run.blocks.iter().all(|&b| (b as usize) < self.shape.blocks),
                "PagedCache: a block is outside the cache of {}",
                self.shape.blocks
            );
        }
    }
}
