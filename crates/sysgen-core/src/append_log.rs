//! An append-only JSONL file that survives `kill -9` at any moment: a line is in it whole or not at
//! all. What the lines say is left to the caller.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{create_directory, explain};

/// Where an entry lies in its file, in bytes, without the end of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Of its first byte.
    pub offset: u64,
    /// Of the entry.
    pub length: usize,
}

/// The log, open at its end.
#[derive(Debug)]
pub struct AppendLog {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    /// Bytes of an unfinished last line that `open` took away.
    dropped_bytes: u64,
}

impl AppendLog {
    /// Opens the log at `path`, creating it and its folder when absent. An unfinished last line, left
    /// by a killed process or a lost power supply, is taken away and warned about.
    ///
    /// # Errors
    /// The file cannot be opened, read or cut.
    pub fn open(path: &Path) -> Result<AppendLog> {
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            create_directory(parent)?;
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| explain("open", path, error))?;
        let before = file
            .seek(SeekFrom::End(0))
            .map_err(|error| explain("read", path, error))?;
        let length =
            whole_length(&mut file, before).map_err(|error| explain("read", path, error))?;
        if length < before {
            tracing::warn!(
                "{}: the last line is unfinished; {} bytes taken away",
                path.display(),
                before - length
            );
            file.set_len(length)
                .map_err(|error| explain("write", path, error))?;
        }
        file.seek(SeekFrom::Start(length))
            .map_err(|error| explain("read", path, error))?;
        let path = path.to_path_buf();
        Ok(AppendLog {
            path,
            file,
            length,
            dropped_bytes: before - length,
        })
    }

    /// Adds one entry as one line, in one write; gives back where it lies.
    ///
    /// # Errors
    /// The entry cannot be written, for example on a full disk; the log then ends as before.
    pub fn append<T: Serialize>(&mut self, entry: &T) -> Result<Span> {
        let mut line = serde_json::to_vec(entry).with_context(|| {
            format!(
                "{}: an entry cannot be written as JSON",
                self.path.display()
            )
        })?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // Part of the line may be there: the next entry must not be glued to it.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(explain("write", &self.path, error));
        }
        let span = Span {
            offset: self.length,
            length: line.len() - 1,
        };
        self.length += line.len() as u64;
        Ok(span)
    }

    /// Returns once every entry is on the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| explain("write", &self.path, error))
    }

    /// Bytes of the unfinished last line that `open` took away; 0 for a log that was closed in order.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// The entries of the log at `path`, from its first line; none when the file is absent. An
    /// unfinished last line is passed over, as `open` would take it away.
    ///
    /// # Errors
    /// Per entry: the file and line of one that is not `T`, which `open` cannot mend.
    pub fn entries<T: DeserializeOwned>(
        path: &Path,
    ) -> Result<impl Iterator<Item = Result<T>> + use<T>> {
        let spans = AppendLog::entries_with_spans(path)?;
        Ok(spans.map(|entry| entry.map(|(_, entry)| entry)))
    }

    /// As `entries`, each with where it lies in the file. The log may be growing meanwhile.
    ///
    /// # Errors
    /// As `entries`.
    pub fn entries_with_spans<T: DeserializeOwned>(
        path: &Path,
    ) -> Result<impl Iterator<Item = Result<(Span, T)>> + use<T>> {
        let mut lines = match File::open(path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(explain("open", path, error)),
        };
        let path = path.to_path_buf();
        let mut number = 0;
        let mut offset = 0;
        let mut line = Vec::new();
        Ok(std::iter::from_fn(move || {
            offset += line.len() as u64 + u64::from(number > 0);
            line.clear();
            number += 1;
            let reader = lines.as_mut()?;
            if let Err(error) = reader.read_until(b'\n', &mut line) {
                lines = None;
                return Some(Err(explain("read", &path, error)));
            }
            if line.pop() != Some(b'\n') {
                return None;
            }
            match serde_json::from_slice(&line) {
                Ok(entry) => {
                    let length = line.len();
                    Some(Ok((Span { offset, length }, entry)))
                }
                // `open` takes such a last line away, so it is no entry here either.
                Err(_) if !is_json(&line) && reader.fill_buf().is_ok_and(<[u8]>::is_empty) => None,
                Err(error) => Some(Err(anyhow::anyhow!(
                    "{}:{number}: damaged log entry ({error}); delete this line to have its row done again",
                    path.display()
                ))),
            }
        }))
    }
}

/// Length of the file up to its last line that is whole: ended by a newline and JSON. A lost power
/// supply can leave a line of zero bytes behind a newline that was written.
fn whole_length(file: &mut File, length: u64) -> io::Result<u64> {
    let ended = start_of_last_line(file, length)?;
    // `ended` is just behind the last newline. The line before it is whole if it is JSON.
    let start = start_of_last_line(file, ended.saturating_sub(1))?;
    let mut line = vec![0; (ended.saturating_sub(1) - start) as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut line)?;
    Ok(if ended == 0 || is_json(&line) {
        ended
    } else {
        start
    })
}

/// Position just behind the last newline before `end`, 0 when there is none.
fn start_of_last_line(file: &mut File, end: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let mut block_end = end;
    while block_end > 0 {
        let block_start = block_end.saturating_sub(BLOCK);
        let mut block = vec![0; (block_end - block_start) as usize];
        file.seek(SeekFrom::Start(block_start))?;
        file.read_exact(&mut block)?;
        if let Some(at) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(block_start + at as u64 + 1);
        }
        block_end = block_start;
    }
    Ok(0)
}

fn is_json(line: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    fn log_of(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/log.jsonl");
        fs::create_dir(folder.path().join("data")).unwrap();
        fs::write(&path, content).unwrap();
        (folder, path)
    }

    fn entries(path: &Path) -> Vec<u32> {
        AppendLog::entries(path)
            .unwrap()
            .collect::<Result<_>>()
            .unwrap()
    }

    #[test]
    fn entries_come_back_in_order_and_a_new_log_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/log.jsonl");
        assert_eq!(entries(&path), Vec::<u32>::new());
        let mut log = AppendLog::open(&path).unwrap();
        assert_eq!(entries(&path), Vec::<u32>::new());
        for entry in 0..5u32 {
            log.append(&entry).unwrap();
        }
        log.sync().unwrap();
        assert_eq!(entries(&path), [0, 1, 2, 3, 4]);
        let mut log = AppendLog::open(&path).unwrap();
        log.append(&5u32).unwrap();
        assert_eq!(entries(&path), [0, 1, 2, 3, 4, 5]);
        assert_eq!(log.dropped_bytes(), 0);
    }

    /// The file cut at every byte: exactly the lines that were whole remain, and go on.
    #[test]
    fn a_log_cut_anywhere_keeps_its_whole_lines() {
        let whole = b"101\n202\n303\n";
        for cut in 0..=whole.len() {
            let (_folder, path) = log_of(&whole[..cut]);
            let mut expected: Vec<u32> = [101, 202, 303][..cut / 4].to_vec();
            assert_eq!(
                entries(&path),
                expected,
                "read before opening, cut at {cut}"
            );
            let mut log = AppendLog::open(&path).unwrap();
            assert_eq!(log.dropped_bytes(), (cut % 4) as u64);
            log.append(&404u32).unwrap();
            expected.push(404);
            assert_eq!(entries(&path), expected, "cut at {cut}");
        }
    }

    #[test]
    fn spans_say_where_entries_lie() {
        let (_folder, path) = log_of(b"1\n22\n");
        let third = AppendLog::open(&path).unwrap().append(&333u32).unwrap();
        let content = fs::read_to_string(&path).unwrap();
        let spans = AppendLog::entries_with_spans::<u32>(&path).unwrap();
        let read: Vec<(Span, u32)> = spans.collect::<Result<_>>().unwrap();
        assert_eq!(read[2].0, third);
        for (span, entry) in read {
            let start = span.offset as usize;
            assert_eq!(&content[start..start + span.length], entry.to_string());
        }
    }

    #[test]
    fn a_last_line_longer_than_a_block_is_taken_away_whole() {
        let mut content = b"1\n".to_vec();
        content.extend(std::iter::repeat_n(b'7', 200_000));
        let (_folder, path) = log_of(&content);
        assert_eq!(AppendLog::open(&path).unwrap().dropped_bytes(), 200_000);
        assert_eq!(fs::read(&path).unwrap(), b"1\n");
    }

    #[test]
    fn a_last_line_of_zero_bytes_is_taken_away() {
        let (_folder, path) = log_of(b"1\n\0\0\0\n");
        assert_eq!(entries(&path), [1]);
        AppendLog::open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1\n");
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let (_folder, path) = log_of(b"1\n{\"a\n3\n");
        AppendLog::open(&path).unwrap();
        let read: Vec<Result<u32>> = AppendLog::entries(&path).unwrap().collect();
        assert_eq!(read.len(), 3);
        let error = read[1].as_ref().unwrap_err().to_string();
        assert!(error.contains("log.jsonl:2: damaged log entry"), "{error}");
        assert_eq!(*read[2].as_ref().unwrap(), 3);
    }

    #[test]
    fn a_last_line_of_another_shape_is_an_error_not_a_cut() {
        let (_folder, path) = log_of(b"1\n{\"a\":2}\n");
        assert_eq!(AppendLog::open(&path).unwrap().dropped_bytes(), 0);
        let read: Vec<Result<u32>> = AppendLog::entries(&path).unwrap().collect();
        assert!(
            read[1]
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("log.jsonl:2")
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_says_what_to_do() {
        let mut log = AppendLog {
            path: PathBuf::from("/dev/full"),
            file: File::options().write(true).open("/dev/full").unwrap(),
            length: 0,
            dropped_bytes: 0,
        };
        let error = log.append(&1u32).unwrap_err().to_string();
        assert!(
            error.contains("/dev/full: the disk is full; free some space"),
            "{error}"
        );
    }
}
