//! Files and folders that are either whole or absent: written beside their place, flushed to the
//! disk, then renamed into it. A run that dies half-way leaves only a hidden `.<name>.writing-*`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

use crate::no_room::NoRoom;

/// Stands in the name of everything that is still being written.
const WRITING: &str = ".writing-";

/// Writes a file through `write`, which gets a buffered writer, and renames it to `path` once its
/// bytes are on the disk. Missing parent folders are created. A device such as `/dev/null` is
/// written directly.
///
/// # Errors
/// Names the path and, for a full disk or a refused permission, what to do. `path` then still has its
/// former content, and nothing is left beside it.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let path = &link_target(path);
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let file = File::options().write(true).open(path);
        let mut writer = BufWriter::new(file.map_err(|error| explain("open", path, error))?);
        return write(&mut writer)
            .and_then(|()| writer.flush())
            .map_err(|error| explain("write", path, error));
    }
    create_parent(path)?;
    let temporary = Temporary::beside(path)?;
    let written = (|| {
        let mut writer = BufWriter::new(File::create(&temporary.path)?);
        write(&mut writer)?;
        writer
            .into_inner()
            .map_err(|error| error.into_error())?
            .sync_all()?;
        fs::rename(&temporary.path, path)
    })();
    written.map_err(|error| cut_short(path, &temporary.path, error.into()))?;
    temporary.keep();
    sync_folder_of(path)
}

/// Fills a new folder through `fill`, which gets the folder's temporary path, and renames it to `path`
/// once every file in it is on the disk. A folder already at `path` is replaced.
///
/// # Errors
/// The error of `fill`, or one that names the path. `path` then still has its former content, and
/// nothing is left beside it.
pub fn write_directory_atomically<T>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let path = &link_target(path);
    create_parent(path)?;
    remove_abandoned(path);
    let temporary = Temporary::beside(path)?;
    fs::create_dir(&temporary.path).map_err(|error| explain("create", path, error))?;
    let filled = fill(&temporary.path).and_then(|value| {
        sync_tree(&temporary.path).map_err(|error| explain("write", path, error))?;
        Ok(value)
    });
    let value = filled.map_err(|error| match NoRoom::behind(&error) {
        Some(_) => cut_short(path, &temporary.path, error),
        None => error,
    })?;

    // `rename` does not replace a folder that has something in it: the former one steps aside.
    let former = Temporary::beside(path)?;
    let replaces = path.exists();
    if replaces {
        fs::rename(path, &former.path).map_err(|error| explain("replace", path, error))?;
    }
    if let Err(error) = fs::rename(&temporary.path, path) {
        if replaces && fs::rename(&former.path, path).is_err() {
            let kept = former.keep();
            let former_is = format!("its former content is in {}", kept.display());
            return Err(explain("replace", path, error).context(former_is));
        }
        return Err(explain("write", path, error));
    }
    temporary.keep();
    sync_folder_of(path)?;
    Ok(value)
}

/// Creates `path` and its parents.
///
/// # Errors
/// Names the path and what to do.
pub fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| explain("create", path, error))
}

/// Removes what a killed process left half-written directly in `directory`. Only the holder of the
/// folder's lock may call this: anything else could be another process at work.
pub(crate) fn remove_leftovers(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.contains(WRITING) {
            tracing::warn!("removing {}, left half-written", entry.path().display());
            remove(&entry.path());
        }
    }
}

/// Removes what killed processes of this machine left of the folder `path`, beside it, wherever that is: no lock guards an export
/// outside `output_dir`. Where the system cannot be asked who is alive, nothing is removed.
fn remove_abandoned(path: &Path) {
    let processes = Path::new("/proc");
    if !processes.join("self").exists() {
        return;
    }
    let Some(name) = path.file_name() else { return };
    let writing = format!(".{}{WRITING}", name.to_string_lossy());
    let Ok(entries) = fs::read_dir(parent_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name
            .strip_prefix(&writing)
            .and_then(|end| end.split_once('-'));
        let process = process.and_then(|(process, _)| process.parse::<u32>().ok());
        if process.is_some_and(|process| !processes.join(process.to_string()).exists()) {
            tracing::warn!("removing {}, left half-written", entry.path().display());
            remove(&entry.path());
        }
    }
}

/// The error of doing `what` at `path`, with the way out where there is one.
pub(crate) fn explain(what: &'static str, path: &Path, error: io::Error) -> anyhow::Error {
    if let Some(no_room) = NoRoom::of(error.kind(), what, path) {
        return no_room.into();
    }
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "cannot {what} {path}: permission denied; choose a folder you may write to"
        ),
        io::ErrorKind::ReadOnlyFilesystem => anyhow::anyhow!(
            "cannot {what} {path}: the file system is read-only; choose another folder"
        ),
        _ => anyhow::anyhow!("cannot {what} {path}: {error}"),
    }
}

/// The error of writing `path` by way of `temporary`, which is still there.
fn cut_short(path: &Path, temporary: &Path, error: anyhow::Error) -> anyhow::Error {
    if let Some(no_room) = NoRoom::behind(&error) {
        return no_room.for_folder(path, bytes_in(temporary)).into();
    }
    match error.downcast::<io::Error>() {
        Ok(error) => explain("write", path, error),
        Err(error) => error,
    }
}

/// Bytes of a file or of all files in a folder, as far as they can be told.
fn bytes_in(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::metadata(path).map_or(0, |file| file.len());
    };
    let entries = entries.flatten();
    entries.map(|entry| bytes_in(&entry.path())).sum()
}

/// A path beside the wanted one that is removed again unless kept.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Temporary> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = path
            .file_name()
            .with_context(|| format!("{} does not name a file or folder", path.display()))?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut hidden = OsStr::new(".").to_os_string();
        hidden.push(name);
        hidden.push(format!("{WRITING}{}-{count}", std::process::id()));
        let path = path.with_file_name(hidden);
        // Of an earlier process with our number, which in a container is often the same.
        remove(&path);
        Ok(Temporary { path, keep: false })
    }

    fn keep(mut self) -> PathBuf {
        self.keep = true;
        self.path.clone()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

/// Best effort: whoever calls has a better error to report than a failed clean-up.
fn remove(path: &Path) {
    let _ = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
}

/// Renaming onto a symbolic link would replace the link; the file behind it is what is meant.
fn link_target(path: &Path) -> PathBuf {
    if path.is_symlink() {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
    } else {
        path.to_path_buf()
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn create_parent(path: &Path) -> Result<()> {
    create_directory(parent_of(path))
}

/// A rename is on the disk only once the folder that holds the name is.
fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = parent_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    match synced {
        // Some network and container file systems cannot flush a folder; the rename stands.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced.map_err(|error| explain("write", path, error)),
    }
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_former_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |file| file.write_all(b"first")).unwrap();
        let error = write_atomically(&path, |file| {
            file.write_all(b"second")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("a.txt") && error.contains("free some space"),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_folder_without_room_is_named_with_what_had_gone_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-8");
        let error = write_directory_atomically::<()>(&path, |new| {
            fs::write(new.join("weights"), vec![0; 30 << 10])?;
            let full = Err(io::Error::from(io::ErrorKind::StorageFull));
            write_atomically(&new.join("moments"), |file| {
                file.write_all(&vec![0; 10 << 10])?;
                file.flush()?;
                full
            })
            .context("saving the moments")
        })
        .unwrap_err();
        let no_room = NoRoom::behind(&error).unwrap();
        assert_eq!(no_room.written, 40 << 10);
        let said = format!("{error:#}");
        assert!(
            said.starts_with("cannot write ")
                && said.contains("checkpoint-8: the disk is full after 40 KiB;"),
            "{said}"
        );
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_killed_process_left_of_a_folder_goes_with_the_next_attempt() {
        let folder = tempfile::tempdir().unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let (dead, living) = (ended.id(), std::os::unix::process::parent_id());
        ended.wait().unwrap();
        let left = |name: &str, process: u32| format!(".{name}{WRITING}{process}-0");
        for name in [
            left("export", dead),
            left("export", living),
            left("other", dead),
            ".export.writing-up".to_string(),
        ] {
            fs::create_dir(folder.path().join(&name)).unwrap();
            fs::write(folder.path().join(&name).join("half"), "half").unwrap();
        }
        write_directory_atomically(&folder.path().join("export"), |new| {
            Ok(fs::write(new.join("a"), "whole")?)
        })
        .unwrap();
        let mut expected = [
            left("export", living),
            left("other", dead),
            ".export.writing-up".to_string(),
            "export".to_string(),
        ];
        expected.sort();
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn missing_folders_are_created() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c.txt");
        write_atomically(&path, |file| file.write_all(b"x")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_path_and_the_way_out() {
        let error = write_atomically(Path::new("/dev/full"), |file| file.write_all(b"x"));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("/dev/full: the disk is full; free some space"),
            "{error}"
        );
    }

    #[test]
    #[cfg(unix)]
    fn a_symbolic_link_stays_and_its_target_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomically(&link, |file| file.write_all(b"new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    #[cfg(unix)]
    fn a_read_only_folder_is_named_with_the_way_out() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
        if File::create(closed.join("probe")).is_ok() {
            eprintln!("skipped: this user (root) may write to read-only folders");
            return;
        }
        let error = write_atomically(&closed.join("a.txt"), |file| file.write_all(b"x"));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("closed/a.txt: permission denied; choose a folder"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_is_replaced_whole_and_a_failure_leaves_the_former_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("export");
        let fill = |text: &'static str, name: &'static str| {
            move |new: &Path| {
                fs::create_dir(new.join("inner"))?;
                fs::write(new.join("inner").join(name), text)?;
                Ok(text.len())
            }
        };
        assert_eq!(
            write_directory_atomically(&path, fill("one", "a")).unwrap(),
            3
        );
        assert_eq!(
            write_directory_atomically(&path, fill("three", "b")).unwrap(),
            5
        );
        assert_eq!(names(&path.join("inner")), ["b"]);

        let failed: Result<()> = write_directory_atomically(&path, |new| {
            fs::write(new.join("c"), "half")?;
            anyhow::bail!("the weights differ")
        });
        assert_eq!(failed.unwrap_err().to_string(), "the weights differ");
        assert_eq!(names(&path), ["inner"]);
        assert_eq!(names(folder.path()), ["export"]);
    }
}
