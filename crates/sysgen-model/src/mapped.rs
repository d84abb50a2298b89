//! A file that is read where it lies: its pages come when they are looked at, and go when they are no longer needed.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use anyhow::{Context, Result};
use memmap2::Mmap;

/// A file's bytes, memory-mapped.
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps the file.
    ///
    /// # Errors
    /// It cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Mapped> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: the map is read-only. Another program that shortens the file while it is mapped would end this one
        // by SIGBUS, as for every memory-mapped checkpoint; our own writers never write into a file, they replace it.
        let bytes = unsafe { Mmap::map(&file) };
        Ok(Mapped(bytes.with_context(|| {
            format!("cannot map {}", path.display())
        })?))
    }

    /// Gives the memory of `part`, which lies in this file, back to the system: a large file would otherwise stay in memory
    /// beside what is made of it. Looked at again, it is read again.
    ///
    /// # Panics
    /// `part` is no part of the file.
    pub fn forget(&self, part: &[u8]) {
        let from = (part.as_ptr() as usize).checked_sub(self.0.as_ptr() as usize);
        let from = from.filter(|from| from + part.len() <= self.0.len());
        let from = from.expect("only a part of the file can be forgotten");
        #[cfg(unix)]
        // SAFETY: a read-only map of a file loses nothing, its pages come back with the same bytes. That the system may
        // refuse changes nothing but the memory that is held.
        let _ = unsafe {
            self.0
                .unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, part.len())
        };
        #[cfg(not(unix))]
        let _ = from;
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        assert!(*mapped == *bytes);
        // From the middle of a page to the middle of another.
        mapped.forget(&mapped[5_000..77_777]);
        assert!(*mapped == *bytes);
        mapped.forget(&mapped[100_000..]);
    }
}
