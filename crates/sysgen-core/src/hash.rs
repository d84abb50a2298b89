//! Content hashes, and seeds for random streams that depend on nothing but their name.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Result;

use crate::files::explain;

/// BLAKE3 of `bytes`, in hexadecimal.
pub fn hash_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// BLAKE3 of a file's content, in hexadecimal; the file is streamed.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(|error| explain("read", path, error))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes of files, each of which is read once: those who need the same file's share one of these.
#[derive(Debug, Default)]
pub struct FileHashes(Mutex<BTreeMap<PathBuf, String>>);

impl FileHashes {
    /// [`hash_file`] of `path`, as it was when it was first asked for.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of(&self, path: &Path) -> Result<String> {
        let mut known = self.0.lock().unwrap_or_else(|held| held.into_inner());
        if let Some(hash) = known.get(path) {
            return Ok(hash.clone());
        }
        let hash = hash_file(path)?;
        known.insert(path.to_path_buf(), hash.clone());
        Ok(hash)
    }
}

/// A seed that depends on every part and on where one part ends and the next begins: the first eight
/// bytes, little-endian, of BLAKE3 over each part's length (u64, little-endian) and bytes.
pub fn seed_from(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// From the BLAKE3 test vectors: the empty input.
    const EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    #[test]
    fn hashes_are_blake3() {
        assert_eq!(hash_bytes(b""), EMPTY);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "content").unwrap();
        assert_eq!(hash_file(&path).unwrap(), hash_bytes(b"content"));
        let missing = hash_file(&folder.path().join("b")).unwrap_err().to_string();
        assert!(missing.contains("/b: "), "{missing}");
    }

    #[test]
    fn a_file_is_read_once_for_all_who_ask() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let hashes = FileHashes::default();
        assert!(hashes.of(&path).is_err(), "an error is not remembered");
        std::fs::write(&path, "content").unwrap();
        let first = hashes.of(&path).unwrap();
        assert_eq!(first, hash_bytes(b"content"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hashes.of(&path).unwrap(), first);
    }

    #[test]
    fn seeds_depend_on_parts_and_their_borders() {
        assert_eq!(seed_from(&["a", "b"]), seed_from(&["a", "b"]));
        let others: [&[&str]; 5] = [&["ab"], &["b", "a"], &["a", "b", ""], &["", "ab"], &[]];
        for other in others {
            assert_ne!(seed_from(&["a", "b"]), seed_from(other), "{other:?}");
        }
        // Runs are resumed by other versions of the program: the rule may not change.
        // BLAKE3 of nothing begins af 13 49 b9 f5 f9 a1 a6.
        assert_eq!(seed_from(&[]), 0xa6a1_f9f5_b949_13af);
    }
}
