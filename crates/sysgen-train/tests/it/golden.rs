//! Twenty steps of full fine-tuning against PyTorch's curve.
//!
//! Cases are discovered: every folder `train/<model>` of `$SYSGEN_GOLDEN` (default `tests/golden` of this repository),
//! trained from its sibling `<model>`. The recipe that made them is `make/gen_train.py` beside them.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use sysgen_core::config::LrScheduler;
use sysgen_model::{Decoder, Device, Tokens};
use sysgen_ops::AdamW;
use sysgen_train::batch::Batch;
use sysgen_train::example::Example;
use sysgen_train::optim::Optimizer;
use sysgen_train::schedule::Schedule;
use sysgen_train::trainer::{Trainer, mean_loss};

/// Absolute, on the loss of a step and of the evaluation.
pub(crate) const LOSS: f64 = 2e-5;
/// Relative, on the gradient norm before clipping.
pub(crate) const GRAD_NORM: f64 = 1e-4;
/// Absolute, on parameters and logits after the last step.
pub(crate) const FINAL: f32 = 1e-4;
/// Absolute, between a step in one micro-batch and the same in one row each.
const MICRO_BATCHING: f64 = 1e-6;

pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) base: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) json: Value,
    pub(crate) bytes: Vec<u8>,
}

/// The reference numbers: those of `SYSGEN_GOLDEN`, or this repository's.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("SYSGEN_GOLDEN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
        PathBuf::from,
    )
}

pub(crate) fn cases() -> Vec<Golden> {
    let root = root();
    let Ok(entries) = std::fs::read_dir(root.join("train")) else {
        eprintln!(
            "SKIPPED: {} is absent; set SYSGEN_GOLDEN",
            root.join("train").display()
        );
        return Vec::new();
    };
    let mut cases: Vec<Golden> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("train.json").exists())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            Golden {
                base: root.join(&name),
                json: serde_json::from_slice(&std::fs::read(path.join("train.json")).unwrap())
                    .unwrap(),
                bytes: std::fs::read(path.join("train.safetensors")).unwrap(),
                folder: path,
                name,
            }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(
        !cases.is_empty(),
        "no case in {}",
        root.join("train").display()
    );
    cases
}

impl Golden {
    fn integers(&self, tensors: &SafeTensors, name: &str) -> (Vec<i64>, Vec<usize>) {
        let view = tensors.tensor(name).unwrap();
        let values = view
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        (values, view.shape().to_vec())
    }

    /// The rows of every step as examples: an ignored label is a token that is not learnt.
    pub(crate) fn steps(&self) -> Vec<Vec<Example>> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let (ids, shape) = self.integers(&tensors, "batches.input_ids");
        let (attended, _) = self.integers(&tensors, "batches.attention_mask");
        let (labels, _) = self.integers(&tensors, "batches.labels");
        let [_, rows, time] = shape[..] else {
            panic!("{shape:?}")
        };
        let row = |from: usize| {
            let length = attended[from..from + time]
                .iter()
                .filter(|&&a| a == 1)
                .count();
            let mut learn: Vec<bool> = labels[from..from + length]
                .iter()
                .map(|&label| label != -100)
                .collect();
            learn[0] = false;
            Example {
                id: from.to_string(),
                ids: ids[from..from + length]
                    .iter()
                    .map(|&id| id as u32)
                    .collect(),
                learn,
                set: 0,
            }
        };
        (0..ids.len() / (rows * time))
            .map(|step| (0..rows).map(|r| row((step * rows + r) * time)).collect())
            .collect()
    }

    /// The stored tensors whose names begin with `prefix`.
    pub(crate) fn floats_starting(&self, prefix: &str) -> Vec<(String, Vec<f32>)> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let found = tensors.tensors().into_iter();
        found
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, view)| {
                let (values, _) = view.data().as_chunks::<4>();
                (
                    name,
                    values.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                )
            })
            .collect()
    }

    pub(crate) fn decoder(&self) -> Decoder {
        Decoder::load(&self.base, &Device::flex()).unwrap()
    }

    /// A trainer of what of `decoder` is trained.
    pub(crate) fn trainer(&self, decoder: Decoder) -> Trainer {
        let recipe = &self.json["recipe"];
        let settings = AdamW {
            learning_rate: 0.0,
            beta1: recipe["betas"][0].as_f64().unwrap(),
            beta2: recipe["betas"][1].as_f64().unwrap(),
            epsilon: recipe["eps"].as_f64().unwrap(),
            weight_decay: recipe["weight_decay"].as_f64().unwrap(),
            rounding_seed: 0,
        };
        let optimizer = Optimizer::new(&decoder.trainable(), settings);
        Trainer::new(decoder, optimizer, 1.0)
    }

    pub(crate) fn schedule(&self) -> Schedule {
        let recipe = &self.json["recipe"];
        Schedule {
            peak: recipe["lr"].as_f64().unwrap(),
            warmup_steps: recipe["warmup_steps"].as_u64().unwrap() as usize,
            total_steps: recipe["steps"].as_u64().unwrap() as usize,
            decay: LrScheduler::Cosine,
        }
    }
}

/// `rows_in_row`: how many sequences share a packed row; `rows_in_batch`: packed rows in a micro-batch.
pub(crate) fn micro_batches(
    examples: &[Example],
    rows_in_row: usize,
    rows_in_batch: usize,
) -> Vec<Batch> {
    let order: Vec<usize> = (0..examples.len()).collect();
    let rows: Vec<Vec<usize>> = order.chunks(rows_in_row).map(<[usize]>::to_vec).collect();
    rows.chunks(rows_in_batch)
        .map(|rows| Batch::new(examples, rows, 0))
        .collect()
}

pub(crate) fn close(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn golden_twenty_steps_follow_the_curve_of_pytorch() {
    for golden in cases() {
        let (mut trainer, schedule, steps) = (
            golden.trainer(golden.decoder()),
            golden.schedule(),
            golden.steps(),
        );
        let expected = golden.json["full"]["steps"].as_array().unwrap();
        for (step, (rows, expected)) in steps.iter().zip(expected).enumerate() {
            let learning_rate = schedule.learning_rate(step);
            let report = trainer.step(&micro_batches(rows, 1, rows.len()), learning_rate);
            let number = |key: &str| expected[key].as_f64().unwrap();
            let at = format!("{} step {step}", golden.name);
            assert!(
                (learning_rate - number("lr")).abs() < 1e-12,
                "{at}: learning rate {learning_rate}"
            );
            assert_eq!(
                report.supervised_tokens as f64,
                number("num_label_tokens"),
                "{at}"
            );
            let loss = (report.loss - number("loss")).abs();
            assert!(
                loss <= LOSS,
                "{at}: loss {} instead of {}",
                report.loss,
                number("loss")
            );
            let norm = (report.grad_norm / number("grad_norm") - 1.0).abs();
            assert!(
                norm <= GRAD_NORM,
                "{at}: gradient norm {} instead of {}",
                report.grad_norm,
                number("grad_norm")
            );
        }

        let tensors = SafeTensors::deserialize(&golden.bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = tensors.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        let parameters = trainer.decoder().parameters();
        let mut compared = 0;
        for parameter in &parameters {
            let stored = format!("full.final.{}", parameter.name);
            if tensors.names().contains(&stored.as_str()) {
                let difference = close(&parameter.tensor.to_vec(), &floats(&stored));
                assert!(
                    difference <= FINAL,
                    "{}: {} differs by {difference:e}",
                    golden.name,
                    parameter.name
                );
                compared += 1;
            }
        }
        assert!(
            compared >= 2,
            "{}: only {compared} parameters could be compared",
            golden.name
        );

        let first = &steps[0][0];
        let probe = Tokens::padded(&[&first.ids], 0);
        let logits = trainer.decoder().logits(trainer.decoder().hidden(&probe));
        let difference = close(
            &logits.try_into_vec_as::<f32>().unwrap(),
            &floats("full.final_probe_logits"),
        );
        assert!(
            difference <= FINAL,
            "{}: probe logits differ by {difference:e}",
            golden.name
        );

        let evaluated = &golden.json["full"]["final_eval_loss_on_batches"];
        for (rows, key) in [(&steps[0], "first"), (&steps[steps.len() - 1], "last")] {
            let loss = mean_loss(trainer.decoder(), &micro_batches(rows, 1, 2));
            let expected = evaluated[key].as_f64().unwrap();
            assert!(
                (loss - expected).abs() <= LOSS,
                "{}: {key} evaluation {loss} instead of {expected}",
                golden.name
            );
        }
    }
}

#[test]
fn golden_how_a_step_is_cut_into_micro_batches_does_not_change_it() {
    for golden in cases() {
        let steps = golden.steps();
        let curve = |rows_in_row: usize, rows_in_batch: usize| -> Vec<(f64, f64)> {
            let mut trainer = golden.trainer(golden.decoder());
            let schedule = golden.schedule();
            let step = |(step, rows): (usize, &Vec<Example>)| {
                let report = trainer.step(
                    &micro_batches(rows, rows_in_row, rows_in_batch),
                    schedule.learning_rate(step),
                );
                (report.loss, report.grad_norm)
            };
            steps.iter().take(6).enumerate().map(step).collect()
        };
        let whole = curve(1, 4);
        for (rows_in_row, rows_in_batch, what) in [
            (1, 1, "one row each"),
            (4, 1, "all packed in one row"),
            (2, 2, "packed in pairs"),
        ] {
            for (step, (a, b)) in whole
                .iter()
                .zip(curve(rows_in_row, rows_in_batch))
                .enumerate()
            {
                let (loss, norm) = ((a.0 - b.0).abs(), (a.1 / b.1 - 1.0).abs());
                let close = loss <= MICRO_BATCHING && norm <= MICRO_BATCHING;
                assert!(
                    close,
                    "{}, {what}, step {step}: loss {loss:e}, gradient norm {norm:e}",
                    golden.name
                );
            }
        }
    }
}
