//! Parquet files: rows of typed columns become JSON rows, lists and groups included.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use parquet::file::reader::SerializedFileReader;
use serde_json::Value;

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
    let mut rows =
        whole(|| Ok(SerializedFileReader::new(file)?.into_iter())).with_context(damaged)?;
    let mut line = 0;
    // The rows behind a damaged page would be lost without a trace: an error here is no single bad row.
    let mut next = || -> Result<Option<Value>> {
        let row = rows.next().transpose()?;
        Ok(row.map(|row| row.to_json_value()))
    };
    while let Some(row) = whole(&mut next).with_context(damaged)? {
        line += 1;
        visit(Entry {
            line,
            key: None,
            value: Ok(row),
        })?;
    }
    Ok(())
}

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// What `read` returns. The parquet crate asserts some of what it reads, so damage also shows as a panic: that becomes an
/// error, and nothing is printed.
fn whole<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !READING.get() {
                usual(panic);
            }
        }));
    });
    READING.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(read));
    READING.set(false);
    outcome.unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow!(
            "it is damaged: {}",
            said.unwrap_or("no reason given")
        ))
    })
}
