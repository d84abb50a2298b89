//! LoRA adapters beside the projections of a decoder: which ones, what they start as, and what of a decoder is trained.
//! Names and initialisation are PEFT's, so that an adapter means the same here and there. Files are `adapter_file.rs`.

use anyhow::{Result, bail, ensure};
use burn::tensor::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sysgen_ops::{Adapter, LinearWeight, merged, row_lengths};

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::names::{Kind, entries};
use crate::parameter::{Parameter, Weight};
use crate::weights::{Layer, Linear, Weights};

/// The word for every projection of a layer, as in PEFT: all linear layers but the head.
pub const ALL_LINEAR: &str = "all-linear";
/// What PEFT writes before the name of a module.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Low-rank adapters on some projections of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Inner dimension of an update (`r`).
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of an update's input that is dropped in training.
    pub dropout: f64,
    /// Modules that get one, such as `q_proj`; empty for all projections of a layer.
    pub target_modules: Vec<String>,
    /// Scale by `alpha / √rank` instead (rsLoRA, arXiv 2312.03732).
    pub rslora: bool,
    /// Train the lengths of the rows beside their directions (DoRA, arXiv 2402.09353).
    pub dora: bool,
}

impl Lora {
    /// What an update is multiplied with.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Whether the model has these modules.
    ///
    /// # Errors
    /// Names the module that is not there, and those that are.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        ensure!(self.rank > 0, "an adapter's rank (r) must be at least 1");
        let modules = projections(config);
        for target in &self.target_modules {
            if !modules.contains(target) {
                bail!(
                    "the target module `{target}` is not a projection of a model of type {}; it has {}, or use \"{ALL_LINEAR}\"",
                    config.json["model_type"],
                    modules.join(", ")
                );
            }
        }
        Ok(())
    }

    /// The modules that get an adapter, in the order in which a layer has them.
    pub fn modules(&self, config: &ModelConfig) -> Vec<String> {
        let mut modules = projections(config);
        modules.retain(|module| self.has(module));
        modules
    }

    fn has(&self, module: &str) -> bool {
        self.target_modules.is_empty() || self.target_modules.iter().any(|t| t == module)
    }
}

/// A decoder without what is trained: nothing of a full fine-tuning's weights, all of the weights beside adapters.
pub struct Frozen {
    config: ModelConfig,
    rest: Option<(Weights, Lora)>,
}

impl Decoder {
    /// Adds untrained adapters: A as PyTorch initialises a linear layer (`kaiming_uniform_(a=√5)`, uniform in
    /// `±1/√in`), B zero, so that nothing changes before the first step. From then on only they are trained. A module's
    /// numbers depend on the seed and its name only.
    ///
    /// # Errors
    /// As [`Lora::check`].
    pub fn with_lora(mut self, lora: Lora, seed: u64) -> Result<Decoder> {
        lora.check(&self.config)?;
        for (linear, name) in targets(&self.config, &mut self.weights.layers, &lora) {
            linear.adapter = Some(untrained(linear, &name, &lora, seed));
        }
        self.lora = Some(lora);
        Ok(self)
    }

    /// The adapters beside the weights, if there are any.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// What is trained, in the order in which [`Decoder::backward`] counts: all parameters, or the adapters, named as in
    /// PEFT's files.
    pub fn trainable(&self) -> Vec<Parameter> {
        self.clone().split().1
    }

    /// Takes what is trained out of the decoder. These tensors have no second owner, so an optimizer can update them in
    /// place.
    pub fn split(mut self) -> (Frozen, Vec<Parameter>) {
        let Some(lora) = self.lora else {
            let (config, parameters) = self.into_parameters();
            return (Frozen { config, rest: None }, parameters);
        };
        let mut parameters = Vec::new();
        for (linear, name) in targets(&self.config, &mut self.weights.layers, &lora) {
            let Some(adapter) = linear.adapter.take() else {
                continue;
            };
            let names = adapter_names(&name, &lora);
            let tensors = [Weight::Matrix(adapter.a), Weight::Matrix(adapter.b)];
            let tensors = tensors
                .into_iter()
                .chain(adapter.magnitude.map(Weight::Vector));
            let named = names.into_iter().zip(tensors);
            parameters.extend(named.map(|(name, tensor)| Parameter { name, tensor }));
        }
        let frozen = Frozen {
            config: self.config,
            rest: Some((self.weights, lora)),
        };
        (frozen, parameters)
    }

    /// The decoder with its adapters merged into the weights; of one without adapters, itself. A weight in four bits is
    /// merged as it is in four bits, which is rarely wanted: load the base anew and move the adapters there.
    #[must_use]
    pub fn merged(mut self) -> Decoder {
        let layers = self.weights.layers.iter_mut();
        for linear in layers.flat_map(Layer::projections) {
            if let Some(adapter) = linear.adapter.take() {
                linear.weight = LinearWeight::Dense(merged(&linear.weight, &adapter));
            }
        }
        self.lora = None;
        self
    }

    /// This decoder with the adapters of `other` in place of its own.
    ///
    /// # Panics
    /// `other` is another kind of model.
    #[must_use]
    pub fn with_adapters_of(mut self, other: &Decoder) -> Decoder {
        assert_eq!(
            entries(&self.config).len(),
            entries(&other.config).len(),
            "adapters of another model"
        );
        let mut other = other.clone();
        let own = self.weights.layers.iter_mut().flat_map(Layer::projections);
        let others = other.weights.layers.iter_mut();
        for (own, other) in own.zip(others.flat_map(Layer::projections)) {
            own.adapter = other.adapter.take();
        }
        self.lora = other.lora;
        self
    }
}

impl Frozen {
    /// The decoder of [`Decoder::split`], put together again.
    ///
    /// # Panics
    /// The parameters are not those that were taken out, in their order.
    pub fn join(self, parameters: Vec<Parameter>) -> Decoder {
        let Some((mut weights, lora)) = self.rest else {
            return Decoder::from_parameters(self.config, parameters);
        };
        let mut parameters = parameters.into_iter();
        for (linear, name) in targets(&self.config, &mut weights.layers, &lora) {
            let mut next = || {
                let next = parameters.next();
                next.unwrap_or_else(|| panic!("{name}: no adapter")).tensor
            };
            let (Weight::Matrix(a), Weight::Matrix(b)) = (next(), next()) else {
                panic!("{name}: the two factors of an adapter have two dimensions");
            };
            let magnitude = lora.dora.then(|| match next() {
                Weight::Vector(magnitude) => magnitude,
                Weight::Matrix(_) => panic!("{name}: a magnitude has one dimension"),
            });
            linear.adapter = Some(Adapter {
                a,
                b,
                scale: lora.scale(),
                magnitude,
                dropout: None,
            });
        }
        assert!(
            parameters.next().is_none(),
            "more adapters than projections"
        );
        Decoder {
            config: self.config,
            weights,
            lora: Some(lora),
        }
    }
}

/// The names of an adapter's tensors in PEFT's files, in the order of the parameters.
pub(crate) fn adapter_names(path: &str, lora: &Lora) -> Vec<String> {
    let mut names = vec![
        format!("{PREFIX}{path}.lora_A.weight"),
        format!("{PREFIX}{path}.lora_B.weight"),
    ];
    if lora.dora {
        names.push(format!("{PREFIX}{path}.lora_magnitude_vector"));
    }
    names
}

/// The projections that have an adapter and their paths, in the order of the parameters.
pub(crate) fn targets<'a>(
    config: &ModelConfig,
    layers: &'a mut [Layer],
    lora: &Lora,
) -> Vec<(&'a mut Linear, String)> {
    layers
        .iter_mut()
        .flat_map(Layer::projections)
        .zip(projection_paths(config))
        .filter(|(_, path)| lora.has(last_part(path)))
        .collect()
}

/// `model.layers.0.self_attn.q_proj`, … of all layers.
fn projection_paths(config: &ModelConfig) -> impl Iterator<Item = String> {
    entries(config)
        .into_iter()
        .filter(|entry| entry.kind == Kind::Matrix && entry.name.starts_with("model.layers."))
        .map(|entry| entry.name.trim_end_matches(".weight").to_string())
}

/// The projections of a layer by their last names.
pub(crate) fn projections(config: &ModelConfig) -> Vec<String> {
    projection_paths(config)
        .take_while(|path| path.starts_with("model.layers.0."))
        .map(|path| last_part(&path).to_string())
        .collect()
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn untrained(linear: &Linear, name: &str, lora: &Lora, seed: u64) -> Adapter {
    let [output, input] = linear.weight.shape();
    let (rank, device) = (lora.rank, linear.device());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut random = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    let bound = 1.0 / (input as f32).sqrt();
    let a = (0..rank * input)
        .map(|_| random.random_range(-bound..bound))
        .collect();
    let Weight::Matrix(a) = Weight::from_values(a, &[rank, input], &device) else {
        unreachable!("two sizes make a matrix");
    };
    let b = Tensor::zeros([output, rank], (&device, DType::F32));
    let mut adapter = Adapter {
        a,
        b,
        scale: lora.scale(),
        magnitude: None,
        dropout: None,
    };
    adapter.magnitude = lora.dora.then(|| row_lengths(&linear.weight, &adapter));
    adapter
}
