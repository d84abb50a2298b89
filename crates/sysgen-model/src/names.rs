//! The one place that knows how Hugging Face names the tensors of a decoder, and their shapes and order.
//! Loading, optimizing, exporting and the reference gradients all speak of parameters by these names.

use crate::config::ModelConfig;

/// What a tensor does; decides how it is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Factor of a norm, `[dim]`.
    Norm,
    /// `[out]`
    Bias,
    /// `[out, in]`, the embedding table `[vocab, dim]`.
    Matrix,
}

/// A tensor the checkpoint of a model must hold.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<usize>,
}

/// Every parameter of the model, in the order in which `weights.rs` builds and lists them. A tied head is not listed.
pub(crate) fn entries(config: &ModelConfig) -> Vec<Entry> {
    let mut list = List(Vec::new());
    let dim = config.hidden_size;
    let (queries, keys) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let wide = config.intermediate_size;
    list.matrix("model.embed_tokens", config.vocab_size, dim, false);
    for layer in 0..config.layers {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        list.norm(&at("input_layernorm"), dim);
        if config.fused {
            list.matrix(
                &at("self_attn.qkv_proj"),
                queries + 2 * keys,
                dim,
                config.biases.qkv,
            );
        } else {
            list.matrix(&at("self_attn.q_proj"), queries, dim, config.biases.qkv);
            list.matrix(&at("self_attn.k_proj"), keys, dim, config.biases.qkv);
            list.matrix(&at("self_attn.v_proj"), keys, dim, config.biases.qkv);
        }
        if config.qk_norm {
            list.norm(&at("self_attn.q_norm"), config.head_dim);
            list.norm(&at("self_attn.k_norm"), config.head_dim);
        }
        list.matrix(&at("self_attn.o_proj"), dim, queries, config.biases.output);
        // The same name means the norm *after* attention where there are four, the one *before* the feed-forward
        // block where there are two.
        if config.post_norms {
            list.norm(&at("post_attention_layernorm"), dim);
            list.norm(&at("pre_feedforward_layernorm"), dim);
        } else {
            list.norm(&at("post_attention_layernorm"), dim);
        }
        if config.fused {
            list.matrix(
                &at("mlp.gate_up_proj"),
                2 * wide,
                dim,
                config.biases.feed_forward,
            );
        } else {
            list.matrix(&at("mlp.gate_proj"), wide, dim, config.biases.feed_forward);
            list.matrix(&at("mlp.up_proj"), wide, dim, config.biases.feed_forward);
        }
        list.matrix(&at("mlp.down_proj"), dim, wide, config.biases.feed_forward);
        if config.post_norms {
            list.norm(&at("post_feedforward_layernorm"), dim);
        }
    }
    list.norm("model.norm", dim);
    if !config.tied {
        list.matrix(
            HEAD.trim_end_matches(".weight"),
            config.vocab_size,
            dim,
            false,
        );
    }
    list.0
}

/// Name and shape of every parameter a model of this configuration has; a tied head is not listed.
pub fn parameter_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    entries(config)
        .into_iter()
        .map(|entry| (entry.name, entry.shape))
        .collect()
}

/// The embedding table.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head, where it is stored.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Tensors that older exporters wrote although they can be computed; they are ignored, and kept when the file is
/// written back.
pub(crate) fn harmless(name: &str) -> bool {
    [
        "rotary_emb.inv_freq",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

struct List(Vec<Entry>);

impl List {
    fn norm(&mut self, path: &str, dim: usize) {
        self.0.push(Entry {
            name: format!("{path}.weight"),
            kind: Kind::Norm,
            shape: vec![dim],
        });
    }

    fn matrix(&mut self, path: &str, out: usize, input: usize, bias: bool) {
        self.0.push(Entry {
            name: format!("{path}.weight"),
            kind: Kind::Matrix,
            shape: vec![out, input],
        });
        if bias {
            self.0.push(Entry {
                name: format!("{path}.bias"),
                kind: Kind::Bias,
                shape: vec![out],
            });
        }
    }
}
