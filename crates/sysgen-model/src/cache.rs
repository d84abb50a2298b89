//! Keys and values of the texts being decoded, in blocks of a fixed number of positions. Whose blocks they are is the
//! caller's to know: a text is a list of blocks, and two texts may list the same one.

use burn::tensor::Device;
use sysgen_ops::{PagedCache, PagedShape};

use crate::decoder::Decoder;
use crate::device::free_gpu_memory;

/// Taken for a cache where nothing tells how much memory there is.
const FALLBACK: usize = 1 << 30;

/// A cache of a fixed number of blocks.
#[derive(Debug)]
pub struct KvCache {
    block_size: usize,
    blocks: usize,
    pub(crate) layers: Vec<PagedCache>,
}

impl KvCache {
    /// A cache beside `decoder`, in its dtype, for `blocks` blocks of `block_size` positions.
    ///
    /// # Panics
    /// `block_size` is not a positive multiple of [`sysgen_ops::BLOCK_MULTIPLE`].
    pub fn new(decoder: &Decoder, blocks: usize, block_size: usize) -> KvCache {
        let (config, device) = (&decoder.config, decoder.device());
        let shape = PagedShape {
            blocks,
            block_size,
            kv_heads: config.kv_heads,
            head_size: config.head_dim,
        };
        let layer = || PagedCache::new(shape, &device, decoder.dtype());
        KvCache {
            block_size,
            blocks,
            layers: (0..config.layers).map(|_| layer()).collect(),
        }
    }

    /// Positions of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of keys and values that one position takes in all layers.
    pub fn bytes_per_position(decoder: &Decoder) -> usize {
        let config = &decoder.config;
        2 * config.layers * config.kv_heads * config.head_dim * decoder.dtype().size()
    }
}

/// Bytes that a cache may take beside what `device` already holds: nine tenths of a GPU's free memory, half of what the
/// system calls available.
pub fn cache_budget(device: &Device) -> usize {
    match free_gpu_memory(device) {
        Some(bytes) => bytes / 10 * 9,
        None => available_memory().map_or(FALLBACK, |bytes| bytes / 2),
    }
}

/// `MemAvailable` of the host, in bytes.
fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
