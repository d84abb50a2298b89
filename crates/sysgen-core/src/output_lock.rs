//! One process at a time writes into an output folder. The lock is the operating system's, so that it
//! ends with the process however that ends, `kill -9` included; the file itself stays.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Result, bail};

use crate::files::{create_directory, explain, remove_leftovers};

/// Name of the lock file in the output folder.
const LOCK_FILE: &str = ".lock";

/// Holds an output folder until dropped.
#[derive(Debug)]
pub struct OutputLock {
    _file: File,
}

/// Creates `directory` and locks it; removes what a killed run left half-written directly in it.
///
/// # Errors
/// The folder is in use (names the process), cannot be created or cannot be written.
pub fn lock_output(directory: &Path) -> Result<OutputLock> {
    create_directory(directory)?;
    let path = directory.join(LOCK_FILE);
    // Not truncated on opening: the process that holds the lock has its number in the file.
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| explain("write", &path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let process = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!("process {}", holder.trim()),
                _ => "another process".to_string(),
            };
            bail!(
                "{} is in use by {process}; wait for it to end, or choose another output_dir",
                directory.display()
            );
        }
        Err(TryLockError::Error(error)) => return Err(explain("lock", &path, error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| explain("write", &path, error))?;
    remove_leftovers(directory);
    Ok(OutputLock { _file: file })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_process_that_holds_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("runs/one");
        let lock = lock_output(&output).unwrap();
        let error = lock_output(&output).unwrap_err().to_string();
        let process = format!("runs/one is in use by process {};", std::process::id());
        assert!(error.contains(&process), "{error}");
        drop(lock);
        lock_output(&output).unwrap();
    }

    /// The child of `a_killed_process_gives_its_folder_back`; does nothing in an ordinary test run.
    #[test]
    fn child_that_holds_a_lock() {
        let Some(output) = std::env::var_os("SYSGEN_TEST_LOCK") else {
            return;
        };
        let _lock = lock_output(Path::new(&output)).unwrap();
        std::fs::write(Path::new(&output).join(".a.json.writing-1-0"), "half").unwrap();
        std::fs::write(Path::new(&output).join("ready"), "").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    #[test]
    fn a_killed_process_gives_its_folder_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "output_lock::tests::child_that_holds_a_lock"])
            .env("SYSGEN_TEST_LOCK", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !folder.path().join("ready").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended early");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let error = lock_output(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("in use by process {};", child.id())),
            "{error}"
        );

        child.kill().unwrap();
        child.wait().unwrap();
        lock_output(folder.path()).unwrap();
        assert!(!folder.path().join(".a.json.writing-1-0").exists());
    }
}
