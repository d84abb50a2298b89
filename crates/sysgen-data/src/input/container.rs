//! From a file to its JSON values: JSON lines, a JSON array, an object of objects, a table (these plain
//! or gzipped), or parquet. What a value means is left to `format`.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sysgen_core::jsonl::open_text;

use crate::input::{columnar, table};

/// One entry of a file: its JSON value, or why its line is none.
pub(crate) struct Entry {
    /// 1-based line of a JSON lines file, index + 1 of an array or an object.
    pub(crate) line: usize,
    /// The entry's key in an object of objects.
    pub(crate) key: Option<String>,
    /// The value, or the reason why there is none.
    pub(crate) value: Result<Value, String>,
}

/// Calls `visit` for every entry of the file at `path`, in order. An array is read as a stream, on one line
/// or on many, so a file larger than memory is fine.
///
/// # Errors
/// A file that cannot be opened or decompressed; an array or object that breaks off (the rest of its
/// rows would be lost without a trace); and what `visit` returns.
pub(crate) fn for_each_entry(
    path: &Path,
    visit: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let reading = || format!("reading {}", path.display());
    if let Some(separator) = table::separator(path) {
        let text = skip_byte_order_mark(open_text(path)?).with_context(reading)?;
        return table::for_each_record(path, text, separator, visit);
    }
    match container_of(path)? {
        Container::Empty => Ok(()),
        Container::Parquet => columnar::for_each_row(path, visit),
        Container::Lines => {
            let mut reader = skip_byte_order_mark(open_text(path)?).with_context(reading)?;
            for_each_line(&mut reader, visit).with_context(reading)
        }
        Container::Document => {
            let reader = skip_byte_order_mark(open_text(path)?).with_context(reading)?;
            let mut deserializer = serde_json::Deserializer::from_reader(reader);
            let mut failure = None;
            let entries = Entries {
                visit,
                failure: &mut failure,
            };
            let outcome = entries
                .deserialize(&mut deserializer)
                .and_then(|()| deserializer.end());
            if let Some(failure) = failure {
                return Err(failure);
            }
            outcome.with_context(|| {
                format!("{}: the JSON document is damaged; repair it or use JSON lines, where one bad row costs one row", path.display())
            })
        }
    }
}

/// Whether the file at `path` has a row on each line.
///
/// # Errors
/// The file cannot be read.
pub fn is_json_lines(path: &Path) -> Result<bool> {
    Ok(table::separator(path).is_none() && matches!(container_of(path)?, Container::Lines))
}

enum Container {
    Empty,
    Parquet,
    Lines,
    Document,
}

/// An array starts with `[`; how long it is does not matter. A `{` starts a row of JSON lines, unless the object goes on past its
/// line or holds only objects (`{"0": {…}, "1": {…}}`).
fn container_of(path: &Path) -> Result<Container> {
    let reading = || format!("reading {}", path.display());
    if columnar::is_parquet(path) {
        return Ok(Container::Parquet);
    }
    let mut reader = skip_byte_order_mark(open_text(path)?).with_context(reading)?;
    // A whole array may be one line: a look at its first byte is enough.
    match first_byte(&mut reader).with_context(reading)? {
        None => return Ok(Container::Empty),
        Some(b'[') => return Ok(Container::Document),
        Some(_) => {}
    }
    let first = next_line(&mut reader).with_context(reading)?;
    let first = first.unwrap_or_default();
    Ok(match serde_json::from_str::<Value>(&first) {
        Ok(Value::Object(object))
            if !object.is_empty()
                && object.values().all(Value::is_object)
                && next_line(&mut reader).with_context(reading)?.is_none() =>
        {
            Container::Document
        }
        Err(error) if error.is_eof() && first.trim_start().starts_with('{') => {
            // Either a pretty-printed object or JSON lines whose first line is cut short.
            match next_line(&mut reader).with_context(reading)? {
                Some(second) if serde_json::from_str::<Map<String, Value>>(&second).is_err() => {
                    Container::Document
                }
                _ => Container::Lines,
            }
        }
        _ => Container::Lines,
    })
}

fn for_each_line(
    reader: &mut dyn BufRead,
    visit: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let mut bytes = Vec::new();
    let mut line = 0;
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        line += 1;
        let value = match std::str::from_utf8(&bytes) {
            Ok(text) if text.trim().is_empty() => continue,
            Ok(text) => serde_json::from_str(text).map_err(|_| "not valid JSON".to_string()),
            Err(_) => Err("not valid UTF-8".to_string()),
        };
        visit(Entry {
            line,
            key: None,
            value,
        })?;
    }
}

/// The next byte that is no white space, left where it is.
fn first_byte(reader: &mut dyn BufRead) -> std::io::Result<Option<u8>> {
    loop {
        let buffer = reader.fill_buf()?;
        let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace());
        let blank = blank.count();
        let (first, all) = (buffer.get(blank).copied(), buffer.len());
        reader.consume(blank);
        if first.is_some() || all == 0 {
            return Ok(first);
        }
    }
}

/// The next line that is not blank; text that is no UTF-8 is replaced, it is only looked at.
fn next_line(reader: &mut dyn BufRead) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&bytes);
        if !text.trim().is_empty() {
            return Ok(Some(text.into_owned()));
        }
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn skip_byte_order_mark(mut reader: Box<dyn BufRead>) -> std::io::Result<Box<dyn BufRead>> {
    if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        let mut mark = [0; BYTE_ORDER_MARK.len()];
        reader.read_exact(&mut mark)?;
    }
    Ok(reader)
}

/// Hands the elements of an array, or the values of an object, to `visit` as they are parsed.
struct Entries<'a> {
    visit: &'a mut dyn FnMut(Entry) -> Result<()>,
    failure: &'a mut Option<anyhow::Error>,
}

impl Entries<'_> {
    fn hand_on<E: serde::de::Error>(&mut self, entry: Entry) -> Result<(), E> {
        (self.visit)(entry).map_err(|failure| {
            let message = E::custom(&failure);
            *self.failure = Some(failure);
            message
        })
    }
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of rows or an object of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        let mut line = 0;
        while let Some(value) = array.next_element::<Value>()? {
            line += 1;
            self.hand_on(Entry {
                line,
                key: None,
                value: Ok(value),
            })?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = object.next_entry::<String, Value>()? {
            entries.push((key, value));
        }
        // A single pretty-printed row is an object, too, but not one of objects.
        if !entries.iter().all(|(_, value)| value.is_object()) {
            let row = Value::Object(entries.into_iter().collect());
            return self.hand_on(Entry {
                line: 1,
                key: None,
                value: Ok(row),
            });
        }
        for (index, (key, value)) in entries.into_iter().enumerate() {
            self.hand_on(Entry {
                line: index + 1,
                key: Some(key),
                value: Ok(value),
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has byte by byte, and fails when more is wanted.
    struct Rest<'a>(&'a [u8]);

    impl Read for Rest<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else {
                return Err(std::io::Error::other("read too far"));
            };
            (buffer[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    #[test]
    fn an_array_is_known_by_its_first_byte() {
        let mut reader = std::io::BufReader::new(Rest(b" \r\n\t["));
        assert_eq!(first_byte(&mut reader).ok().flatten(), Some(b'['));
        let mut next = [0];
        assert!(
            reader.read_exact(&mut next).is_ok() && next == *b"[",
            "it is still there"
        );
        assert_eq!(first_byte(&mut &b" \n"[..]).ok(), Some(None));
    }
}
