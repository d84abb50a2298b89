//! One decoder layer: projections, rotation, attention, feed-forward. The same body serves whole rows (training) and
//! the KV cache (decoding); only the attention between its two halves differs, and that is the caller's.

use std::sync::Arc;

use burn::tensor::Tensor;
use sysgen_ops::Segments;

use crate::config::{Activation, ModelConfig};
use crate::weights::Layer;

/// cos and sin of every token, `[batch, time, rotary_dim / 2]` each.
#[derive(Clone)]
pub(crate) struct Rotation {
    pub(crate) cos: Tensor<3>,
    pub(crate) sin: Tensor<3>,
}

impl Rotation {
    /// The same on the autodiff device.
    fn autodiff(&self) -> Rotation {
        Rotation {
            cos: self.cos.clone().autodiff(),
            sin: self.sin.clone().autodiff(),
        }
    }
}

/// What all layers know of a batch: where its tokens stand, and what belongs together.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) rotation: Rotation,
    pub(crate) segments: Arc<Segments>,
}

impl Scene {
    /// The same on the autodiff device.
    pub(crate) fn autodiff(&self) -> Scene {
        Scene {
            rotation: self.rotation.autodiff(),
            segments: self.segments.clone(),
        }
    }
}

/// Root-mean-square norm as the model wants it.
pub(crate) fn norm<const D: usize>(
    config: &ModelConfig,
    x: Tensor<D>,
    weight: &Tensor<1>,
) -> Tensor<D> {
    sysgen_ops::rms_norm(x, weight.clone(), config.rms_norm_eps, config.norm_plus_one)
}

impl Layer {
    /// Rotated q and k, and v, of the residual stream `x` `[batch, time, dim]`:
    /// `[batch, time, heads, head_dim]`, and twice `[batch, time, kv_heads, head_dim]`.
    pub(crate) fn project(
        &self,
        config: &ModelConfig,
        x: Tensor<3>,
        rotation: &Rotation,
    ) -> [Tensor<4>; 3] {
        let [batch, time, _] = x.dims();
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim];
        let [q, k, v] = self.qkv.forward(norm(config, x, &self.input_norm), widths);
        let mut q = q.reshape([batch, time, heads, head_dim]);
        let mut k = k.reshape([batch, time, kv_heads, head_dim]);
        if let Some([q_norm, k_norm]) = &self.head_norms {
            q = norm(config, q, q_norm);
            k = norm(config, k, k_norm);
        }
        let turn = |x| sysgen_ops::rope(x, rotation.cos.clone(), rotation.sin.clone());
        [
            turn(q),
            turn(k),
            v.reshape([batch, time, kv_heads, head_dim]),
        ]
    }

    /// The residual stream after this layer, from the one before it and the attention's result, both
    /// `[batch, time, ..]`.
    pub(crate) fn finish(
        &self,
        config: &ModelConfig,
        x: Tensor<3>,
        attended: Tensor<3>,
    ) -> Tensor<3> {
        let optional = |x, weight: &Option<Tensor<1>>| match weight {
            Some(weight) => norm(config, x, weight),
            None => x,
        };
        let x = x + optional(self.output.forward(attended), &self.post_attention_norm);

        let h = norm(config, x.clone(), &self.feed_forward_norm);
        let [gate, up] = self.gate_up.forward(h, [config.intermediate_size; 2]);
        let h = match config.activation {
            Activation::SwiGlu => sysgen_ops::swiglu(gate, up),
            Activation::GeGluTanh => sysgen_ops::geglu_tanh(gate, up),
        };
        x + optional(self.down.forward(h), &self.post_feed_forward_norm)
    }
}
