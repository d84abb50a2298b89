//! A run from its config to its data set: what it depends on, whether it is done, and the shards' part in it. How rows go
//! through the phases is in `session`, what is written in the end in `finish`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sysgen_core::config::{DataSection, Engine, GenerateSection, RunConfig, Variant};
use sysgen_core::hash::{FileHashes, hash_file};
use sysgen_core::{OutputLock, interrupt, lock_output};

use crate::finish::{read_back, write_dataset};
use crate::generator::Generator;
use crate::input::{self, Input, Row, with_commit};
use crate::log::{self, Key, Log};
use crate::manifest::{Funnel, Manifest, Selection};
use crate::session::Session;
use crate::shard::Shard;
use crate::steps::Plan;
use crate::summary::Summary;

/// How long a shard that found all rows answered waits for the others to leave.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What the data set will have been written by.
#[derive(Clone, Debug, Default)]
pub struct ModelIdentity {
    /// The name in each row's provenance.
    pub name: String,
    /// What its texts depend on, by name: hashes of its files, the chat fingerprint.
    pub key: BTreeMap<String, String>,
}

/// `<output_dir>/data/dataset.jsonl`.
pub fn dataset_path(config: &RunConfig) -> PathBuf {
    config.generated_data_dir().join("dataset.jsonl")
}

/// Whether this variant asks the model at all.
pub(crate) fn needs_model(variant: Variant) -> bool {
    !matches!(variant, Variant::NoSystem | Variant::CommonSystem)
}

/// Whether the data set is there and is the one that this config and model would give.
///
/// # Errors
/// Source or prompt files that cannot be read.
pub fn is_complete_with(config: &RunConfig, model: &ModelIdentity) -> Result<bool> {
    let Some(generate) = &config.generate else {
        return Ok(false);
    };
    let plan = Plan::new(config, generate)?;
    let files = FileHashes::default();
    let key = key(config, &config.data, generate, &plan, model, &files)?;
    Ok(finished(config, generate, &plan, &key)?.is_some())
}

/// The manifest of the data set that is there, if it is the one that would be written.
fn finished(
    config: &RunConfig,
    generate: &GenerateSection,
    plan: &Plan,
    key: &Key,
) -> Result<Option<Manifest>> {
    let dataset = dataset_path(config);
    let Some(manifest) = Manifest::read(&manifest_path(config)) else {
        return Ok(None);
    };
    let holds = manifest.selection == selection(config, generate)?
        && manifest.key == *key
        && manifest.funnel.kept > 0
        && (plan.skips_unanswered() || manifest.funnel.unanswered() == 0)
        && dataset.exists()
        && manifest.dataset_hash == hash_file(&dataset)?;
    Ok(holds.then_some(manifest))
}

/// Runs the phases of `[generate]` and writes `<output_dir>/data/`; a data set that is already there as this config and model
/// would give it is left alone. `open` gives the model; it is only called when some row still needs one.
///
/// # Errors
/// No `[generate]`, no usable row, a log of another config, a folder in use, a failing model, or no
/// row left at the end.
pub fn run_with<'g>(
    config: &RunConfig,
    model: &ModelIdentity,
    open: impl FnOnce() -> Result<Box<dyn Generator + 'g>>,
) -> Result<Summary> {
    run_shard_with(config, model, Shard::WHOLE, &FileHashes::default(), open)
}

/// As `run_with`, for the rows of one shard. The data set is written by the shard that finds all rows
/// answered, its own and the others'. What `files` knows already is not read again for its hash.
///
/// # Errors
/// As `run_with`.
pub fn run_shard_with<'g>(
    config: &RunConfig,
    model: &ModelIdentity,
    shard: Shard,
    files: &FileHashes,
    open: impl FnOnce() -> Result<Box<dyn Generator + 'g>>,
) -> Result<Summary> {
    run(config, &config.data, model, shard, files, Some(open))
}

/// As `run_shard_with`, with `data` for the config's own: the same with local files. Without `open` nobody is asked, and the
/// data set is written of what there is.
pub(crate) fn run<'g>(
    config: &RunConfig,
    data: &DataSection,
    model: &ModelIdentity,
    shard: Shard,
    files: &FileHashes,
    open: Option<impl FnOnce() -> Result<Box<dyn Generator + 'g>>>,
) -> Result<Summary> {
    let Some(generate) = &config.generate else {
        bail!("the config has no [generate] section; add one to generate data");
    };
    let directory = config.generated_data_dir();
    let mut lock = shard.lock(&directory)?;
    let plan = Plan::new(config, generate)?;
    let key = key(config, data, generate, &plan, model, files)?;
    if let Some(manifest) = finished(config, generate, &plan, &key)? {
        return read_back(dataset_path(config), manifest);
    }
    let Input { rows, counts } = input::read(data, config.seed)?;
    let mut session = Session {
        plan: &plan,
        variant: generate.variant,
        log: None,
    };
    let mut summary = Summary {
        dataset: dataset_path(config),
        funnel: Funnel {
            read: counts,
            ..Funnel::default()
        },
        ..Summary::default()
    };
    if needs_model(generate.variant) {
        session.log = Some(Log::read(&directory, &key)?);
        let of_shard: Vec<&Row> = rows
            .iter()
            .enumerate()
            .filter(|(position, _)| shard.has(*position))
            .map(|(_, row)| row)
            .collect();
        let unanswered = match open {
            Some(open) => session.answer(&of_shard, shard, generate, open, &mut summary)?,
            None => {
                let waiting = session.count_waiting(&of_shard)?;
                may_be_left_out(waiting, rows.len(), generate, &plan)?;
                waiting
            }
        };
        summary.interrupted = session.count_waiting(&of_shard)? > unanswered;
        if summary.interrupted {
            tracing::warn!("stopped; run the same command again to go on");
            return Ok(summary);
        }
        if !shard.is_whole() {
            // What the others have written until now is there, too.
            session.log = Some(Log::read(&directory, &key)?);
            let waiting = session.count_waiting(&rows.iter().collect::<Vec<_>>())?;
            if waiting > unanswered {
                let or = match plan.skips_unanswered() {
                    true => ", or were not answered there; `sysgen-data merge` leaves them out",
                    false => "",
                };
                tracing::info!(
                    "shard {shard} is done; {waiting} of {} rows are still to come from the other shards{or}",
                    rows.len()
                );
                summary.other_shards = true;
                return Ok(summary);
            }
            drop(lock);
            lock = match lock_soon(&directory) {
                Ok(lock) => lock,
                Err(busy) => {
                    tracing::warn!("every shard is done; {busy:#}, then run `sysgen-data merge`");
                    summary.other_shards = true;
                    return Ok(summary);
                }
            };
            // Another shard may have been faster.
            if let Some(manifest) = finished(config, generate, &plan, &key)? {
                let (tokens, seconds) = (summary.tokens, summary.seconds);
                return Ok(Summary {
                    tokens,
                    seconds,
                    ..read_back(summary.dataset, manifest)?
                });
            }
        }
    }
    write_dataset(
        &with_commit(config, &data.path),
        generate,
        model,
        key,
        &session,
        &rows,
        &mut summary,
    )?;
    drop(lock);
    Ok(summary)
}

/// Writes the data set of a run whose shards are all done.
///
/// # Errors
/// As `run_with`; and rows without answers, unless they are to be left out.
pub fn merge_with(config: &RunConfig, model: &ModelIdentity) -> Result<Summary> {
    merge(config, &config.data, model)
}

/// As `merge_with`, with `data` for the config's own: the same with local files.
pub(crate) fn merge(
    config: &RunConfig,
    data: &DataSection,
    model: &ModelIdentity,
) -> Result<Summary> {
    run(
        config,
        data,
        model,
        Shard::WHOLE,
        &FileHashes::default(),
        None::<fn() -> Result<Box<dyn Generator>>>,
    )
}

/// Whether a data set may be written without the `waiting` rows.
fn may_be_left_out(
    waiting: usize,
    rows: usize,
    generate: &GenerateSection,
    plan: &Plan,
) -> Result<()> {
    if waiting == 0 {
        return Ok(());
    }
    if plan.skips_unanswered() {
        tracing::warn!(
            "{waiting} of {rows} rows have no answers; left out (generate.openai.skip_unanswered)"
        );
        return Ok(());
    }
    let or = match generate.engine {
        Engine::Openai => "; --set generate.openai.skip_unanswered=true leaves them out",
        Engine::Local => "",
    };
    bail!(
        "{waiting} of {rows} rows have no answers yet; run the shards that are missing, or go on without --shard, and the data set is written by itself{or}"
    )
}

/// Locks the folder. Every row is answered, so other shards that hold it are about to find that out, too,
/// or are writing the data set.
fn lock_soon(directory: &Path) -> Result<OutputLock> {
    let started = Instant::now();
    loop {
        match lock_output(directory) {
            Err(busy) if started.elapsed() > LONGEST_WAIT || interrupt::requested() => {
                return Err(busy);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            lock => return lock,
        }
    }
}

/// `<output_dir>/data/manifest.json`.
pub(crate) fn manifest_path(config: &RunConfig) -> PathBuf {
    config.generated_data_dir().join("manifest.json")
}

/// Which rows are chosen, and how.
pub(crate) fn selection(config: &RunConfig, generate: &GenerateSection) -> Result<Selection> {
    let data = &config.data;
    Ok(Selection {
        variant: generate.variant,
        common_system_message: generate.common_system_message.clone(),
        limit: data.limit,
        shuffle: data.shuffle,
        deduplicate: data.deduplicate,
        minhash_threshold: data.minhash_threshold,
        decontaminate_ngram: data.decontaminate_ngram,
        decontaminate: data
            .decontaminate
            .iter()
            .map(|path| hash_file(path))
            .collect::<Result<_>>()?,
        seed: config.seed,
        verify_threshold: generate.verify.threshold,
    })
}

fn key(
    config: &RunConfig,
    data: &DataSection,
    generate: &GenerateSection,
    plan: &Plan,
    model: &ModelIdentity,
    files: &FileHashes,
) -> Result<Key> {
    let mut key = log::data_key(data, files)?;
    if needs_model(generate.variant) {
        key.extend(log::generate_key(
            config.seed,
            generate,
            plan.prompt_hashes(),
        ));
        key.extend(
            model
                .key
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
    }
    Ok(key)
}
