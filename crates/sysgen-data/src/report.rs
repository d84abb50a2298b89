//! A finished data set as one HTML page that needs no network: charts, and a browser of the rows. The
//! page's own parts are in `report/`; the rows go into it as they stand in `dataset.jsonl`, packed in
//! chunks that the browser unpacks when they are looked at.

mod index;
mod pack;

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::json;
use sysgen_core::files::write_atomically;

use crate::open::DataSet;
use crate::report::index::Index;
use crate::report::pack::{Packer, embedded, packed};
use crate::stats::{Options, Statistics, statistics};
use crate::tag::Tag;
use crate::throughput;

/// Rows that are unpacked together: a small piece of a search, a moment's wait for one row.
const ROWS_PER_CHUNK: usize = 256;

const PAGE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/style.css");
/// In the order they stand in the page.
const SCRIPTS: [&str; 6] = [
    include_str!("report/data.js"),
    include_str!("report/diff.js"),
    include_str!("report/charts.js"),
    include_str!("report/list.js"),
    include_str!("report/detail.js"),
    include_str!("report/main.js"),
];

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// Rows in the page.
    pub rows: usize,
    /// Size of the page.
    pub bytes: u64,
}

/// Writes the page to `output`; it appears whole or not at all.
///
/// # Errors
/// A data set that cannot be read, and an output that cannot be written.
pub fn report(data_set: &DataSet, output: &Path) -> Result<Reported> {
    if output.is_dir() {
        bail!("--output {} is a folder; name a file", output.display());
    }
    let statistics = statistics(data_set, Options::default())?;
    let mut index = Index::default();
    let mut failure = None;
    let written = write_atomically(output, |file| {
        let body = PAGE
            .replace("/*STYLE*/", STYLE)
            .replace("<!--TITLE-->", &escaped(&title(data_set)));
        let (before, after) = body
            .split_once("<!--DATA-->")
            .expect("the page has a place for the data");
        file.write_all(before.as_bytes())?;
        let outcome = write_rows(data_set, file, &mut index);
        if let Err(error) = outcome {
            return Err(error.downcast::<io::Error>().unwrap_or_else(|error| {
                let stands_for = io::Error::other(error.to_string());
                failure = Some(error);
                stands_for
            }));
        }
        let columns = serde_json::to_vec(&index)?;
        embedded(file, "index", &packed(&columns)?)?;
        let overview = serde_json::to_vec(&overview(data_set, &statistics))?;
        embedded(file, "overview", &packed(&overview)?)?;
        file.write_all(after.replace("/*SCRIPT*/", &SCRIPTS.concat()).as_bytes())
    });
    if let Some(error) = failure {
        return Err(error);
    }
    written?;
    Ok(Reported {
        rows: index.rows(),
        bytes: std::fs::metadata(output)?.len(),
    })
}

fn write_rows(data_set: &DataSet, file: &mut dyn Write, index: &mut Index) -> Result<()> {
    let mut packer = Packer::new(ROWS_PER_CHUNK);
    data_set.for_each_chunk(|lines| {
        index.add(&lines);
        packer.add(lines, file)
    })?;
    packer.finish(file)
}

/// What the charts show, and what the run was.
fn overview(data_set: &DataSet, statistics: &Statistics) -> serde_json::Value {
    let manifest = data_set.manifest.as_ref();
    json!({
        "title": title(data_set),
        "version": env!("CARGO_PKG_VERSION"),
        "rows_per_chunk": ROWS_PER_CHUNK,
        "tags": Tag::CANONICAL.map(Tag::name),
        "statistics": statistics,
        "variant": manifest.map(|manifest| manifest.selection.variant),
        "rejected_pieces": manifest.map(|manifest| &manifest.rejected_pieces),
        "tokens": manifest.map(|manifest| &manifest.tokens),
        "key": manifest.map(|manifest| &manifest.key),
        "dataset_hash": manifest.map(|manifest| &manifest.dataset_hash),
        "throughput": throughput::read(data_set.directory()),
    })
}

/// The name of the run: the folder above `data/`, or of the file.
fn title(data_set: &DataSet) -> String {
    let absolute = data_set
        .path
        .canonicalize()
        .unwrap_or_else(|_| data_set.path.clone());
    let names: Vec<String> = absolute
        .iter()
        .rev()
        .take(3)
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    match names.as_slice() {
        [_, data, run] if data == "data" => run.clone(),
        [_, folder, ..] => folder.clone(),
        _ => "data set".to_string(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
