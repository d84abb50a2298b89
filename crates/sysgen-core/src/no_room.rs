//! When the disk, a quota or a limit has no room for what is written: what it was, how much of it went in, and the way out.
//! An error of its own, so that whoever knows more (how much is needed, what is safe) can add it.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::size::readable;

/// There was no room for a file or folder. Nothing of it is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    what: &'static str,
    path: PathBuf,
    used_up: UsedUp,
    /// Bytes that had gone in; 0 where that is not known.
    pub(crate) written: u64,
    /// Bytes it needs, about; none where that is not known.
    needed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UsedUp {
    Disk,
    Quota,
    /// `ulimit -f`.
    FileSize,
}

impl NoRoom {
    /// Of `kind` while doing `what` (a verb) at `path`, if that is what `kind` says.
    pub(crate) fn of(kind: ErrorKind, what: &'static str, path: &Path) -> Option<NoRoom> {
        let used_up = match kind {
            ErrorKind::StorageFull => UsedUp::Disk,
            ErrorKind::QuotaExceeded => UsedUp::Quota,
            ErrorKind::FileTooLarge => UsedUp::FileSize,
            _ => return None,
        };
        Some(NoRoom {
            what,
            path: path.to_path_buf(),
            used_up,
            written: 0,
            needed: None,
        })
    }

    /// What `error` comes from, if it is this; also where a library reports it with an error of its own.
    pub fn behind(error: &anyhow::Error) -> Option<NoRoom> {
        error.chain().find_map(|cause| {
            let io = cause.downcast_ref::<std::io::Error>();
            let known = cause.downcast_ref::<NoRoom>().cloned();
            known.or_else(|| NoRoom::of(io?.kind(), "write", Path::new("")))
        })
    }

    /// The same, of which it is known that it needs about so many bytes.
    pub fn needing(self, bytes: u64) -> NoRoom {
        let needed = Some(bytes);
        NoRoom { needed, ..self }
    }

    /// The same said of the folder `path`, into which `written` bytes had gone besides.
    pub(crate) fn for_folder(self, path: &Path, written: u64) -> NoRoom {
        NoRoom {
            what: "write",
            path: path.to_path_buf(),
            written: self.written + written,
            ..self
        }
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (why, way_out) = match self.used_up {
            UsedUp::Disk => ("the disk is full", "free some space"),
            UsedUp::Quota => ("the disk quota is used up", "free some space"),
            UsedUp::FileSize => ("a file would be larger than `ulimit -f` allows", "raise it"),
        };
        write!(f, "cannot {} {}: {why}", self.what, self.path.display())?;
        if self.written > 0 && self.used_up != UsedUp::FileSize {
            write!(f, " after {}", readable(self.written))?;
            if let Some(needed) = self.needed.filter(|&needed| needed > self.written) {
                let missing = readable(needed - self.written);
                write!(f, " of about {}, {missing} are missing", readable(needed))?;
            }
        }
        write!(
            f,
            "; {way_out} and run the same command again, finished work is kept"
        )
    }
}

impl Error for NoRoom {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_where_it_is_known() {
        let path = Path::new("run/checkpoint-8");
        let mut full = NoRoom::of(ErrorKind::StorageFull, "write", path).unwrap();
        let begin = "cannot write run/checkpoint-8: the disk is full";
        let end = "; free some space and run the same command again, finished work is kept";
        assert_eq!(full.to_string(), format!("{begin}{end}"));
        full.written = 45 << 20;
        assert_eq!(full.to_string(), format!("{begin} after 45 MiB{end}"));
        let full = full.needing(120 << 20);
        let missing = "after 45 MiB of about 120 MiB, 75 MiB are missing";
        assert_eq!(full.to_string(), format!("{begin} {missing}{end}"));
        // A limit on a single file says nothing of the disk.
        let limit = NoRoom::of(ErrorKind::FileTooLarge, "write", path).unwrap();
        let limit = limit.for_folder(path, 1 << 20).to_string();
        assert!(
            limit.contains("`ulimit -f` allows; raise it and run"),
            "{limit}"
        );
    }

    #[test]
    fn it_is_found_behind_what_others_say_of_it() {
        let io = || std::io::Error::from(ErrorKind::QuotaExceeded);
        let found = NoRoom::behind(&anyhow::Error::new(io()).context("saving"));
        assert_eq!(found.unwrap().used_up, UsedUp::Quota);
        let known = NoRoom::of(ErrorKind::StorageFull, "open", Path::new("a")).unwrap();
        let found = NoRoom::behind(&anyhow::Error::new(known.clone()).context("saving"));
        assert_eq!(found, Some(known));
        assert_eq!(NoRoom::behind(&anyhow::anyhow!("the disk is full")), None);
    }
}
