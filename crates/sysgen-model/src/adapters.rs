//! LoRA adapters beside the projections of a decoder: which ones, what they start as, and what of a decoder is trained.
//! Names and initialisation are PEFT's, so that an adapter means the same here and there.

use burn::tensor::{Device, Distribution, Tensor};
use sysgen_ops::Adapter;

use crate::config::ModelConfig;
use crate::decoder::Decoder;
use crate::names::{Kind, entries};
use crate::weights::{Layer, Linear, Parameter, Weight, Weights};

/// Low-rank adapters on some projections of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Inner dimension of an update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Modules that get one, such as `q_proj`; empty for all projections of a layer.
    pub target_modules: Vec<String>,
}

/// A decoder without what is trained: nothing of a full fine-tuning's weights, all of the weights beside adapters.
pub struct Frozen {
    config: ModelConfig,
    rest: Option<(Weights, Lora)>,
}

impl Decoder {
    /// Adds untrained adapters: A as PyTorch initialises a linear layer (`kaiming_uniform_(a=√5)`, uniform in
    /// `±1/√in`), B zero, so that nothing changes before the first step. From then on only they are trained.
    ///
    /// # Panics
    /// No projection has a name in `target_modules`.
    #[must_use]
    pub fn with_lora(mut self, lora: Lora, seed: u64) -> Decoder {
        let device = self.device();
        device.seed(seed);
        let scale = (lora.alpha / lora.rank as f64) as f32;
        let mut count = 0;
        for (linear, _) in targets(&self.config, &mut self.weights.layers, &lora) {
            linear.adapter = Some(untrained(&linear.weight, lora.rank, scale, &device));
            count += 1;
        }
        assert!(
            count > 0,
            "no projection is named {}",
            lora.target_modules.join(", ")
        );
        self.lora = Some(lora);
        self
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
            let Some(Adapter { a, b, .. }) = linear.adapter.take() else {
                continue;
            };
            for (tensor, part) in [(a, "lora_A"), (b, "lora_B")] {
                parameters.push(Parameter {
                    name: format!("base_model.model.{name}.{part}.weight"),
                    tensor: Weight::Matrix(tensor),
                });
            }
        }
        let frozen = Frozen {
            config: self.config,
            rest: Some((self.weights, lora)),
        };
        (frozen, parameters)
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
        let scale = (lora.alpha / lora.rank as f64) as f32;
        let mut matrices = parameters
            .into_iter()
            .map(|parameter| match parameter.tensor {
                Weight::Matrix(tensor) => tensor,
                Weight::Vector(_) => panic!("{}: an adapter has two dimensions", parameter.name),
            });
        for (linear, name) in targets(&self.config, &mut weights.layers, &lora) {
            let mut next = || {
                matrices
                    .next()
                    .unwrap_or_else(|| panic!("{name}: no adapter"))
            };
            let (a, b) = (next(), next());
            linear.adapter = Some(Adapter { a, b, scale });
        }
        assert!(matrices.next().is_none(), "more adapters than projections");
        Decoder {
            config: self.config,
            weights,
            lora: Some(lora),
        }
    }
}

/// The projections that have an adapter and their paths, in the order of the parameters.
fn targets<'a>(
    config: &ModelConfig,
    layers: &'a mut [Layer],
    lora: &Lora,
) -> Vec<(&'a mut Linear, String)> {
    let paths = entries(config)
        .into_iter()
        .filter(|entry| entry.kind == Kind::Matrix && entry.name.starts_with("model.layers."))
        .map(|entry| entry.name.trim_end_matches(".weight").to_string());
    layers
        .iter_mut()
        .flat_map(Layer::projections)
        .zip(paths)
        .filter(|(_, path)| {
            let module = path.rsplit('.').next().unwrap_or(path);
            lora.target_modules.is_empty() || lora.target_modules.iter().any(|t| t == module)
        })
        .collect()
}

fn untrained(weight: &Tensor<2>, rank: usize, scale: f32, device: &Device) -> Adapter {
    let [output, input] = weight.dims();
    let bound = 1.0 / (input as f64).sqrt();
    let options = (device, weight.dtype());
    Adapter {
        a: Tensor::random([rank, input], Distribution::Uniform(-bound, bound), options),
        b: Tensor::zeros([output, rank], options),
        scale,
    }
}
