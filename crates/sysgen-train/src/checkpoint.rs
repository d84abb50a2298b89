//! `checkpoint-N/`: everything needed to go on after step N as if nothing had happened: bit for bit on the CPU, to
//! rounding on a GPU, which does not repeat a step to the bit either.
//!
//! The weights are a Hugging Face folder in the format they are trained in (a checkpoint can be loaded like any model), or an adapter in PEFT's format
//! where only that is trained; the moments lie beside them in
//! `optimizer.safetensors`, and `trainer_state.json`, written last, lists the size of every file: a checkpoint is complete
//! when it is there and the sizes are right. The data cursor is the step number (see [`crate::order`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use sysgen_chat::Chat;
use sysgen_core::NoRoom;
use sysgen_core::config::Optim;
use sysgen_core::files::{write_atomically, write_directory_atomically};
use sysgen_model::{
    ADAPTER_CONFIG, Decoder, ExportDtype, Mapped, Parameter, StoredDtype, WeightDtype,
};
use sysgen_ops::{AdamW, MomentOrder, Moments, Moments8, Quantised};

use crate::identity::Identity;
use crate::optim::{Optimizer, State};
use crate::trainer::Trainer;
use crate::watch::Best;

const STATE_FILE: &str = "trainer_state.json";
const MOMENTS_FILE: &str = "optimizer.safetensors";

/// Where a run is, apart from weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done, skipped ones included: the data cursor.
    pub step: usize,
    /// Updates applied.
    pub updates: u64,
    /// Tokens seen, without padding.
    pub num_tokens: u64,
    /// Tokens learnt.
    pub supervised_tokens: u64,
    /// Steps skipped because loss or gradient were not finite.
    pub nonfinite_steps: usize,
    /// Seconds spent in steps.
    pub seconds: f64,
    /// The best evaluation so far.
    #[serde(default)]
    pub best: Best,
    /// The run ended here because its evaluations no longer got better.
    #[serde(default)]
    pub stopped_early: bool,
}

/// `trainer_state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedState {
    /// Where the run is.
    pub progress: Progress,
    /// The run it belongs to.
    pub identity: Identity,
    /// Version of this program.
    pub version: String,
    /// Size in bytes of every other file.
    pub files: BTreeMap<String, u64>,
}

/// A complete checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Its `trainer_state.json`.
    pub state: SavedState,
}

/// What `output_dir` holds.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Complete checkpoints, the oldest first.
    pub complete: Vec<Checkpoint>,
    /// Checkpoints that cannot be used, and why.
    pub incomplete: Vec<(PathBuf, String)>,
}

/// Writes `checkpoint-N` for the trainer's present state. `base` is the model that an adapter belongs to.
///
/// # Errors
/// When a file cannot be written; the folder is then as it was.
pub fn save(
    output_dir: &Path,
    base: &Path,
    trainer: &Trainer,
    chat: &Chat,
    progress: &Progress,
    identity: &Identity,
    effective_config: &str,
) -> Result<PathBuf> {
    let path = output_dir.join(format!("checkpoint-{}", progress.step));
    write_directory_atomically(&path, |dir| {
        let decoder = trainer.decoder();
        match decoder.lora() {
            None => decoder.save(dir, ExportDtype::Kept, None)?,
            Some(_) => {
                let base = base.display().to_string();
                decoder.save_adapter(dir, &base, StoredDtype::F32)?;
            }
        }
        chat.save(dir)?;
        std::fs::write(dir.join("config.toml"), effective_config)?;
        save_moments(
            &dir.join(MOMENTS_FILE),
            &decoder.trainable(),
            &trainer.optimizer,
        )?;
        let state = SavedState {
            progress: progress.clone(),
            identity: identity.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            files: file_sizes(dir)?,
        };
        write_atomically(&dir.join(STATE_FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, &state)?;
            writeln!(file)
        })
    })
    .map_err(|error| match NoRoom::behind(&error) {
        Some(no_room) => no_room.needing(size(trainer)).into(),
        None => error.context(format!("saving {}", path.display())),
    })?;
    Ok(path)
}

/// Bytes of weights and moments in a checkpoint; the rest is small.
fn size(trainer: &Trainer) -> u64 {
    let decoder = trainer.decoder();
    let trained = decoder.trainable();
    let weights = trained.iter().map(|parameter| {
        let width = match parameter.tensor.is_bf16() {
            true => 2,
            false => 4,
        };
        parameter.tensor.len() * width
    });
    let moments = moment_entries(&trained, &trainer.optimizer);
    let moments = moments.iter().map(|(_, entry)| entry.data_len());
    weights.chain(moments).sum::<usize>() as u64
}

/// Looks for checkpoints in `output_dir`.
///
/// # Errors
/// When the folder cannot be read.
pub fn find(output_dir: &Path) -> Result<Found> {
    let mut found = Found::default();
    for entry in std::fs::read_dir(output_dir)
        .with_context(|| format!("reading {}", output_dir.display()))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name
            .strip_prefix("checkpoint-")
            .is_none_or(|step| step.parse::<usize>().is_err())
        {
            continue;
        }
        match read_state(&path) {
            Ok(state) => found.complete.push(Checkpoint { path, state }),
            Err(error) => found.incomplete.push((path, format!("{error:#}"))),
        }
    }
    found
        .complete
        .sort_by_key(|checkpoint| checkpoint.state.progress.step);
    found.incomplete.sort();
    Ok(found)
}

/// The checkpoint in this folder.
///
/// # Errors
/// It is not complete; the message says what is missing.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let state = read_state(path).with_context(|| path.display().to_string())?;
    Ok(Checkpoint {
        path: path.to_path_buf(),
        state,
    })
}

/// Loads weights, moments and settings of a complete checkpoint; `base` gives the model its adapters belong to, if it
/// holds adapters alone.
///
/// # Errors
/// When a file does not hold what the model in it needs.
pub fn load(
    checkpoint: &Checkpoint,
    optim: Optim,
    settings: AdamW,
    max_grad_norm: f64,
    device: &Device,
    base: impl FnOnce() -> Result<Decoder>,
) -> Result<Trainer> {
    let decoder = load_decoder(checkpoint, device, base)?;
    let states = load_moments(
        &checkpoint.path.join(MOMENTS_FILE),
        optim,
        &decoder.trainable(),
        device,
    )?;
    let optimizer = Optimizer {
        settings,
        states,
        updates: checkpoint.state.progress.updates,
        seed: 0,
        decay_vectors: false,
    };
    Ok(Trainer::new(decoder, optimizer, max_grad_norm))
}

/// The model of a complete checkpoint, with its adapters where it holds those alone.
///
/// # Errors
/// When a file does not hold what the model in it needs.
pub fn load_decoder(
    checkpoint: &Checkpoint,
    device: &Device,
    base: impl FnOnce() -> Result<Decoder>,
) -> Result<Decoder> {
    if checkpoint.path.join(ADAPTER_CONFIG).exists() {
        base()?.with_adapter(&checkpoint.path)
    } else {
        Decoder::load_as(&checkpoint.path, device, WeightDtype::Auto)
    }
}

fn read_state(path: &Path) -> Result<SavedState> {
    let Ok(text) = std::fs::read_to_string(path.join(STATE_FILE)) else {
        bail!("it has no {STATE_FILE}: saving it was interrupted");
    };
    let state: SavedState =
        serde_json::from_str(&text).with_context(|| format!("{STATE_FILE} cannot be read"))?;
    for (name, &size) in &state.files {
        let found = std::fs::metadata(path.join(name))
            .map(|file| file.len())
            .unwrap_or(0);
        ensure!(found == size, "{name} has {found} bytes instead of {size}");
    }
    Ok(state)
}

fn file_sizes(dir: &Path) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        sizes.insert(
            entry.file_name().to_string_lossy().into_owned(),
            entry.metadata()?.len(),
        );
    }
    Ok(sizes)
}

/// Removes the oldest checkpoints beyond `keep` (0 keeps all). That of the best evaluation, at step `best`, stays beyond
/// the limit.
///
/// # Errors
/// When a folder cannot be read or removed.
pub fn remove_oldest(output_dir: &Path, keep: usize, best: usize) -> Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let complete = find(output_dir)?.complete;
    let beyond = complete.len().saturating_sub(keep);
    let old = complete[..beyond].iter();
    for old in old.filter(|old| best == 0 || old.state.progress.step != best) {
        // Without its state a half-removed checkpoint counts as incomplete.
        std::fs::remove_file(old.path.join(STATE_FILE))?;
        std::fs::remove_dir_all(&old.path)
            .with_context(|| format!("removing {}", old.path.display()))?;
    }
    Ok(())
}

/// One moment as a safetensors entry; brought to the host when it is written, one at a time.
enum Moment<'a> {
    Vector(&'a Tensor<1>),
    Matrix(&'a Tensor<2>),
    Codes(&'a Moments8, MomentOrder),
    Scales(&'a Moments8, MomentOrder),
}

struct Entry<'a> {
    moment: Moment<'a>,
    shape: Vec<usize>,
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        match self.moment {
            Moment::Codes(..) => Dtype::U8,
            _ => Dtype::F32,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let data = match self.moment {
            Moment::Vector(tensor) => tensor.to_data(),
            Moment::Matrix(tensor) => tensor.to_data(),
            Moment::Codes(moments, order) => return moments.codes(order),
            Moment::Scales(moments, order) => {
                let scales = moments.scales(order);
                return Cow::Owned(scales.iter().flat_map(|x| x.to_le_bytes()).collect());
            }
        };
        Cow::Owned(data.as_bytes().to_vec())
    }
    fn data_len(&self) -> usize {
        let width = match self.moment {
            Moment::Codes(..) => 1,
            _ => size_of::<f32>(),
        };
        self.shape.iter().product::<usize>() * width
    }
}

/// Both moments under their names in the file.
const ORDERS: [(MomentOrder, &str); 2] = [
    (MomentOrder::First, "first"),
    (MomentOrder::Second, "second"),
];

fn save_moments(path: &Path, parameters: &[Parameter], optimizer: &Optimizer) -> Result<()> {
    safetensors::serialize_to_file(moment_entries(parameters, optimizer), None, path)
        .with_context(|| format!("writing {}", path.display()))
}

fn moment_entries<'a>(
    parameters: &[Parameter],
    optimizer: &'a Optimizer,
) -> Vec<(String, Entry<'a>)> {
    let mut entries = Vec::new();
    for (parameter, state) in parameters.iter().zip(&optimizer.states) {
        if let State::Quantised(moments) = state {
            let count = moments.len();
            for (order, which) in ORDERS {
                for (moment, kind, count) in [
                    (Moment::Codes(moments, order), "codes", count),
                    (
                        Moment::Scales(moments, order),
                        "scales",
                        Moments8::scales_of(count),
                    ),
                ] {
                    let shape = vec![count];
                    let name = format!("{which}.{kind}.{}", parameter.name);
                    entries.push((name, Entry { moment, shape }));
                }
            }
            continue;
        }
        let pair = match state {
            State::Vector(moments) => [&moments.first, &moments.second].map(|tensor| Entry {
                shape: tensor.dims().to_vec(),
                moment: Moment::Vector(tensor),
            }),
            State::Matrix(moments) => [&moments.first, &moments.second].map(|tensor| Entry {
                shape: tensor.dims().to_vec(),
                moment: Moment::Matrix(tensor),
            }),
            State::Quantised(_) => unreachable!("written above"),
        };
        for (entry, which) in pair.into_iter().zip(["first", "second"]) {
            entries.push((format!("{which}.{}", parameter.name), entry));
        }
    }
    entries
}

fn load_moments(
    path: &Path,
    optim: Optim,
    parameters: &[Parameter],
    device: &Device,
) -> Result<Vec<State>> {
    // Twice as large as the weights: in memory is only what a tensor is made of.
    let bytes = Mapped::open(path)?;
    let file =
        SafeTensors::deserialize(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let read = |which: &str, name: &str, shape: &[usize]| -> Result<TensorData> {
        let entry = format!("{which}.{name}");
        let view = file
            .tensor(&entry)
            .with_context(|| format!("{} has no {entry}", path.display()))?;
        ensure!(
            view.shape() == shape,
            "{}: {entry} is {:?}, the parameter is {shape:?}",
            path.display(),
            view.shape()
        );
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        bytes.forget(view.data());
        Ok(TensorData::new(values, shape))
    };
    let quantised = |which: &str, name: &str, count: usize| -> Result<Quantised> {
        let entry = format!("{which}.codes.{name}");
        let codes = file
            .tensor(&entry)
            .with_context(|| format!("{} has no {entry}", path.display()))?;
        ensure!(
            codes.data().len() == count,
            "{}: {entry} has {} codes, the parameter {count} numbers",
            path.display(),
            codes.data().len(),
        );
        let scales = format!("scales.{name}");
        let scales = read(which, &scales, &[Moments8::scales_of(count)])?;
        let values = codes.data().to_vec();
        bytes.forget(codes.data());
        Ok(Quantised {
            codes: values,
            scales: scales.try_to_vec().context("scales are f32")?,
        })
    };
    parameters
        .iter()
        .map(|parameter| {
            let name = &parameter.name;
            let count = parameter.tensor.len();
            if State::is_quantised(optim, count) {
                let first = quantised("first", name, count)?;
                let second = quantised("second", name, count)?;
                let moments = Moments8::from_host([first, second], device);
                return Ok(State::Quantised(moments));
            }
            Ok(match &parameter.tensor {
                sysgen_model::Weight::Vector(tensor) => State::Vector(Moments {
                    first: Tensor::from_data(read("first", name, &tensor.dims())?, device),
                    second: Tensor::from_data(read("second", name, &tensor.dims())?, device),
                }),
                sysgen_model::Weight::Matrix(tensor) => State::Matrix(Moments {
                    first: Tensor::from_data(read("first", name, &tensor.dims())?, device),
                    second: Tensor::from_data(read("second", name, &tensor.dims())?, device),
                }),
            })
        })
        .collect()
}
