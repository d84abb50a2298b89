//! Encoders of the BERT family: ids of whole texts become hidden states that see both sides. Forward only, in plain
//! tensors beside `sysgen_ops::linear`; made for scores over finished data, not for training.
//!
//! Source: transformers, `modeling_bert.py` and `modeling_roberta.py`. Norms stand after each block ("post-norm").

mod config;
mod cosines;
mod weights;

use std::path::Path;

use anyhow::{Result, ensure};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};

use crate::tokens::assert_ids;
pub use config::{EncoderConfig, EncoderFamily, SUPPORTED_ENCODERS};
use weights::{Layer, Linear, Norm, Weights};

/// An encoder up to some layer. All weights are f32, what f16 and bf16 files convert to without loss.
pub struct Encoder {
    /// What `config.json` says; it may have more layers than were loaded.
    pub config: EncoderConfig,
    weights: Weights,
    device: Device,
}

impl Encoder {
    /// Loads embeddings and the first `layers` layers of a Hugging Face directory onto `device`.
    ///
    /// # Errors
    /// A configuration that is not supported, more `layers` than there are, a tensor that is missing or mis-shaped.
    pub fn load(dir: &Path, layers: usize, device: &Device) -> Result<Encoder> {
        let config = EncoderConfig::from_directory(dir)?;
        ensure!(
            layers <= config.layers,
            "{} has {} layers, not {layers}",
            dir.display(),
            config.layers
        );
        Ok(Encoder {
            weights: weights::load(dir, &config, layers, device)?,
            config,
            device: device.clone(),
        })
    }

    /// The hidden states of `texts` after the last layer that was loaded; after the embeddings where none was.
    ///
    /// # Shapes
    /// output: `[texts, longest, dim]`; what is past a text's end has no meaning
    ///
    /// # Panics
    /// There is no text, one is empty or longer than [`EncoderConfig::max_length`], or an id is at or above `vocab_size`.
    pub fn hidden(&self, texts: &[&[u32]]) -> Tensor<3> {
        self.run(texts, |_| {})
    }

    /// The embeddings and the hidden states after each layer, as [`Encoder::hidden`].
    pub fn hidden_states(&self, texts: &[&[u32]]) -> Vec<Tensor<3>> {
        let mut states = Vec::new();
        self.run(texts, |x| states.push(x.clone()));
        states
    }

    /// `observe` sees the residual stream before the first and after each layer.
    fn run(&self, texts: &[&[u32]], mut observe: impl FnMut(&Tensor<3>)) -> Tensor<3> {
        let time = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        assert!(
            !texts.iter().any(|text| text.is_empty()) && time > 0,
            "an encoder reads at least one token"
        );
        assert!(
            time <= self.config.max_length(),
            "a text of {time} tokens, the encoder reads {}",
            self.config.max_length()
        );
        let mut x = self.embed(texts, time);
        let padding = self.padding(texts, time);
        observe(&x);
        for layer in &self.weights.layers {
            x = self.layer(layer, x, &padding);
            observe(&x);
        }
        x
    }

    /// Words, positions and token type 0, normed: `[batch, time, dim]`.
    fn embed(&self, texts: &[&[u32]], time: usize) -> Tensor<3> {
        let pad = self.config.pad_token_id;
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for text in texts {
            assert_ids(text, self.config.vocab_size);
            let end = ids.len() + time;
            ids.extend(text.iter().map(|&id| id as i32));
            positions.extend(self.positions(text));
            ids.resize(end, pad as i32);
            positions.resize(end, pad as i32);
        }
        let shape = [texts.len(), time, self.config.hidden_size];
        let rows = |table: &Tensor<2>, indices: Vec<i32>| {
            let count = indices.len();
            let indices = TensorData::new(indices, [count]);
            let indices = Tensor::<1, Int>::from_data(indices, &self.device);
            table.clone().select(0, indices).reshape(shape)
        };
        let types = rows(&self.weights.token_types, vec![0; ids.len()]);
        let x = rows(&self.weights.words, ids) + types + rows(&self.weights.positions, positions);
        self.norm(x, &self.weights.norm)
    }

    /// RoBERTa counts tokens from the padding id plus one and gives padding, also inside a text, its own id
    /// (`create_position_ids_from_input_ids`).
    fn positions(&self, text: &[u32]) -> Vec<i32> {
        let first = self.config.first_position() as i32;
        if self.config.family == EncoderFamily::Bert {
            return (first..).take(text.len()).collect();
        }
        let pad = self.config.pad_token_id;
        let mut next = first;
        text.iter()
            .map(|&id| {
                if id == pad {
                    return pad as i32;
                }
                next += 1;
                next - 1
            })
            .collect()
    }

    /// Which keys are past the end of their text: `[batch, 1, 1, time]`.
    fn padding(&self, texts: &[&[u32]], time: usize) -> Tensor<4, Bool> {
        let past: Vec<bool> = texts
            .iter()
            .flat_map(|text| (0..time).map(|at| at >= text.len()))
            .collect();
        Tensor::from_data(
            TensorData::new(past, [texts.len(), 1, 1, time]),
            &self.device,
        )
    }

    fn layer(&self, layer: &Layer, x: Tensor<3>, padding: &Tensor<4, Bool>) -> Tensor<3> {
        let [batch, time, dim] = x.dims();
        let heads = self.config.heads;
        let size = dim / heads;
        let project = |linear: &Linear| {
            apply(linear, x.clone())
                .reshape([batch, time, heads, size])
                .swap_dims(1, 2)
        };
        let scores = project(&layer.query)
            .matmul(project(&layer.key).swap_dims(2, 3))
            .div_scalar((size as f64).sqrt());
        let padding = padding.clone().expand([batch, heads, time, time]);
        let weights = activation::softmax(scores.mask_fill(padding, f32::MIN), 3);
        let attended = weights
            .matmul(project(&layer.value))
            .swap_dims(1, 2)
            .reshape([batch, time, dim]);
        let x = self.norm(
            apply(&layer.attention_output, attended) + x,
            &layer.attention_norm,
        );
        let wide = activation::gelu(apply(&layer.intermediate, x.clone()));
        self.norm(apply(&layer.output, wide) + x, &layer.output_norm)
    }

    /// `(x − mean) / sqrt(variance + eps) · weight + bias` over the last dimension.
    fn norm(&self, x: Tensor<3>, norm: &Norm) -> Tensor<3> {
        let centred = x.clone() - x.mean_dim(2);
        let variance = (centred.clone() * centred.clone()).mean_dim(2);
        let unit = centred / variance.add_scalar(self.config.layer_norm_eps).sqrt();
        unit * norm.weight.clone().unsqueeze() + norm.bias.clone().unsqueeze()
    }
}

fn apply(linear: &Linear, x: Tensor<3>) -> Tensor<3> {
    sysgen_ops::linear(x, linear.weight.clone(), Some(linear.bias.clone()))
}
