//! Which engine answers: a model in this process (`local`) or an endpoint (`openai`).

use anyhow::Result;
use sysgen_core::config::{Engine, RunConfig};
use sysgen_core::hash::FileHashes;
use sysgen_model::Device;

use crate::environment::Environment;
use crate::input::with_local_files;
use crate::pipeline::{ModelIdentity, is_complete_with};
use crate::shard::Shard;
use crate::summary::Summary;
use crate::{local, openai, pipeline};

/// Generates the data of `[generate]` into `<output_dir>/data/`; a local model runs on `device`. What `files` knows already
/// is not read again for its hash.
///
/// # Errors
/// Everything that `run_with` names, a model directory that cannot be loaded, an endpoint that refuses, a
/// Hub data set that cannot be had.
pub fn run(
    config: &RunConfig,
    device: &Device,
    environment: &Environment,
    files: &FileHashes,
) -> Result<Summary> {
    run_shard(config, device, Shard::WHOLE, environment, files)
}

/// As `run`, for the rows of one shard.
///
/// # Errors
/// As `run`.
pub fn run_shard(
    config: &RunConfig,
    device: &Device,
    shard: Shard,
    environment: &Environment,
    files: &FileHashes,
) -> Result<Summary> {
    if engine(config) == Engine::Openai {
        return openai::run_by_endpoint(config, shard, environment, files);
    }
    let data = &with_local_files(config, environment)?.data;
    local::run_by_model(config, data, device, shard, files)
}

/// Writes the data set of a run whose shards are all done.
///
/// # Errors
/// As `run`; and rows without answers.
pub fn merge(config: &RunConfig, environment: &Environment) -> Result<Summary> {
    let data = &with_local_files(config, environment)?.data;
    pipeline::merge(config, data, &identity(config)?)
}

/// Whether `<output_dir>/data/` holds the whole data set of this very config, data and model.
///
/// # Errors
/// Source, prompt or model files that cannot be read.
pub fn is_complete(config: &RunConfig, environment: &Environment) -> Result<bool> {
    let config = &with_local_files(config, environment)?;
    is_complete_with(config, &identity(config)?)
}

fn engine(config: &RunConfig) -> Engine {
    config
        .generate
        .as_ref()
        .map_or(Engine::Local, |generate| generate.engine)
}

fn identity(config: &RunConfig) -> Result<ModelIdentity> {
    match engine(config) {
        Engine::Local => local::identity(config),
        Engine::Openai => openai::identity(config),
    }
}
