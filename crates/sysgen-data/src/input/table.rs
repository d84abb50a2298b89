//! CSV and TSV files: the first line names the columns, every further record is a row of texts.

use std::cell::Cell;
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use crate::input::container::Entry;

/// The separator of a file of this name, when the name says that it is a table: `.csv`, `.tsv`, `.csv.gz`.
pub(crate) fn separator(path: &Path) -> Option<u8> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    match name.strip_suffix(".gz").unwrap_or(&name) {
        name if name.ends_with(".csv") => Some(b','),
        name if name.ends_with(".tsv") => Some(b'\t'),
        _ => None,
    }
}

/// Calls `visit` for every record of the table, in order; its line is the one after the record before.
///
/// # Errors
/// No names in the first line, a quote that is never closed (all that follows it would be one record),
/// and what `visit` returns.
pub(crate) fn for_each_record(
    path: &Path,
    text: Box<dyn BufRead>,
    separator: u8,
    visit: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let reading = || format!("reading {}", path.display());
    let quotes = Cell::new(0);
    let mut reader = ReaderBuilder::new()
        .delimiter(separator)
        .flexible(true)
        .from_reader(CountingQuotes {
            text,
            quotes: &quotes,
        });
    let names: Vec<String> = reader
        .byte_headers()
        .with_context(reading)?
        .iter()
        .map(|name| String::from_utf8_lossy(name).trim().to_string())
        .collect();
    if !names.iter().any(|name| !name.is_empty()) {
        bail!(
            "{}: the first line of a table must name its columns",
            path.display()
        );
    }
    let mut record = ByteRecord::new();
    let mut spans_lines = false;
    // One record late, so that a last one that swallowed the rest of the file is known as such.
    let mut last: Option<Entry> = None;
    while reader.read_byte_record(&mut record).with_context(reading)? {
        let line = record.position().map_or(0, |at| at.line() as usize);
        spans_lines = record.iter().any(|field| field.contains(&b'\n'));
        if let Some(entry) = last.replace(Entry {
            line,
            key: None,
            value: row_of(&names, &record),
        }) {
            visit(entry)?;
        }
    }
    if spans_lines && quotes.get() % 2 == 1 {
        let line = last.map_or(1, |entry| entry.line);
        bail!(
            "{}: a quote is opened and never closed, perhaps in the record of line {line}; close it, and write a quote within a text twice",
            path.display()
        );
    }
    last.map_or(Ok(()), visit)
}

fn row_of(names: &[String], record: &ByteRecord) -> Result<Value, String> {
    if record.len() != names.len() {
        return Err("more or fewer fields than columns".to_string());
    }
    let mut row = Map::new();
    for (name, field) in names.iter().zip(record) {
        let text = std::str::from_utf8(field).map_err(|_| "not valid UTF-8".to_string())?;
        row.insert(name.clone(), value_of(text));
    }
    Ok(Value::Object(row))
}

/// A field is a text, unless it holds a list of JSON objects: that is how turns are put into a table.
fn value_of(text: &str) -> Value {
    if text.trim_start().starts_with('[')
        && let Ok(Value::Array(list)) = serde_json::from_str(text)
        && list.iter().all(Value::is_object)
    {
        return Value::Array(list);
    }
    Value::String(text.to_string())
}

/// Passes text on and counts its quotes: in a whole table they come in pairs.
struct CountingQuotes<'a> {
    text: Box<dyn BufRead>,
    quotes: &'a Cell<usize>,
}

impl Read for CountingQuotes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.text.read(buffer)?;
        let quotes = buffer[..length]
            .iter()
            .filter(|&&byte| byte == b'"')
            .count();
        self.quotes.set(self.quotes.get() + quotes);
        Ok(length)
    }
}
