//! One process at a time writes into an output folder, or several that each have their own part of the work.
//! The lock is the operating system's, so that it
//! ends with the process however that ends, `kill -9` included; the file itself stays.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use anyhow::{Result, anyhow};

use crate::files::{create_directory, explain, remove_leftovers, write_atomically};

/// Name of the lock file in the output folder.
const LOCK_FILE: &str = ".lock";

/// Says when the work in an output folder began.
const STARTED_FILE: &str = ".started";

/// Holds an output folder, or a part of the work in it, until dropped.
#[derive(Debug)]
pub struct OutputLock {
    _files: Vec<File>,
}

/// Creates `directory` and locks it; removes what a killed run left half-written directly in it.
///
/// # Errors
/// The folder is in use (names the process), cannot be created or cannot be written.
pub fn lock_output(directory: &Path) -> Result<OutputLock> {
    create_directory(directory)?;
    let path = directory.join(LOCK_FILE);
    let file = lock_exclusively(&path, &directory.display().to_string())?;
    remove_leftovers(directory);
    Ok(OutputLock { _files: vec![file] })
}

/// Notes in `directory` that its work begins now, unless it has begun before.
///
/// # Errors
/// The folder cannot be written.
pub fn note_start(directory: &Path) -> Result<()> {
    if started(directory).is_some() {
        return Ok(());
    }
    create_directory(directory)?;
    let path = directory.join(STARTED_FILE);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    write_atomically(&path, |file| writeln!(file, "{now}"))
}

/// When the work in `directory` began, in seconds since 1970 (UTC): the date that a chat template writes for all of its rows,
/// on whatever day they are rendered.
pub fn started(directory: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(directory.join(STARTED_FILE)).ok()?;
    text.trim().parse().ok()
}

/// Creates `directory` and locks one `part` of the work in it, a text that can stand in a file's name.
/// Other parts may be locked at the same time, by processes on other machines as well, but not the whole
/// folder, nor a part that `overlaps` says does some of the same work.
///
/// # Errors
/// As `lock_output`.
pub fn lock_part(
    directory: &Path,
    part: &str,
    overlaps: impl Fn(&str) -> bool,
) -> Result<OutputLock> {
    create_directory(directory)?;
    let path = directory.join(LOCK_FILE);
    let whole = open(&path)?;
    match whole.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(in_use(whole, &directory.display().to_string()));
        }
        Err(TryLockError::Error(error)) => return Err(cannot_lock(&path, error)),
    }
    // The last holder of the whole folder is none any more.
    let _ = whole.set_len(0);
    let name_of = |part: &str| format!("{LOCK_FILE}-{part}");
    let place = |part: &str| format!("{}, part {part}", directory.display());
    let own = lock_exclusively(&directory.join(name_of(part)), &place(part))?;
    // After taking one's own lock, so that of two that start at once at least one sees the other.
    let entries =
        std::fs::read_dir(directory).map_err(|error| explain("read", directory, error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some(other) = name.strip_prefix(&name_of("")) else {
            continue;
        };
        if other != part && overlaps(other) {
            let file = open(&entry.path())?;
            if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
                return Err(in_use(file, &place(other)));
            }
        }
    }
    Ok(OutputLock {
        _files: vec![own, whole],
    })
}

/// Not truncated: the process that holds the lock has its number in the file.
fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| explain("write", path, error))
}

fn lock_exclusively(path: &Path, place: &str) -> Result<File> {
    let mut file = open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use(file, place)),
        Err(TryLockError::Error(error)) => return Err(cannot_lock(path, error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| explain("write", path, error))?;
    Ok(file)
}

/// Lustre, for example, has locks of files only where it is mounted with `flock`.
fn cannot_lock(path: &Path, error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::Unsupported => anyhow!(
            "cannot lock {}: this file system has no file locks; mount it with flock, or choose an output_dir on a local disk",
            path.display()
        ),
        _ => explain("lock", path, error),
    }
}

fn in_use(mut file: File, place: &str) -> anyhow::Error {
    let mut holder = String::new();
    let process = match file.read_to_string(&mut holder) {
        Ok(_) if !holder.trim().is_empty() => format!("process {}", holder.trim()),
        _ => "another process".to_string(),
    };
    anyhow!("{place} is in use by {process}; wait for it to end, or choose another output_dir")
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

    #[test]
    fn parts_stand_beside_each_other_but_not_beside_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let part = |part: &str| lock_part(folder.path(), part, |other| other.ends_with("of-9"));
        let first = part("1-of-2").unwrap();
        let second = part("2-of-2").unwrap();
        let error = part("1-of-2").unwrap_err().to_string();
        assert!(
            error.contains(", part 1-of-2 is in use by process"),
            "{error}"
        );
        let error = lock_output(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another process"), "{error}");
        drop((first, second));

        let other = lock_part(folder.path(), "1-of-9", |_| false).unwrap();
        let error = part("1-of-2").unwrap_err().to_string();
        assert!(
            error.contains(", part 1-of-9 is in use by process"),
            "{error}"
        );
        drop(other);
        let whole = lock_output(folder.path()).unwrap();
        assert!(part("1-of-2").is_err());
        drop(whole);
        part("1-of-2").unwrap();
    }

    /// What `flock` gives on Lustre (ENOSYS) and on some network file systems (EOPNOTSUPP).
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_without_locks_is_said_with_the_way_out() {
        for code in [38, 95] {
            let error = std::io::Error::from_raw_os_error(code);
            let error = cannot_lock(Path::new("runs/a/.lock"), error).to_string();
            assert_eq!(
                error,
                "cannot lock runs/a/.lock: this file system has no file locks; mount it with flock, or choose an output_dir \
                 on a local disk"
            );
        }
        let other = cannot_lock(Path::new("a"), std::io::Error::from_raw_os_error(5));
        assert!(other.to_string().starts_with("cannot lock a: "), "{other}");
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
