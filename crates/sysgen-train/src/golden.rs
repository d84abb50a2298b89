//! The golden models on a device: what PyTorch computed with them, and how far the device is from it.
//!
//! `tests/golden` describes the files. The layers one by one are left to the tests of `sysgen-model`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safetensors::SafeTensors;
use serde_json::Value;
use sysgen_infer::{Engine, Options, Request, Sampling};
use sysgen_model::{Decoder, Device, Tokens, WeightDtype};
use sysgen_ops::AdamW;
use sysgen_train::batch::Batch;
use sysgen_train::optim::Optimizer;
use sysgen_train::trainer::{Trainer, mean_loss};

use crate::doctor::Figure;
use crate::matmul::dtype_name;

/// The largest errors that are rounding.
struct Tolerance {
    /// Of a logit, absolute.
    logits: f64,
    /// Of a mean loss, absolute.
    mean_loss: f64,
    /// Of the gradient's global norm, relative.
    grad_norm: f64,
}

const CPU: Tolerance = Tolerance {
    logits: 1e-4,
    mean_loss: 1e-5,
    grad_norm: 1e-4,
};

/// In full f32, but with sums in an order of its own; ten times the CPU's, since no GPU has been measured. TF32, which would
/// need as much again, is off (`sysgen_model::device`).
const GPU: Tolerance = Tolerance {
    logits: 1e-3,
    mean_loss: 1e-4,
    grad_norm: 1e-3,
};

/// Weights and all that is between them have eight bits, the reference has 24. PyTorch's own bf16 differs from its f32 on these
/// models by up to 0.53 (Gemma-2; 0.24 elsewhere), 1.6e-2 and 2.7e-2.
const BF16: Tolerance = Tolerance {
    logits: 0.6,
    mean_loss: 2e-2,
    grad_norm: 5e-2,
};

/// Tokens of a text that is written with graphs and without.
const GRAPH_TOKENS: usize = 24;

/// Single rows, padded rows, and both in one packed row.
const BATCHES: [&str; 5] = ["a", "b", "batch_right", "batch_left", "packed"];

/// The folders below `root` that hold a golden model.
pub(crate) fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(root).with_context(|| format!("--golden {}", root.display()))?;
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| folder.join("reference.json").is_file())
        .collect();
    folders.sort();
    if folders.is_empty() {
        bail!(
            "--golden {}: no folder in it has a reference.json; name the source tree's tests/golden",
            root.display()
        );
    }
    Ok(folders)
}

/// All figures of one model, its matrices in `dtype`; of one in bf16, whose weights are not the reference's, no greedy texts.
pub(crate) fn model(folder: &Path, device: &Device, dtype: WeightDtype) -> Result<Vec<Figure>> {
    let reference = Reference::open(folder)?;
    let decoder = Decoder::load_as(folder, device, dtype)?;
    let rounded = dtype == WeightDtype::Bf16;
    let allowed = match *device == Device::flex() {
        _ if rounded => BF16,
        true => CPU,
        false => GPU,
    };
    let name = folder.file_name().unwrap_or(folder.as_os_str());
    let figure = |case: String, error: f64, tolerance: f64| Figure {
        check: "golden",
        name: name.to_string_lossy().into_owned(),
        case,
        dtype: dtype_name(decoder.head().dtype()),
        error,
        tolerance,
    };
    let mut figures = Vec::new();
    for row in ["a", "b"] {
        let logits = decoder.logits(decoder.hidden(&reference.tokens(row)?));
        let logits = logits.try_into_vec_as::<f32>()?;
        let error = largest_difference(&logits, &reference.floats(&format!("{row}.logits"))?);
        figures.push(figure(format!("logits of {row}"), error, allowed.logits));
    }
    for name in BATCHES {
        let loss = mean_loss(&decoder, &[reference.batch(name)?]);
        let error = (loss - reference.number(&format!("/{name}/mean_loss"))?).abs();
        figures.push(figure(format!("loss of {name}"), error, allowed.mean_loss));
    }
    if !rounded {
        let texts = reference.greedy(&decoder)?;
        figures.push(figure("greedy texts that differ".into(), texts, 0.0));
    }
    if *device != Device::flex() {
        let texts = graphs(&decoder, reference.texts("prompts")?);
        figures.push(figure("texts that CUDA graphs change".into(), texts, 0.0));
    }

    let expected = reference.number("/batch_right/grad_norm")?;
    let settings = AdamW {
        learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        rounding_seed: 0,
    };
    for name in ["batch_right", "packed"] {
        let optimizer = Optimizer::new(&decoder.trainable(), settings);
        let mut trainer = Trainer::new(decoder.clone(), optimizer, 0.0);
        let norm = trainer.step(&[reference.batch(name)?], 0.0).grad_norm;
        let error = (norm - expected).abs() / expected;
        figures.push(figure(
            format!("gradient norm of {name}"),
            error,
            allowed.grad_norm,
        ));
    }
    Ok(figures)
}

/// NaN where a number is.
fn largest_difference(ours: &[f32], reference: &[f32]) -> f64 {
    if ours.len() != reference.len() {
        return f64::NAN;
    }
    let differences = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, |most, one| if one <= most { most } else { one })
}

/// How many greedy continuations are others with CUDA graphs than without; NaN where no step became a graph.
fn graphs(decoder: &Decoder, prompts: Vec<Vec<u32>>) -> f64 {
    let write = |enforce_eager| {
        let requests = prompts
            .iter()
            .map(|prompt| Request::new(prompt.clone(), Sampling::greedy(GRAPH_TOKENS), Vec::new()));
        let options = Options {
            enforce_eager,
            ..Options::default()
        };
        let mut texts = vec![None; prompts.len()];
        let statistics =
            Engine::new(decoder, options).generate(requests.collect(), &mut |row, answer| {
                texts[row] = answer.ok().map(|answer| answer.into_first().ids);
                ControlFlow::Continue(())
            });
        (texts, statistics.replayed_steps)
    };
    let ((launched, _), (replayed, steps)) = (write(true), write(false));
    if steps == 0 {
        return f64::NAN;
    }
    let texts = launched.iter().zip(&replayed);
    texts.filter(|(a, b)| a.is_none() || a != b).count() as f64
}

struct Reference {
    folder: PathBuf,
    json: Value,
    tensors: Vec<u8>,
}

impl Reference {
    fn open(folder: &Path) -> Result<Reference> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Reference {
            folder: folder.to_path_buf(),
            json: serde_json::from_slice(&read("reference.json")?)?,
            tensors: read("reference.safetensors")?,
        })
    }

    fn bytes<T>(&self, name: &str, convert: impl Fn(&[u8]) -> Vec<T>) -> Result<Vec<T>> {
        let file = SafeTensors::deserialize(&self.tensors)?;
        let missing = || format!("{}: tensor `{name}`", self.folder.display());
        let tensor = file.tensor(name).with_context(missing)?;
        Ok(convert(tensor.data()))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        self.bytes(name, |bytes| {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|word| f32::from_le_bytes(*word)).collect()
        })
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        self.bytes(name, |bytes| {
            let words = bytes.as_chunks::<8>().0.iter();
            words.map(|word| i64::from_le_bytes(*word)).collect()
        })
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let ids = self.integers(name)?.into_iter().map(u32::try_from);
        Ok(ids.collect::<Result<_, _>>()?)
    }

    fn number(&self, pointer: &str) -> Result<f64> {
        let number = self.json.pointer(pointer).and_then(Value::as_f64);
        number.with_context(|| format!("{}: no {pointer} in reference.json", self.folder.display()))
    }

    fn tokens(&self, batch: &str) -> Result<Tokens> {
        let ids = self.ids(&format!("{batch}.input_ids"))?;
        Ok(match batch {
            "a" | "b" => Tokens::padded(&[&ids], 0),
            "packed" => Tokens {
                batch: 1,
                time: ids.len(),
                positions: self.ids("packed.position_ids")?,
                segments: self
                    .ids("packed.segment_ids")?
                    .iter()
                    .map(|s| s + 1)
                    .collect(),
                ids,
            },
            _ => Tokens {
                batch: 2,
                time: ids.len() / 2,
                positions: self.ids(&format!("{batch}.position_ids"))?,
                segments: self.ids(&format!("{batch}.attention_mask"))?,
                ids,
            },
        })
    }

    /// The batch as the trainer takes it; the reference's labels are not shifted.
    fn batch(&self, name: &str) -> Result<Batch> {
        let tokens = self.tokens(name)?;
        let labels = self.integers(&format!("{name}.labels"))?;
        let (mut predict_at, mut targets) = (Vec::new(), Vec::new());
        for (at, &label) in labels.iter().enumerate() {
            if let Ok(label) = u32::try_from(label)
                && at % tokens.time > 0
            {
                predict_at.push(at as u32 - 1);
                targets.push(label);
            }
        }
        Ok(Batch {
            row_targets: vec![targets.len()],
            token_count: tokens
                .segments
                .iter()
                .filter(|segment| **segment != 0)
                .count(),
            row_ids: vec![name.to_owned()],
            tokens,
            predict_at,
            targets,
            on_policy: false,
        })
    }

    /// `prompts` or `continuations`.
    fn texts(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        let texts = self.json.pointer(&format!("/greedy/{name}")).cloned();
        let missing = || {
            format!(
                "{}: no greedy {name} in reference.json",
                self.folder.display()
            )
        };
        Ok(serde_json::from_value(texts.with_context(missing)?)?)
    }

    /// How many greedy continuations are not the reference's.
    fn greedy(&self, decoder: &Decoder) -> Result<f64> {
        let (prompts, expected) = (self.texts("prompts")?, self.texts("continuations")?);
        let requests = prompts
            .into_iter()
            .zip(&expected)
            .map(|(prompt, text)| Request::new(prompt, Sampling::greedy(text.len()), Vec::new()));
        let mut equal = 0;
        Engine::new(decoder, Options::default()).generate(
            requests.collect(),
            &mut |row, answer| {
                let ids = answer.map(|answer| answer.into_first().ids);
                equal += usize::from(ids.is_ok_and(|ids| ids == expected[row]));
                ControlFlow::Continue(())
            },
        );
        Ok((expected.len() - equal) as f64)
    }
}
