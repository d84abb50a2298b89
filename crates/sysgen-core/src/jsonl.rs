//! Text files line by line, plain or gzip by their content, and JSONL out. What a line means is left
//! to `sysgen-data`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use flate2::read::MultiGzDecoder;
use serde::Serialize;

use crate::files::{explain, write_atomically};

/// Opens a text file, unpacking gzip whatever its name; a UTF-8 byte-order mark is passed over.
///
/// # Errors
/// The file cannot be opened, or is UTF-16 or UTF-32.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead>> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];
    let file = File::open(path).map_err(|error| explain("open", path, error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        bail!("{} is a folder; name a file in it", path.display());
    }
    let (start, file) = peek(file).map_err(|error| explain("read", path, error))?;
    let whole: Box<dyn Read> = if start.starts_with(&GZIP) {
        Box::new(MultiGzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(file)
    };
    let (start, mut whole) = peek(whole).map_err(|error| explain("unpack", path, error))?;
    if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
        bail!("{} is UTF-16; convert it to UTF-8 first", path.display());
    }
    if start.starts_with(&BOM) {
        whole
            .read_exact(&mut [0; BOM.len()])
            .map_err(|error| explain("read", path, error))?;
    }
    Ok(Box::new(BufReader::with_capacity(1 << 18, whole)))
}

/// The lines of a text file (see [`open_text`]) with their 1-based numbers, without line ends (`\n` or
/// `\r\n`). Blank lines are passed over but counted.
///
/// # Errors
/// Opening as [`open_text`]. Per line: invalid UTF-8, named by file and line, after which the next
/// lines follow; an unreadable file (a truncated gzip, for example), after which nothing follows.
pub fn read_lines(path: &Path) -> Result<impl Iterator<Item = Result<(usize, String)>> + use<>> {
    let text = open_text(path)?;
    Ok(Lines {
        path: path.to_path_buf(),
        text: Some(text),
        number: 0,
    })
}

/// Writes each item as one line of JSON; the file appears whole or not at all.
///
/// # Errors
/// Names the path and, for a full disk, what to do.
pub fn write_jsonl<T: Serialize>(path: &Path, items: impl IntoIterator<Item = T>) -> Result<()> {
    write_atomically(path, |file| {
        for item in items {
            serde_json::to_writer(&mut *file, &item).map_err(io::Error::from)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}

struct Lines {
    path: PathBuf,
    /// None once nothing more can be read.
    text: Option<Box<dyn BufRead>>,
    number: usize,
}

impl Iterator for Lines {
    type Item = Result<(usize, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = Vec::new();
            self.number += 1;
            match self.text.as_mut()?.read_until(b'\n', &mut line) {
                Ok(0) => {
                    self.text = None;
                    return None;
                }
                Ok(_) => {}
                Err(error) => {
                    self.text = None;
                    let at = format!("{}:{}", self.path.display(), self.number);
                    return Some(Err(anyhow::anyhow!("{at}: cannot read further: {error}")));
                }
            }
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            return Some(match String::from_utf8(line) {
                Ok(line) => Ok((self.number, line)),
                Err(error) => Err(anyhow::anyhow!(
                    "{}:{}: not UTF-8 at byte {} of the line",
                    self.path.display(),
                    self.number,
                    error.utf8_error().valid_up_to() + 1
                )),
            });
        }
    }
}

/// The first bytes (at most 3), and a reader that still gives them.
fn peek<R: Read>(mut reader: R) -> io::Result<(Vec<u8>, impl Read + use<R>)> {
    let mut start = Vec::new();
    reader.by_ref().take(3).read_to_end(&mut start)?;
    Ok((start.clone(), Cursor::new(start).chain(reader)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    /// Every line as `number:text`, or its error without the folder.
    fn lines_of(content: &[u8]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        fs::write(&path, content).unwrap();
        let folder = format!("{}/", folder.path().display());
        read_lines(&path)
            .unwrap()
            .map(|line| match line {
                Ok((number, text)) => format!("{number}:{text}"),
                Err(error) => error.to_string().replace(&folder, ""),
            })
            .collect()
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(content).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn lines_lose_their_ends_and_keep_their_numbers() {
        assert_eq!(lines_of(b""), Vec::<String>::new());
        assert_eq!(lines_of(b"a\nb"), ["1:a", "2:b"]);
        assert_eq!(lines_of(b"a\r\n\r\n  \nb\r\n"), ["1:a", "4:b"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        assert_eq!(lines_of(b"\xef\xbb\xbfa\nb\n"), ["1:a", "2:b"]);
        assert_eq!(lines_of(&gzip(b"\xef\xbb\xbfa\n")), ["1:a"]);
    }

    #[test]
    fn gzip_is_known_by_content_and_may_have_several_members() {
        let mut packed = gzip(b"a\nb");
        packed.extend(gzip(b"c\nd\n"));
        assert_eq!(lines_of(&packed), ["1:a", "2:bc", "3:d"]);
    }

    #[test]
    fn a_truncated_gzip_gives_an_error_and_ends() {
        let text: Vec<u8> = (0..20_000u32)
            .flat_map(|i| format!("{}\n", i * i).into_bytes())
            .collect();
        let packed = gzip(&text);
        let lines = lines_of(&packed[..packed.len() / 2]);
        let (last, before) = lines.split_last().unwrap();
        assert!(
            last.starts_with("rows.jsonl:") && last.contains("cannot read further"),
            "{last}"
        );
        assert!(before.iter().all(|line| !line.contains("cannot")));
    }

    #[test]
    fn invalid_utf8_is_an_error_of_its_line_only() {
        let lines = lines_of(b"a\nb\xff\nc\n");
        assert_eq!(
            lines,
            [
                "1:a",
                "rows.jsonl:2: not UTF-8 at byte 2 of the line",
                "3:c"
            ]
        );
    }

    #[test]
    fn utf16_and_folders_are_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        fs::write(&path, b"\xff\xfea\0").unwrap();
        let error = open_text(&path).err().unwrap().to_string();
        assert!(
            error.ends_with("is UTF-16; convert it to UTF-8 first"),
            "{error}"
        );
        let error = open_text(folder.path()).err().unwrap().to_string();
        assert!(error.ends_with("is a folder; name a file in it"), "{error}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out/rows.jsonl");
        let rows = ["line\nbreak", "ünïcode", "\"quoted\""];
        write_jsonl(&path, rows).unwrap();
        let read: Vec<String> = read_lines(&path)
            .unwrap()
            .map(|line| serde_json::from_str(&line.unwrap().1).unwrap())
            .collect();
        assert_eq!(read, rows);
    }
}
