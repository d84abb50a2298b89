//! `runs/events.out.tfevents.…`: the lines of `metrics.jsonl` in the format that TensorBoard reads.
//!
//! A file is a sequence of records (TFRecord: length, masked CRC-32C of the length, bytes, masked CRC-32C of the bytes), each
//! a serialised `Event` message of TensorFlow's `event.proto`. Only the fields used here are written.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::metrics::Line;

/// Begins the name of every event file; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";
/// Ends the names of ours, so that only those are replaced.
const SUFFIX: &str = ".sysgen";

/// An event file that grows with the run.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// Starts the run's event file in `folder` anew, with the lines that are there already: a resumed run leaves no step twice.
    ///
    /// # Errors
    /// When the folder or file cannot be written.
    pub fn start(folder: &Path, lines: &[Line]) -> Result<EventFile> {
        sysgen_core::files::create_directory(folder)?;
        for entry in std::fs::read_dir(folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        let path = folder.join(format!("{PREFIX}{:010}{SUFFIX}", now() as u64));
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = EventFile { file };
        let mut version = double(1, now());
        version.extend(bytes(3, b"brain.Event:2"));
        events.file.write_all(&record(&version))?;
        lines.iter().try_for_each(|line| events.add(line))?;
        Ok(events)
    }

    /// Adds the numbers of a line.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, line: &Line) -> Result<()> {
        let values = [
            ("train/loss", line.loss),
            ("train/learning_rate", line.learning_rate),
            ("train/grad_norm", line.grad_norm),
            ("train/tokens_per_second", line.tokens_per_second),
            ("train/epoch", (line.step > 0).then_some(line.epoch)),
            ("eval/loss", line.eval_loss),
            ("eval/obedience", line.obedience),
        ];
        let mut summary = Vec::new();
        for (tag, value) in values {
            let Some(value) = value else { continue };
            let mut entry = bytes(1, tag.as_bytes());
            entry.push(2 << 3 | 5); // simple_value, four bytes
            entry.extend((value as f32).to_le_bytes());
            summary.extend(bytes(1, &entry));
        }
        let mut event = double(1, now());
        event.push(2 << 3); // step, a varint
        event.extend(varint(line.step as u64));
        event.extend(bytes(5, &summary));
        self.file.write_all(&record(&event))?;
        Ok(())
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A field of eight bytes.
fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

/// A field of as many bytes as it says.
fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(content.len() as u64));
    out.extend(content);
    out
}

/// Seven bits a byte, the lowest first; the high bit says that more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(content);
    out.extend(masked_crc(content).to_le_bytes());
    out
}

/// The rotation and constant of TensorFlow's `lib/hash/crc32c.h`.
fn masked_crc(content: &[u8]) -> u32 {
    crc32c(content).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with the Castagnoli polynomial, reflected. A few dozen bytes a step need no table.
fn crc32c(content: &[u8]) -> u32 {
    !content.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_resumed_run_has_one_file_and_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let line = |step| Line {
            step,
            loss: Some(0.5),
            ..Line::default()
        };
        EventFile::start(dir.path(), &[line(1), line(2)]).unwrap();
        let mut events = EventFile::start(dir.path(), &[line(1)]).unwrap();
        events.add(&line(2)).unwrap();
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        let content = std::fs::read(files[0].path()).unwrap();
        let tag = b"train/loss";
        assert_eq!(content.windows(tag.len()).filter(|w| w == tag).count(), 2);
    }
}
