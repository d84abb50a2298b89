//! Parquet files: rows of typed columns become JSON rows, lists and groups included.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use parquet::file::reader::SerializedFileReader;

use crate::input::container::Entry;

/// Whether the file begins as parquet files do.
pub(crate) fn is_parquet(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok() && &magic == b"PAR1")
}

/// Calls `visit` for every row of the parquet file, in order; its line is the row's number.
///
/// # Errors
/// A file that is damaged or packed in an unknown way, and what `visit` returns.
pub(crate) fn for_each_row(path: &Path, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
    let damaged = || format!("{}: the parquet file cannot be read", path.display());
    let file = File::open(path).with_context(damaged)?;
    let reader = SerializedFileReader::new(file).with_context(damaged)?;
    for (index, row) in reader.into_iter().enumerate() {
        // The rows behind a damaged page would be lost without a trace: this is no single bad row.
        let row = row.with_context(damaged)?;
        visit(Entry {
            line: index + 1,
            key: None,
            value: Ok(row.to_json_value()),
        })?;
    }
    Ok(())
}
