//! Attention over a paged KV cache: the decoding side. Keys and values of all texts lie in blocks of a fixed number of
//! positions; a text names its blocks in order, and texts that begin alike name the same ones.
//!
//! What a position gets depends on its own text alone: neither on the others it is computed with, nor on the size of
//! the blocks or where they lie (on the CPU not by a bit).

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cuda;

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

#[cfg(feature = "cube")]
const OTHER_DEVICE: &str = "a step is made by a cache of the same device";

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

/// The new positions of a pass, as the caches of all layers take them.
#[derive(Clone, Debug)]
pub struct PagedStep<'a> {
    /// How many.
    tokens: usize,
    positions: Positions<'a>,
}

#[derive(Clone, Debug)]
enum Positions<'a> {
    Host(&'a [PagedRun<'a>]),
    #[cfg(feature = "cube")]
    Device(cuda::Positions),
}

impl PagedStep<'_> {
    /// Positions that a device already knows, checked by whoever told it.
    #[cfg(feature = "cube")]
    pub(crate) fn on_device(tokens: usize, positions: cuda::Positions) -> PagedStep<'static> {
        PagedStep {
            tokens,
            positions: Positions::Device(positions),
        }
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
    /// The numbers of `[blocks + 1, kv_heads, block_size, head_size]`, one after the other. No text has the last block: what a
    /// pass of a fixed size computes for places that no text takes is written there.
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
            let held = PagedShape {
                blocks: shape.blocks + 1,
                ..shape
            };
            let [keys, values] = [(); 2].map(|()| empty(&probe, [held.numbers()], dtype));
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

    /// `runs` for [`PagedCache::write`] and [`PagedCache::attend`] of this cache and of others of its sizes on its device.
    ///
    /// # Panics
    /// A run is longer than its blocks, or a block is not in the cache.
    pub fn step<'a>(&self, runs: &'a [PagedRun<'a>]) -> PagedStep<'a> {
        self.assert_holds(runs, self.shape.blocks);
        let positions = match &self.held {
            Held::Host { .. } => Positions::Host(runs),
            #[cfg(feature = "cube")]
            Held::Device { keys, .. } => {
                Positions::Device(cuda::Positions::uploaded(keys, self.shape, runs))
            }
        };
        PagedStep {
            tokens: runs.iter().map(|run| run.tokens).sum(),
            positions,
        }
    }

    /// The same memory of a device, or nothing on the CPU.
    pub fn on_device(&self) -> Option<PagedCache> {
        match &self.held {
            Held::Host { .. } => None,
            #[cfg(feature = "cube")]
            Held::Device { keys, values } => Some(PagedCache {
                shape: self.shape,
                held: Held::Device {
                    keys: keys.clone(),
                    values: values.clone(),
                },
            }),
        }
    }

    /// The keys of a device.
    #[cfg(feature = "cube")]
    pub(crate) fn device_keys(&self) -> Option<&CubeTensor> {
        match &self.held {
            Held::Host { .. } => None,
            Held::Device { keys, .. } => Some(keys),
        }
    }

    /// Writes the keys and values of new positions; what their places held before is replaced.
    ///
    /// # Shapes
    /// * `keys`, `values`: `[positions of the step, kv heads, head size]`
    pub fn write(&mut self, keys: Tensor<3>, values: Tensor<3>, step: &PagedStep) {
        let PagedShape {
            kv_heads,
            head_size,
            ..
        } = self.shape;
        for tensor in [&keys, &values] {
            assert_eq!(
                tensor.dims(),
                [step.tokens, kv_heads, head_size],
                "PagedCache::write: [positions of the step, kv heads, head size]"
            );
        }
        match (&mut self.held, &step.positions) {
            (
                Held::Host {
                    keys: held_keys,
                    values: held_values,
                },
                Positions::Host(runs),
            ) => {
                let (keys, values) = (fused::values(keys), fused::values(values));
                let new = [fused::slice(&keys), fused::slice(&values)];
                cpu::write(self.shape, held_keys, held_values, new, runs);
            }
            #[cfg(feature = "cube")]
            (
                Held::Device {
                    keys: held_keys,
                    values: held_values,
                },
                Positions::Device(positions),
            ) => {
                let held = [&*held_keys, &*held_values];
                let new = [keys, values].map(device::primitive);
                cuda::write(self.shape, held, new, positions);
            }
            #[cfg(feature = "cube")]
            _ => unreachable!("{OTHER_DEVICE}"),
        }
    }

    /// Each new position attends to its own text up to itself, inside the window; its own key and value must have been
    /// written. No gradient.
    ///
    /// # Shapes
    /// * `q`: `[positions of the step, query heads, head size]`; query head `h` uses kv head
    ///   `h / (query heads / kv heads)`
    /// * output: as `q`
    pub fn attend(&self, q: Tensor<3>, step: &PagedStep, shape: AttentionShape) -> Tensor<3> {
        let PagedShape {
            kv_heads,
            head_size,
            ..
        } = self.shape;
        let [rows, heads, size] = q.dims();
        assert_eq!(
            [rows, size],
            [step.tokens, head_size],
            "PagedCache::attend: q [positions of the step, query heads, head size]"
        );
        assert_eq!(
            heads % kv_heads,
            0,
            "PagedCache::attend: kv heads divide query heads"
        );
        if rows == 0 {
            return q;
        }
        match (&self.held, &step.positions) {
            (Held::Host { keys, values }, Positions::Host(runs)) => {
                let q = fused::values(q);
                let view = cpu::View {
                    shape: self.shape,
                    keys,
                    values,
                };
                let out = cpu::attend(fused::slice(&q), heads, view, runs, shape);
                fused::plain(out, [rows, heads, size])
            }
            #[cfg(feature = "cube")]
            (Held::Device { keys, values }, Positions::Device(positions)) => {
                let q = device::primitive(q);
                let held = [keys, values];
                device::plain(cuda::attend(self.shape, q, held, positions, shape))
            }
            #[cfg(feature = "cube")]
            _ => unreachable!("{OTHER_DEVICE}"),
        }
    }

    /// Panics unless every run is inside its blocks and they are below `blocks`.
    pub(crate) fn assert_holds(&self, runs: &[PagedRun], blocks: usize) {
        for run in runs {
            assert!(
                run.start + run.tokens <= run.blocks.len() * self.shape.block_size,
                "PagedCache: {} blocks of {} for {} positions",
                run.blocks.len(),
                self.shape.block_size,
                run.start + run.tokens
            );
            assert!(
                run.blocks.iter().all(|&block| (block as usize) < blocks),
                "PagedCache: a block is outside the cache of {}",
                self.shape.blocks
            );
        }
    }
}
