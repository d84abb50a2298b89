//! Rendered rows kept on the disk, so that a second start does not tokenise again.
//!
//! Nothing is looked up by file name or time: an entry's key is the hash of the row's messages, and the file's key that of
//! everything else the ids depend on (template, tokenizer, policies, longest row, version of this program). A changed
//! row, template or option is another key, so a stale entry cannot be met. The file's content has a hash of its own; a
//! damaged file is made anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sysgen_chat::Chat;
use sysgen_core::files::write_atomically;
use sysgen_core::hash::hash_bytes;

use crate::example::{Example, Fit};
use crate::rows::Row;

/// Raised when the layout of the file or the meaning of an entry changes.
const LAYOUT: &str = "1";
const KEY: &str = "key";
const CONTENT: &str = "content";

type RowKey = [u8; 32];

/// What an entry says of its row.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Whole = 0,
    Cut = 1,
    Dropped = 2,
}

/// Renders the rows that the cache in `folder` does not hold, and keeps all of them there for the next time.
///
/// A cache that cannot be read or written costs time, nothing else.
pub fn through(
    folder: &Path,
    chat: &Chat,
    rows: &[&Row],
    max_length: usize,
    render: impl Fn(&Row) -> Fit + Sync,
) -> Vec<Fit> {
    let key = file_key(chat, max_length);
    let path = folder.join(format!("rendered-{}.safetensors", &key[..16]));
    let known = if path.exists() {
        Known::read(&path, &key).unwrap_or_else(|error| {
            tracing::warn!("{} is damaged and made anew: {error:#}", path.display());
            Known::default()
        })
    } else {
        Known::default()
    };
    let keys: Vec<RowKey> = rows.par_iter().map(|row| row_key(row)).collect();
    let fits: Vec<Fit> = rows
        .par_iter()
        .zip(&keys)
        .map(|(row, key)| known.get(key, row).unwrap_or_else(|| render(row)))
        .collect();
    let fresh = keys
        .iter()
        .filter(|key| !known.places.contains_key(*key))
        .count();
    if known.places.is_empty() {
        tracing::debug!("{} rows rendered", rows.len());
    } else {
        tracing::info!(
            "{} rows taken from {}, {fresh} rendered",
            rows.len() - fresh,
            path.display()
        );
    }
    if fresh > 0
        && let Err(error) = write(&path, &key, &keys, &fits)
    {
        tracing::warn!("rendered rows are not kept for the next start: {error:#}");
    }
    fits
}

fn file_key(chat: &Chat, max_length: usize) -> String {
    let parts = [
        LAYOUT,
        env!("CARGO_PKG_VERSION"),
        &chat.fingerprint(),
        &max_length.to_string(),
    ];
    hash_bytes(parts.join("\n").as_bytes())
}

/// Everything of a row that its ids and mask depend on; its name is not among it.
fn row_key(row: &Row) -> RowKey {
    let mut hasher = blake3::Hasher::new();
    for message in &row.messages {
        hasher.update(message.role.as_str().as_bytes());
        hasher.update(&[0]);
        hasher.update(&(message.content.len() as u64).to_le_bytes());
        hasher.update(message.content.as_bytes());
    }
    for learnt in &row.learnt_answers {
        hasher.update(&[u8::from(*learnt)]);
    }
    *hasher.finalize().as_bytes()
}

/// A cache file's content.
#[derive(Default)]
struct Known {
    places: HashMap<RowKey, Place>,
    ids: Vec<u32>,
    learn: Vec<bool>,
    reasons: Vec<u8>,
}

/// Where an entry's tokens, or the bytes of its reason, are.
struct Place {
    kind: Kind,
    start: usize,
    length: usize,
}

impl Known {
    fn get(&self, key: &RowKey, row: &Row) -> Option<Fit> {
        let Place {
            kind,
            start,
            length,
        } = *self.places.get(key)?;
        let part = start..start + length;
        let id = row.id.clone();
        if kind == Kind::Dropped {
            let reason = String::from_utf8_lossy(&self.reasons[part]).into_owned();
            return Some(Fit::Dropped(id, reason));
        }
        let example = Example {
            id,
            ids: self.ids[part.clone()].to_vec(),
            learn: self.learn[part].to_vec(),
            set: row.set,
        };
        Some(match kind {
            Kind::Whole => Fit::Whole(example),
            _ => Fit::Cut(example),
        })
    }

    fn read(path: &Path, key: &str) -> Result<Known> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let said = header.metadata().clone().unwrap_or_default();
        let part = |name: &str| file.tensor(name).map(|view| view.data());
        let [keys, kinds, lengths] = [part("keys")?, part("kinds")?, part("lengths")?];
        let [ids, learn, reasons] = [part("ids")?, part("learn")?, part("reasons")?];
        let content = content_hash(&[keys, kinds, lengths, ids, learn, reasons]);
        ensure!(
            said.get(KEY).map(String::as_str) == Some(key) && said.get(CONTENT) == Some(&content),
            "its content is not what was written"
        );
        let mut known = Known {
            ids: words(ids),
            learn: learn.iter().map(|&learn| learn != 0).collect(),
            reasons: reasons.to_vec(),
            ..Known::default()
        };
        let (mut tokens, mut letters) = (0, 0);
        for ((key, kind), length) in keys.chunks_exact(32).zip(kinds).zip(words(lengths)) {
            let kind = [Kind::Whole, Kind::Cut, Kind::Dropped][usize::from(*kind)];
            let length = length as usize;
            let start = if kind == Kind::Dropped {
                &mut letters
            } else {
                &mut tokens
            };
            let place = Place {
                kind,
                start: *start,
                length,
            };
            *start += length;
            let key: RowKey = key.try_into().context("a key has 32 bytes")?;
            known.places.insert(key, place);
        }
        Ok(known)
    }
}

/// Refused rows are left out: they stop the run, and the next one shall look again.
fn write(path: &Path, key: &str, keys: &[RowKey], fits: &[Fit]) -> Result<()> {
    let (mut row_keys, mut kinds, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ids, mut learn, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
    for (key, fit) in keys.iter().zip(fits) {
        let (kind, length) = match fit {
            Fit::Whole(example) | Fit::Cut(example) => {
                ids.extend(example.ids.iter().flat_map(|id| id.to_le_bytes()));
                learn.extend(example.learn.iter().map(|&learn| u8::from(learn)));
                let whole = matches!(fit, Fit::Whole(_));
                (
                    if whole { Kind::Whole } else { Kind::Cut },
                    example.ids.len(),
                )
            }
            Fit::Dropped(_, reason) => {
                reasons.extend(reason.as_bytes());
                (Kind::Dropped, reason.len())
            }
            Fit::Refused(..) => continue,
        };
        row_keys.extend(key);
        kinds.push(kind as u8);
        lengths.extend((length as u32).to_le_bytes());
    }
    let parts: [(&str, Dtype, &[u8]); 6] = [
        ("keys", Dtype::U8, &row_keys),
        ("kinds", Dtype::U8, &kinds),
        ("lengths", Dtype::U32, &lengths),
        ("ids", Dtype::U32, &ids),
        ("learn", Dtype::U8, &learn),
        ("reasons", Dtype::U8, &reasons),
    ];
    let said = HashMap::from([
        (KEY.to_string(), key.to_string()),
        (
            CONTENT.to_string(),
            content_hash(&parts.map(|(_, _, bytes)| bytes)),
        ),
    ]);
    let mut tensors = Vec::new();
    for (name, dtype, bytes) in parts {
        let count = bytes.len() * 8 / dtype.bitsize();
        tensors.push((name, TensorView::new(dtype, vec![count], bytes)?));
    }
    let bytes = safetensors::serialize(tensors, Some(said))?;
    remove_others(path);
    write_atomically(path, |file| file.write_all(&bytes))
}

/// Files of other templates, tokenizers and options: whoever goes back to them renders again.
fn remove_others(path: &Path) {
    let Some(entries) = path
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok())
    else {
        return;
    };
    let other = |found: &PathBuf| {
        found != path
            && found
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("rendered-"))
    };
    for old in entries.flatten().map(|entry| entry.path()).filter(other) {
        let _ = std::fs::remove_file(old); // what stays is not in the way
    }
}

fn content_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex().to_string()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}
