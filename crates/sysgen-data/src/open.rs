//! A finished data set, read back: its lines in chunks, in file order, parsed on all cores. What they
//! add up to is left to `stats`, `export` and `report`.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use sysgen_core::RunConfig;
use sysgen_core::hash::hash_file;
use sysgen_core::jsonl::read_lines;

use crate::dataset::Line;
use crate::input::Places;
use crate::manifest::Manifest;
use crate::pipeline::dataset_path;

/// Lines that are read and parsed together.
const CHUNK: usize = 1024;

/// A `dataset.jsonl` with what its folder says of it.
#[derive(Debug)]
pub struct DataSet {
    /// The file with the lines.
    pub path: PathBuf,
    /// Absent when the run is not complete, or when the file is not the one the manifest describes.
    pub(crate) manifest: Option<Manifest>,
    /// Whether damaged lines were told of; some readers go through the file twice.
    warned: Cell<bool>,
}

impl DataSet {
    /// Opens `path`: a `dataset.jsonl`, its folder, or the `output_dir` of a run.
    ///
    /// # Errors
    /// No data set there.
    pub fn open(path: &Path) -> Result<DataSet> {
        let candidates = if path.is_dir() {
            vec![path.join("dataset.jsonl"), path.join("data/dataset.jsonl")]
        } else {
            vec![path.to_path_buf()]
        };
        let Some(found) = candidates.iter().find(|path| path.is_file()) else {
            bail!(
                "{} holds no data set: name a dataset.jsonl, its folder, or the output_dir of a finished run",
                path.display()
            );
        };
        let manifest_path = found.with_file_name("manifest.json");
        let mut manifest = Manifest::read(&manifest_path);
        match &manifest {
            None => tracing::warn!(
                "{} is missing or of another version; what it would tell is left out",
                manifest_path.display()
            ),
            Some(described) if described.dataset_hash != hash_file(found)? => {
                tracing::warn!(
                    "{} is not the file that {} describes; what the manifest would tell is left out",
                    found.display(),
                    manifest_path.display()
                );
                manifest = None;
            }
            Some(_) => {}
        }
        Ok(DataSet {
            path: found.clone(),
            manifest,
            warned: Cell::new(false),
        })
    }

    /// Opens the data set that `config` generates.
    ///
    /// # Errors
    /// A run that has not written it yet.
    pub fn of_config(config: &RunConfig) -> Result<DataSet> {
        let path = dataset_path(config);
        ensure!(
            path.exists(),
            "{} is not there yet; generate it first: `sysgen-data` with the same config",
            path.display()
        );
        DataSet::open(&path)
    }

    /// The folder of the data set.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Calls `visit` with the lines, up to `CHUNK` at once, in file order. A line that cannot be read is
    /// left out and counted in what is returned.
    ///
    /// # Errors
    /// A file that cannot be read to its end, no readable line at all, and what `visit` returns.
    pub(crate) fn for_each_chunk(
        &self,
        mut visit: impl FnMut(Vec<Line>) -> Result<()>,
    ) -> Result<Places> {
        let mut lines = read_lines(&self.path)?;
        let mut damaged = Places::default();
        let mut readable = 0;
        loop {
            let chunk: Vec<(usize, Result<String>)> = lines
                .by_ref()
                .take(CHUNK)
                .map(|line| match line {
                    Ok((number, text)) => (number, Ok(text)),
                    Err(error) => (0, Err(error)),
                })
                .collect();
            if chunk.is_empty() {
                break;
            }
            let parsed: Vec<(usize, Result<Line>)> = chunk
                .into_par_iter()
                .map(|(number, text)| {
                    (
                        number,
                        text.and_then(|text| Ok(serde_json::from_str(&text)?)),
                    )
                })
                .collect();
            let mut whole = Vec::with_capacity(parsed.len());
            for (number, line) in parsed {
                match line {
                    Ok(line) => whole.push(line),
                    Err(error) => {
                        damaged.add(|| match number {
                            0 => error.to_string(),
                            number => format!("line {number}: {error}"),
                        });
                    }
                }
            }
            readable += whole.len();
            visit(whole)?;
        }
        if readable == 0 && damaged.count == 0 {
            bail!("{} is empty", self.path.display());
        }
        if readable == 0 {
            bail!(
                "{} is no data set of this program: {damaged}",
                self.path.display()
            );
        }
        if damaged.count > 0 && !self.warned.replace(true) {
            tracing::warn!(
                "{}: {} damaged lines are left out ({damaged})",
                self.path.display(),
                damaged.count
            );
        }
        Ok(damaged)
    }
}
