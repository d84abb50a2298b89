//! A decoder once more, on another device: how data-parallel workers and their teachers get their weights.

use burn::tensor::{Device, Tensor};

use crate::decoder::Decoder;
use crate::parameter::Weight;
use crate::weights::{Layer, Linear, Weights};

impl Decoder {
    /// The same model on `device`. On the device it is on already, nothing is copied.
    #[must_use]
    pub fn to_device(&self, device: &Device) -> Decoder {
        let mut copy = self.clone();
        if self.device() != *device {
            copy.weights.move_to(device);
        }
        copy
    }
}

impl Weight {
    /// The same values on `device`.
    #[must_use]
    pub fn to_device(self, device: &Device) -> Weight {
        match self {
            Weight::Vector(tensor) => Weight::Vector(tensor.to_device(device)),
            Weight::Matrix(tensor) => Weight::Matrix(tensor.to_device(device)),
        }
    }
}

impl Weights {
    fn move_to(&mut self, device: &Device) {
        self.embedding = self.embedding.to_device(device);
        place(&mut self.norm, device);
        self.head = self.head.as_ref().map(|head| head.to_device(device));
        let layers = self.layers.iter_mut();
        layers.for_each(|layer| layer.move_to(device));
    }
}

impl Layer {
    fn move_to(&mut self, device: &Device) {
        let norms = [&mut self.input_norm, &mut self.feed_forward_norm]
            .into_iter()
            .chain(self.head_norms.iter_mut().flatten())
            .chain(&mut self.post_attention_norm)
            .chain(&mut self.post_feed_forward_norm);
        norms.for_each(|norm| place(norm, device));
        for linear in self.projections() {
            linear.move_to(device);
        }
    }
}

impl Linear {
    fn move_to(&mut self, device: &Device) {
        self.weight = self.weight.to_device(device);
        self.bias.iter_mut().for_each(|bias| place(bias, device));
        if let Some(adapter) = &mut self.adapter {
            place(&mut adapter.a, device);
            place(&mut adapter.b, device);
            let magnitude = adapter.magnitude.iter_mut();
            magnitude.for_each(|magnitude| place(magnitude, device));
        }
    }
}

/// Moves a tensor.
pub(crate) fn place<const D: usize>(tensor: &mut Tensor<D>, device: &Device) {
    *tensor = tensor.clone().to_device(device);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Lora, ModelConfig, Tokens};

    #[test]
    fn a_copy_computes_what_the_model_computes() {
        let config = ModelConfig::from_json(&json!({
            "model_type": "gemma2", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8, "sliding_window": 16,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "initializer_range": 0.1
        }))
        .unwrap();
        let lora = Lora {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            target_modules: Vec::new(),
            rslora: false,
            dora: true,
        };
        let device = Device::flex();
        let decoder = Decoder::random(config, 3, &device)
            .with_lora(lora, 4)
            .unwrap();
        let mut copy = decoder.to_device(&device);
        // The CPU is one device: what another one would be sent goes through all of it once.
        copy.weights.move_to(&device);
        let tokens = Tokens::padded(&[&[1, 2, 3, 4]], 0);
        let hidden = |decoder: &Decoder| decoder.hidden(&tokens).try_into_vec_as::<f32>().unwrap();
        assert_eq!(hidden(&decoder), hidden(&copy));
        let names = |decoder: &Decoder| {
            decoder
                .trainable()
                .into_iter()
                .map(|p| p.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&decoder), names(&copy));
    }
}
