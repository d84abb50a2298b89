//! The decoder: token ids to hidden states and logits over whole rows, for training and evaluation.
//! Decoding with a cache is `cached.rs`; the ops are `sysgen_ops`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sysgen_ops::{AttentionShape, LinearWeight, Segments};

use crate::adapters::Lora;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::layer::{Rotation, Scene, norm};
use crate::names::{Entry, Kind, entries};
use crate::parameter::{Parameter, Weight, WeightDtype};
use crate::save::{self, ExportDtype};
use crate::tokens::Tokens;
use crate::weights::{Layer, Source, Weights};

/// A language model of one of the supported families. On the CPU every op computes in f32; matrices are f32 or bf16, from which
/// products widen them as they go, with the bits of an f32 copy. On a device the matrices' format is that of everything
/// between them, too ([`Decoder::dtype`]).
#[derive(Clone, Debug)]
pub struct Decoder {
    /// What `config.json` says.
    pub config: ModelConfig,
    pub(crate) weights: Weights,
    /// The adapters that are trained in place of the weights, if there are any.
    pub(crate) lora: Option<Lora>,
}

impl Decoder {
    /// Loads a Hugging Face model directory onto `device`, in f32. The host holds about one tensor at a time.
    ///
    /// # Errors
    /// The configuration is not supported, or a tensor is missing, surplus, mis-shaped or truncated; found from the
    /// headers, before any tensor is made.
    pub fn load(dir: &Path, device: &Device) -> Result<Decoder> {
        Decoder::load_as(dir, device, WeightDtype::F32)
    }

    /// As [`Decoder::load`], with matrices kept in `dtype`.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_as(dir: &Path, device: &Device, dtype: WeightDtype) -> Result<Decoder> {
        Decoder::load_with(dir, device, dtype, false)
    }

    /// As [`Decoder::load_as`], with the projections of all layers in four bits (NF4), quantised one tensor at a time. Such a
    /// decoder is frozen: only adapters beside it can be trained.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_nf4(dir: &Path, device: &Device, dtype: WeightDtype) -> Result<Decoder> {
        Decoder::load_with(dir, device, dtype, true)
    }

    fn load_with(dir: &Path, device: &Device, dtype: WeightDtype, nf4: bool) -> Result<Decoder> {
        let dtype = dtype.on(device);
        let config = ModelConfig::from_directory(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.check(&config)?;
        let list = entries(&config)
            .into_iter()
            .map(|Entry { name, shape, .. }| checkpoint.weight(&name, &shape, dtype, device));
        let weights = Weights::from_source(&config, Source::new(list, nf4));
        Ok(Decoder {
            config,
            weights,
            lora: None,
        })
    }

    /// An untrained model: matrices normal with deviation `initializer_range`, norms that change nothing, biases 0.
    /// A tensor's values depend on the seed and its name only.
    pub fn random(config: ModelConfig, seed: u64, device: &Device) -> Decoder {
        Decoder::random_as(config, seed, device, WeightDtype::F32)
    }

    /// As [`Decoder::random`], with matrices kept in `dtype`, each rounded as soon as it is there.
    pub fn random_as(
        config: ModelConfig,
        seed: u64,
        device: &Device,
        dtype: WeightDtype,
    ) -> Decoder {
        let rounded = dtype.on(device) == WeightDtype::Bf16;
        let list = entries(&config)
            .into_iter()
            .map(|Entry { name, kind, shape }| {
                let count = shape.iter().product();
                let values = match kind {
                    Kind::Matrix => normal(seed, &name, count, config.initializer_range),
                    Kind::Bias => vec![0.0; count],
                    Kind::Norm => vec![if config.norm_plus_one { 0.0 } else { 1.0 }; count],
                };
                let weight = Weight::from_values(values, &shape, device);
                if rounded { weight.in_bf16() } else { weight }
            });
        let weights = Weights::from_list(&config, list.collect());
        Decoder {
            config,
            weights,
            lora: None,
        }
    }

    /// The same model with every matrix rounded to the nearest bf16.
    #[must_use]
    pub fn in_bf16(self) -> Decoder {
        let (config, mut parameters) = self.into_parameters();
        for parameter in &mut parameters {
            parameter.tensor = parameter.tensor.clone().in_bf16();
        }
        Decoder::from_parameters(config, parameters)
    }

    /// Whether its projections are in four bits.
    pub fn is_nf4(&self) -> bool {
        let mut layers = self.weights.layers.iter();
        layers.any(|layer| matches!(layer.output.weight, LinearWeight::Nf4(_)))
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.weights.embedding.device()
    }

    /// The one dtype policy: what hidden states, queries, keys and values are. f32 on the CPU; on a device the format of the
    /// embedding table, so that a product reads weights as they are kept. Everywhere sums, norms and their weights, biases,
    /// adapters, softmax, losses, the gradients of parameters and the optimizer are f32.
    pub fn dtype(&self) -> DType {
        let cpu = self.device() == Device::flex();
        match &self.weights.embedding {
            LinearWeight::Dense(table) if !cpu => table.dtype(),
            _ => DType::F32,
        }
    }

    /// The residual stream after the final norm.
    ///
    /// # Shapes
    /// output: `[batch, time, dim]`; rows of padding hold numbers without meaning
    ///
    /// # Panics
    /// `tokens` contradicts its own sizes or holds an id at or above `vocab_size`.
    pub fn hidden(&self, tokens: &Tokens) -> Tensor<3> {
        self.run(tokens, |_| {})
    }

    /// Every stage of [`Decoder::hidden`]: the embeddings, the residual stream after each layer, the result.
    pub fn hidden_states(&self, tokens: &Tokens) -> Vec<Tensor<3>> {
        let mut stages = Vec::new();
        let last = self.run(tokens, |x| stages.push(x.clone()));
        stages.push(last);
        stages
    }

    /// Head and final soft-cap on hidden states `[.., dim]`: logits `[.., vocab]`, in f32.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let logits = self.head_weight().logits(hidden);
        match self.config.final_softcap {
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            None => logits,
        }
    }

    /// The head, `[vocab, dim]`; of a tied model the embedding table itself.
    pub fn head(&self) -> Tensor<2> {
        self.head_weight().clone().into_tensor()
    }

    fn head_weight(&self) -> &LinearWeight {
        let weights = &self.weights;
        weights.head.as_ref().unwrap_or(&weights.embedding)
    }

    /// For inference alone: weights on the CPU are laid out as products read them. The results are the same to the bit.
    /// What cannot be laid out so (other devices, four bits) stays as it is.
    #[must_use]
    pub fn pack(self) -> Decoder {
        Decoder {
            weights: self.weights.pack(),
            ..self
        }
    }

    /// Every parameter under its name in the checkpoint; a tied head once, as `model.embed_tokens.weight`.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.clone().into_parameters().1
    }

    /// Gives up the decoder for its parameters. Unlike those of [`Decoder::parameters`], these tensors have no second
    /// owner, so an optimizer can update them in place.
    pub fn into_parameters(self) -> (ModelConfig, Vec<Parameter>) {
        let names = entries(&self.config).into_iter().map(|entry| entry.name);
        let list = names
            .zip(self.weights.into_list())
            .map(|(name, tensor)| Parameter { name, tensor })
            .collect();
        (self.config, list)
    }

    /// The decoder of [`Decoder::into_parameters`], put together again.
    ///
    /// # Panics
    /// The names or shapes are not those of `config`, in their order.
    pub fn from_parameters(config: ModelConfig, parameters: Vec<Parameter>) -> Decoder {
        for (entry, parameter) in entries(&config).iter().zip(&parameters) {
            assert_eq!(entry.name, parameter.name, "order of the parameters");
        }
        let list = parameters
            .into_iter()
            .map(|parameter| parameter.tensor)
            .collect();
        let weights = Weights::from_list(&config, list);
        Decoder {
            config,
            weights,
            lora: None,
        }
    }

    /// Writes a model directory: weights, index, `config.json`, `generation_config.json`, each file whole or not at
    /// all. With `like`, a directory this model came from, the files have its layout, and are byte for byte the same
    /// where nothing has changed. `dir` is created and must not hold weight files of another layout.
    ///
    /// # Errors
    /// A file cannot be written or read, `like` does not fit the model, `dir` holds other weight files, or a value
    /// does not fit into f16. A decoder with adapters is refused, since its weights alone are not what was trained: merge
    /// them first, or save the adapter.
    pub fn save(&self, dir: &Path, dtype: ExportDtype, like: Option<&Path>) -> Result<()> {
        ensure!(
            self.lora.is_none(),
            "{}: the adapters have to be merged before the weights are saved",
            dir.display()
        );
        save::save(&self.config, &self.parameters(), dir, dtype, like)
    }

    /// `observe` sees the residual stream before the first and after each layer.
    fn run(&self, tokens: &Tokens, mut observe: impl FnMut(&Tensor<3>)) -> Tensor<3> {
        tokens.assert_valid(self.config.vocab_size);
        let scene = self.scene(tokens);
        let mut x = self.embed(&tokens.ids, [tokens.batch, tokens.time]);
        observe(&x);
        for (layer, window) in self.weights.layers.iter().zip(&self.config.windows) {
            x = self.layer(layer, *window, x, &scene);
            observe(&x);
        }
        norm(&self.config, x, &self.weights.norm)
    }

    /// The residual stream after `layer`, from the one before it.
    pub(crate) fn layer(
        &self,
        layer: &Layer,
        window: Option<usize>,
        x: Tensor<3>,
        scene: &Scene,
    ) -> Tensor<3> {
        let config = &self.config;
        let [batch, time, _] = x.dims();
        let [q, k, v] = layer.project(config, x.clone(), &scene.rotation);
        let shape = self.attention_shape(window);
        let attended = sysgen_ops::attention(q, k, v, &scene.segments, shape);
        let attended = attended.reshape([batch, time, config.heads * config.head_dim]);
        layer.finish(config, x, attended)
    }

    /// What all layers know of `tokens`.
    pub(crate) fn scene(&self, tokens: &Tokens) -> Scene {
        let (batch, time) = (tokens.batch, tokens.time);
        Scene {
            rotation: self.rotation(&tokens.positions, &tokens.text_lengths(), [batch, time]),
            segments: Arc::new(Segments {
                batch,
                time,
                ids: tokens.segments.clone(),
            }),
        }
    }

    /// Rows of the embedding table, `[batch, time, dim]`.
    pub(crate) fn embed(&self, ids: &[u32], size: [usize; 2]) -> Tensor<3> {
        self.embedded(self.weights.embedding.rows(ids), size)
    }

    /// Rows of the embedding table as the first layer takes them.
    pub(crate) fn embedded(&self, rows: Tensor<2>, [batch, time]: [usize; 2]) -> Tensor<3> {
        let x = rows.reshape([batch, time, self.config.hidden_size]);
        match self.config.embedding_scale {
            Some(scale) => x.mul_scalar(scale),
            None => x,
        }
    }

    /// cos and sin for tokens at `positions` of texts with `text_lengths` tokens.
    pub(crate) fn rotation(
        &self,
        positions: &[u32],
        text_lengths: &[usize],
        [batch, time]: [usize; 2],
    ) -> Rotation {
        let half = self.config.rope.rotary_dim / 2;
        let device = self.device();
        let tensor =
            |values| Tensor::from_data(TensorData::new(values, [batch, time, half]), &device);
        let [cos, sin] = self.angles(positions, text_lengths).map(tensor);
        Rotation { cos, sin }
    }

    /// The numbers of [`Decoder::rotation`].
    pub(crate) fn angles(&self, positions: &[u32], text_lengths: &[usize]) -> [Vec<f32>; 2] {
        let rope = &self.config.rope;
        let count = positions.len() * rope.rotary_dim / 2;
        let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (position, length) in positions.iter().zip(text_lengths) {
            rope.push(*position, rope.frequencies_for(*length), &mut cos, &mut sin);
        }
        [cos, sin]
    }

    pub(crate) fn attention_shape(&self, window: Option<usize>) -> AttentionShape {
        AttentionShape {
            scale: self.config.attention_scale,
            window,
            softcap: self.config.attention_softcap,
        }
    }
}

/// Normal numbers by Box and Muller.
fn normal(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut random = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = deviation * (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * random.random::<f64>()).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    values
}
