//! Keys and values of the texts being decoded, in blocks of a fixed number of positions. Whose blocks they are is the
//! caller's to know: a text is a list of blocks, and two texts may list the same one.

use std::path::Path;

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

/// What the host has available and the container may still take, in bytes.
fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let container = memory_left(&groups, Path::new("/sys/fs/cgroup"));
    Some((kib << 10).min(container.unwrap_or(usize::MAX)))
}

/// What the control groups of a process (`/proc/self/cgroup`) let it take beyond what they hold now, the page cache that they
/// would give back aside; `None` without a limit. Docker, Kubernetes and SLURM limit memory so, and end who goes beyond.
fn memory_left(groups: &str, root: &Path) -> Option<usize> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        let (root, limit, usage, cache) = match controllers {
            "" => (
                root.to_path_buf(),
                "memory.max",
                "memory.current",
                "inactive_file",
            ),
            _ if controllers.split(',').any(|name| name == "memory") => (
                root.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
            _ => return None,
        };
        let left = |folder: &Path| -> Option<usize> {
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
            let stat = read("memory.stat").unwrap_or_default();
            let kept = stat
                .lines()
                .find_map(|line| line.strip_prefix(cache)?.trim().parse().ok());
            let held = number(usage)?.saturating_sub(kept.unwrap_or(0));
            Some(number(limit)?.saturating_sub(held))
        };
        let group = root.join(group.trim_start_matches('/'));
        // A limit of a group holds for all below it.
        let groups = group
            .ancestors()
            .take_while(|folder| folder.starts_with(&root));
        groups.filter_map(left).min()
    });
    limits.min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn group(folder: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn a_containers_limit_and_those_above_it_count() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let stat = ("memory.stat", "anon 5\ninactive_file 30\nactive_file 7\n");
        group(
            &root.join("a/b"),
            &[("memory.max", "max\n"), ("memory.current", "90\n"), stat],
        );
        assert_eq!(memory_left("0::/a/b\n", root), None);
        group(
            &root.join("a"),
            &[("memory.max", "200\n"), ("memory.current", "130\n"), stat],
        );
        assert_eq!(memory_left("0::/a/b\n", root), Some(100));
        group(&root.join("a/b"), &[("memory.max", "95\n")]);
        assert_eq!(memory_left("0::/a/b\n", root), Some(35));
        // More is held than allowed: nothing is left.
        group(&root.join("a/b"), &[("memory.max", "50\n")]);
        assert_eq!(memory_left("0::/a/b\n", root), Some(0));
        assert_eq!(memory_left("", root), None);
    }

    #[test]
    fn the_first_version_of_control_groups_counts_too() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("memory.limit_in_bytes", "1000\n"),
            ("memory.usage_in_bytes", "600\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
        ];
        group(&root.path().join("memory/job"), &files);
        let groups = "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n";
        assert_eq!(memory_left(groups, root.path()), Some(500));
    }
}
