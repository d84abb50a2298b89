//! The tensors of an encoder's files, with or without the prefix of a model with a head. What a head needs beside them (a
//! pooler, a language-model head) is left in the file.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};

use crate::checkpoint::{Checkpoint, decode};
use crate::encoder::config::EncoderConfig;

/// What `BertForMaskedLM` and its like put before every name; XLM-RoBERTa is a RoBERTa there, too.
const PREFIXES: [&str; 3] = ["", "bert.", "roberta."];
/// By this tensor the prefix is found.
const WORDS: &str = "embeddings.word_embeddings.weight";
/// Old files call a norm's factor and shift so.
const OLD_NORM_NAMES: [(&str, &str); 2] = [
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
];

/// Factor and shift, `[dim]`.
pub(super) struct Norm {
    pub(super) weight: Tensor<1>,
    pub(super) bias: Tensor<1>,
}

/// `[out, in]` and `[out]`.
pub(super) struct Linear {
    pub(super) weight: Tensor<2>,
    pub(super) bias: Tensor<1>,
}

pub(super) struct Layer {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

pub(super) struct Weights {
    /// `[vocab, dim]`
    pub(super) words: Tensor<2>,
    /// `[positions, dim]`
    pub(super) positions: Tensor<2>,
    /// `[types, dim]`
    pub(super) token_types: Tensor<2>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// Loads the embeddings and the first `layers` layers.
pub(super) fn load(
    dir: &Path,
    config: &EncoderConfig,
    layers: usize,
    device: &Device,
) -> Result<Weights> {
    let checkpoint = Checkpoint::open(dir)?;
    let Some(prefix) = PREFIXES
        .into_iter()
        .find(|prefix| checkpoint.find(&format!("{prefix}{WORDS}")).is_some())
    else {
        bail!(
            "{} holds no tensor `{WORDS}`, also not after {}",
            dir.display(),
            PREFIXES[1..].join(" or ")
        );
    };
    let file = File {
        dir,
        checkpoint: &checkpoint,
        prefix,
        device,
    };
    let (dim, wide) = (config.hidden_size, config.intermediate_size);
    let weights = Weights {
        words: file.matrix("embeddings.word_embeddings", config.vocab_size, dim)?,
        positions: file.matrix(
            "embeddings.position_embeddings",
            config.max_position_embeddings,
            dim,
        )?,
        token_types: file.matrix(
            "embeddings.token_type_embeddings",
            config.type_vocab_size,
            dim,
        )?,
        norm: file.norm("embeddings.LayerNorm", dim)?,
        layers: (0..layers)
            .map(|layer| {
                let at = |part: &str| format!("encoder.layer.{layer}.{part}");
                Ok(Layer {
                    query: file.linear(&at("attention.self.query"), dim, dim)?,
                    key: file.linear(&at("attention.self.key"), dim, dim)?,
                    value: file.linear(&at("attention.self.value"), dim, dim)?,
                    attention_output: file.linear(&at("attention.output.dense"), dim, dim)?,
                    attention_norm: file.norm(&at("attention.output.LayerNorm"), dim)?,
                    intermediate: file.linear(&at("intermediate.dense"), wide, dim)?,
                    output: file.linear(&at("output.dense"), dim, wide)?,
                    output_norm: file.norm(&at("output.LayerNorm"), dim)?,
                })
            })
            .collect::<Result<_>>()?,
    };
    Ok(weights)
}

struct File<'a> {
    dir: &'a Path,
    checkpoint: &'a Checkpoint,
    prefix: &'a str,
    device: &'a Device,
}

impl File<'_> {
    fn values<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        let mut name = format!("{}{name}", self.prefix);
        for (new, old) in OLD_NORM_NAMES {
            if self.checkpoint.find(&name).is_none()
                && let Some(path) = name.strip_suffix(new)
            {
                name = format!("{path}{old}");
            }
        }
        let Some((shard, tensor)) = self.checkpoint.find(&name) else {
            bail!("tensor `{name}` is missing from {}", self.dir.display());
        };
        let file = shard.path.display();
        ensure!(
            tensor.shape == shape,
            "tensor `{name}` in {file} has shape {:?}, config.json asks for {shape:?}",
            tensor.shape
        );
        let Some(dtype) = tensor.dtype else {
            bail!(
                "tensor `{name}` in {file} is stored as {}; supported: F32, F16, BF16",
                tensor.dtype_name
            );
        };
        let values = decode(shard.bytes_of(tensor), dtype);
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }

    fn matrix(&self, path: &str, out: usize, input: usize) -> Result<Tensor<2>> {
        self.values(&format!("{path}.weight"), [out, input])
    }

    fn linear(&self, path: &str, out: usize, input: usize) -> Result<Linear> {
        Ok(Linear {
            weight: self.matrix(path, out, input)?,
            bias: self.values(&format!("{path}.bias"), [out])?,
        })
    }

    fn norm(&self, path: &str, dim: usize) -> Result<Norm> {
        Ok(Norm {
            weight: self.values(&format!("{path}.weight"), [dim])?,
            bias: self.values(&format!("{path}.bias"), [dim])?,
        })
    }
}
