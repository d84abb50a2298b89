//! The cases and their reference tensors.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::tensor::Tensor;
use safetensors::SafeTensors;
use serde_json::Value;
use sysgen_model::{Decoder, Device, Tokens};

/// Hidden states and logits, largest absolute difference (the reference itself is within 2e-5 of f64).
pub(crate) const ACTIVATION: f32 = 1e-4;
/// Loss of one token, absolute.
pub(crate) const TOKEN_LOSS: f32 = 5e-5;
/// Mean loss, absolute.
pub(crate) const MEAN_LOSS: f64 = 1e-5;
/// Norms of gradients, relative.
pub(crate) const GRADIENT_NORM: f64 = 1e-4;
/// Gradients, largest absolute difference.
pub(crate) const GRADIENT: f32 = 1e-4;

pub(crate) fn root() -> PathBuf {
    std::env::var_os("SYSGEN_GOLDEN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
        PathBuf::from,
    )
}

/// One model with what PyTorch computed with it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) json: Value,
    tensors: Vec<u8>,
}

/// All cases.
///
/// # Panics
/// There is none: a wrong `SYSGEN_GOLDEN` must not look like success.
pub(crate) fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let root = root();
        let mut dirs: Vec<PathBuf> = std::fs::read_dir(&root)
            .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        dirs.sort();
        let cases: Vec<Case> = dirs
            .into_iter()
            .filter(|dir| dir.join("reference.json").exists())
            .map(Case::open)
            .collect();
        assert!(
            !cases.is_empty(),
            "no folder with reference.json in {}",
            root.display()
        );
        cases
    })
}

impl Case {
    fn open(dir: PathBuf) -> Case {
        Case {
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            json: serde_json::from_slice(&std::fs::read(dir.join("reference.json")).unwrap())
                .unwrap(),
            tensors: std::fs::read(dir.join("reference.safetensors")).unwrap(),
            dir,
        }
    }

    pub(crate) fn decoder(&self) -> Decoder {
        Decoder::load(&self.dir, &Device::flex()).unwrap()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        file.tensor(name)
            .unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name))
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.tensors).unwrap();
        file.tensor(name)
            .unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name))
            .data()
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b))
            .collect()
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.integers(name)
            .into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect()
    }

    pub(crate) fn number(&self, pointer: &str) -> f64 {
        self.json
            .pointer(pointer)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{}: {pointer}", self.name))
    }

    /// One of the stored batches: `a`, `b`, `batch_right`, `batch_left`, `packed`.
    pub(crate) fn tokens(&self, batch: &str) -> Tokens {
        let ids = self.ids(&format!("{batch}.input_ids"));
        match batch {
            "a" | "b" => Tokens::padded(&[&ids], 0),
            "packed" => {
                let segments: Vec<u32> = self
                    .ids("packed.segment_ids")
                    .iter()
                    .map(|segment| segment + 1)
                    .collect();
                Tokens {
                    batch: 1,
                    time: ids.len(),
                    positions: self.ids("packed.position_ids"),
                    segments,
                    ids,
                }
            }
            _ => Tokens {
                batch: 2,
                time: ids.len() / 2,
                positions: self.ids(&format!("{batch}.position_ids")),
                segments: self.ids(&format!("{batch}.attention_mask")),
                ids,
            },
        }
    }

    /// Where a batch's tokens are learnt, and which they are.
    pub(crate) fn supervised(&self, batch: &str) -> (Vec<usize>, Vec<u32>) {
        let time = self.tokens(batch).time;
        let labels = self.integers(&format!("{batch}.labels"));
        (0..labels.len())
            .filter(|at| at % time > 0 && labels[*at] >= 0)
            .map(|at| (at, u32::try_from(labels[at]).unwrap()))
            .unzip()
    }

    /// The losses of a batch's learnt tokens, from its hidden states.
    pub(crate) fn losses(
        &self,
        batch: &str,
        hidden: Tensor<3>,
        head: Tensor<2>,
        softcap: Option<f32>,
    ) -> Tensor<1> {
        let (supervised, targets) = self.supervised(batch);
        let [rows, time, dim] = hidden.dims();
        let before: Vec<i64> = supervised.iter().map(|at| *at as i64 - 1).collect();
        let before = Tensor::from_data(
            burn::tensor::TensorData::new(before, [supervised.len()]),
            &hidden.device(),
        );
        let hidden: Tensor<2> = hidden.reshape([rows * time, dim]).select(0, before);
        sysgen_ops::linear_cross_entropy(hidden, head, &targets, 1.0, softcap)
    }

    /// The mean loss of a batch, and the loss of each token in the reference's layout.
    pub(crate) fn loss(&self, decoder: &Decoder, batch: &str) -> (Tensor<1>, Vec<f32>) {
        let softcap = decoder.config.final_softcap;
        let hidden = decoder.hidden(&self.tokens(batch));
        let losses = self.losses(batch, hidden, decoder.head(), softcap);
        let (supervised, targets) = self.supervised(batch);
        let mut laid_out = vec![0.0; self.tokens(batch).ids.len()];
        for (at, loss) in supervised.iter().zip(values(losses.clone())) {
            laid_out[*at] = loss;
        }
        (losses.sum().div_scalar(targets.len() as f64), laid_out)
    }
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().try_into_vec_as::<f32>().unwrap()
}

/// Fails where two lists differ by more than `tolerance` anywhere, or where a value is not a number.
#[track_caller]
pub(crate) fn assert_close(what: &str, ours: &[f32], reference: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), reference.len(), "{what}: number of values");
    let (at, difference) = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| (a - b).abs())
        .enumerate()
        .fold((0, 0.0), |worst, (at, difference)| {
            if difference <= worst.1 {
                worst
            } else {
                (at, difference)
            }
        });
    assert!(
        difference <= tolerance,
        "{what}: value {at} is {}, reference {}, difference {difference} > {tolerance}",
        ours[at],
        reference[at]
    );
}

/// Fails where two numbers differ by more than `tolerance` relative to the second.
#[track_caller]
pub(crate) fn assert_relative(what: &str, ours: f64, reference: f64, tolerance: f64) {
    let difference = (ours - reference).abs() / reference.abs().max(1e-6);
    assert!(
        difference <= tolerance,
        "{what}: {ours}, reference {reference}, relative difference {difference} > {tolerance}"
    );
}
