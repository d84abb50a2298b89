//! What was written, held against what it was written from: byte by byte on the host, whatever the device.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Shard, Stored};
use crate::config::{ModelConfig, StoredDtype};
use crate::parameter::Parameter;
use crate::save::{Content, ExportDtype};

/// Compares the model directory `dir`, as [`save_contents`](crate::save::save_contents) has written it, with what it was written from: the files' bytes
/// with each parameter encoded once more, one at a time, and `config.json` with the configuration.
///
/// # Errors
/// A file cannot be read, or what differs.
pub(crate) fn compare(
    config: &ModelConfig,
    parameters: &[Content],
    dir: &Path,
    dtype: ExportDtype,
) -> Result<()> {
    let stated = ModelConfig::from_directory(dir)?;
    ensure!(
        without_dtype(&stated.json) == without_dtype(&config.json),
        "config.json describes another model"
    );
    let written = Checkpoint::open(dir)?;
    written.check(config)?;
    for parameter in parameters {
        let wanted = match dtype {
            ExportDtype::Auto => None,
            ExportDtype::Of(wanted) => Some(wanted),
            ExportDtype::Kept => Some(parameter.kept),
        };
        let (shard, stored) = written
            .find(&parameter.name)
            .expect("`check` has seen every tensor of the model");
        compare_tensor(shard, stored, parameter, wanted)?;
    }
    Ok(())
}

/// The same of a file that [`write_tensors`](crate::save::write_tensors) has written.
pub(crate) fn compare_tensors(
    shard: &Shard,
    parameters: &[Parameter],
    dtype: StoredDtype,
) -> Result<()> {
    ensure!(
        shard.tensors.len() == parameters.len(),
        "{} holds {} tensors instead of {}",
        shard.path.display(),
        shard.tensors.len(),
        parameters.len()
    );
    for parameter in parameters {
        let stored = shard.tensors.iter().find(|t| t.name == parameter.name);
        let stored = stored.with_context(|| format!("`{}` is missing", parameter.name))?;
        compare_tensor(shard, stored, &Content::of(parameter), Some(dtype))?;
    }
    Ok(())
}

fn compare_tensor(
    shard: &Shard,
    stored: &Stored,
    parameter: &Content,
    wanted: Option<StoredDtype>,
) -> Result<()> {
    let place = || format!("tensor `{}` in {}", parameter.name, shard.path.display());
    let dtype = stored
        .dtype
        .filter(|&dtype| wanted.is_none_or(|wanted| wanted == dtype));
    let Some(dtype) = dtype else {
        bail!("{} is stored as {}", place(), stored.dtype_name);
    };
    ensure!(
        stored.shape == parameter.shape,
        "{} has shape {:?} instead of {:?}",
        place(),
        stored.shape,
        parameter.shape
    );
    let mut comparison = Comparison {
        expected: shard.bytes_of(stored),
        differing: 0,
    };
    parameter
        .encode(dtype, &mut comparison)
        .with_context(place)?;
    let differing = comparison.differing + comparison.expected.len();
    ensure!(differing == 0, "{}: {differing} bytes differ", place());
    shard.forget(stored);
    Ok(())
}

/// Takes bytes as a file would, and holds them against those of one.
struct Comparison<'a> {
    /// What has not been compared yet.
    expected: &'a [u8],
    differing: usize,
}

impl Write for Comparison<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let both = self.expected.len().min(bytes.len());
        let (expected, rest) = self.expected.split_at(both);
        if *expected != bytes[..both] {
            let pairs = expected.iter().zip(bytes);
            self.differing += pairs.filter(|(a, b)| a != b).count();
        }
        self.differing += bytes.len() - both;
        self.expected = rest;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `config.json` without what says the number format of the files beside it.
fn without_dtype(json: &Value) -> Value {
    let mut json = json.clone();
    if let Some(object) = json.as_object_mut() {
        object.retain(|key, _| key != "dtype" && key != "torch_dtype");
    }
    json
}
