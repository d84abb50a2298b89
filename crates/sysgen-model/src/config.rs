//! What a Hugging Face `config.json` says about the network: every difference between the families is a field here,
//! so that the forward pass asks for facts ("is there a soft-cap?") and never for a model's name.
//! Reads the classic keys and those of transformers 5. Rotary settings are read in `rope.rs`.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::rope::Rope;

/// The supported values of `model_type`.
pub const SUPPORTED: [&str; 6] = ["llama", "qwen2", "phi3", "gemma2", "mistral", "qwen3"];

/// Which published implementation the checkpoint follows (`model_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, Solar.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k, v.
    Qwen2,
    /// Phi-3 and Phi-4: fused projections.
    Phi3,
    /// Gemma-2: soft-caps, four norms per layer, alternating window.
    Gemma2,
    /// Mistral: optional sliding window.
    Mistral,
    /// Qwen3: norms on the heads of q and k.
    Qwen3,
}

/// The non-linearity of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up`
    SwiGlu,
    /// `gelu_tanh(gate) * up`
    GeGluTanh,
}

/// The number format weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// 32-bit float.
    F32,
    /// 16-bit float of IEEE 754.
    F16,
    /// bfloat16.
    Bf16,
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoredDtype::F32 => "float32",
            StoredDtype::F16 => "float16",
            StoredDtype::Bf16 => "bfloat16",
        })
    }
}

/// Which linear layers carry a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// The attention's output projection.
    pub output: bool,
    /// gate, up and down.
    pub feed_forward: bool,
}

/// A decoder, described. Sizes count elements.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// `model_type`.
    pub family: Family,
    /// Rows of the embedding table; a tokenizer must not produce ids at or above it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square inside every norm.
    pub rms_norm_eps: f64,
    /// Norms multiply by `1 + weight` instead of `weight` (Gemma).
    pub norm_plus_one: bool,
    /// Extra norms after the attention and after the feed-forward block (Gemma-2).
    pub post_norms: bool,
    /// Norms on each head of q and k, before the rotation (Qwen3).
    pub qk_norm: bool,
    /// q, k, v are one matrix, and gate, up are one matrix, in the file and in memory (Phi).
    pub fused: bool,
    /// Which linear layers carry a bias.
    pub biases: Biases,
    /// Non-linearity of the feed-forward block.
    pub activation: Activation,
    /// The head is the embedding table.
    pub tied: bool,
    /// Factor on the embeddings, already rounded to f32, the type the model computes in
    /// (HF `Gemma2TextScaledWordEmbedding` casts it to the dtype of the weights in use).
    pub embedding_scale: Option<f32>,
    /// Factor on q·k.
    pub attention_scale: f32,
    /// `cap * tanh(score / cap)` on the scores.
    pub attention_softcap: Option<f32>,
    /// The same on the logits.
    pub final_softcap: Option<f32>,
    /// For each layer: how many positions back a token sees, itself included; `None` = all.
    pub windows: Vec<Option<usize>>,
    /// Rotary embedding.
    pub rope: Rope,
    /// Standard deviation of randomly initialised matrices.
    pub initializer_range: f64,
    /// Id that starts a text, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Id of padding, where the config names one.
    pub pad_token_id: Option<u32>,
    /// `torch_dtype` or `dtype`; f32 when absent.
    pub stored_dtype: StoredDtype,
    /// The file as it was read; exports start from it.
    pub json: Value,
}

impl ModelConfig {
    /// Reads `<dir>/config.json`.
    ///
    /// # Errors
    /// The file is absent or not JSON, a key is missing or has a value this crate does not implement, or `model_type`
    /// is not supported; the message names the file and the key.
    pub fn from_directory(dir: &Path) -> Result<ModelConfig> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; `{}` must be a model directory in Hugging Face format",
                path.display(),
                dir.display()
            )
        })?;
        Self::from_text(&path, &text)
    }

    /// Reads a `config.json` under whatever name.
    ///
    /// # Errors
    /// As [`ModelConfig::from_directory`].
    pub fn from_file(path: &Path) -> Result<ModelConfig> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_text(path, &text)
    }

    fn from_text(path: &Path, text: &str) -> Result<ModelConfig> {
        let json: Value = serde_json::from_str(text)
            .with_context(|| format!("{} is not valid JSON", path.display()))?;
        Self::from_json(&json).with_context(|| format!("{} cannot be used", path.display()))
    }

    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::from_directory`], naming the key.
    pub fn from_json(json: &Value) -> Result<ModelConfig> {
        let keys = Keys(json);
        let family = family(keys)?;
        ensure!(
            json.get("quantization_config").is_none_or(Value::is_null),
            "`quantization_config`: quantised checkpoints are not supported; use the f32, f16 or bf16 one"
        );
        let gemma = family == Family::Gemma2;
        let hidden_size = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let layers = keys.size("num_hidden_layers")?;
        // Llama and Phi fall back to plain multi-head attention; the other families' defaults are sizes of one
        // particular model and would hide a damaged file.
        let kv_heads = match keys.optional_size("num_key_value_heads")? {
            Some(heads) => heads,
            None if matches!(family, Family::Llama | Family::Phi3) => heads,
            None => bail!("`num_key_value_heads` is missing"),
        };
        ensure!(
            heads % kv_heads == 0,
            "`num_attention_heads` = {heads} is not a multiple of `num_key_value_heads` = {kv_heads}"
        );
        let head_dim = match (keys.optional_size("head_dim")?, family) {
            (Some(dim), _) => dim,
            (None, Family::Gemma2) => 256,
            (None, Family::Qwen3) => 128,
            (None, _) => {
                ensure!(
                    hidden_size % heads == 0,
                    "`hidden_size` = {hidden_size} is not a multiple of `num_attention_heads` = {heads}, and `head_dim` is not given"
                );
                hidden_size / heads
            }
        };
        let max_position_embeddings = keys
            .optional_size("max_position_embeddings")?
            .unwrap_or(2048);
        let default_eps = if family == Family::Phi3 { 1e-5 } else { 1e-6 };
        let scalar = if gemma {
            keys.number("query_pre_attn_scalar")?.unwrap_or(256.0)
        } else {
            head_dim as f64
        };
        let softcap = |key: &str, default: f64| -> Result<Option<f32>> {
            Ok(match (gemma, json.get(key)) {
                (false, _) | (true, Some(Value::Null)) => None,
                (true, None) => Some(default as f32),
                (true, Some(_)) => keys.number(key)?.map(|cap| cap as f32),
            })
        };
        Ok(ModelConfig {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(default_eps),
            norm_plus_one: gemma,
            post_norms: gemma,
            qk_norm: family == Family::Qwen3,
            fused: family == Family::Phi3,
            biases: biases(keys, family)?,
            activation: activation(keys, family)?,
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(gemma),
            embedding_scale: gemma.then(|| (hidden_size as f64).sqrt() as f32),
            attention_scale: scalar.powf(-0.5) as f32,
            attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
            final_softcap: softcap("final_logit_softcapping", 30.0)?,
            windows: windows(keys, family, layers)?,
            rope: Rope::from_json(json, head_dim, max_position_embeddings)?,
            initializer_range: keys.number("initializer_range")?.unwrap_or(0.02),
            bos_token_id: keys.ids("bos_token_id")?.first().copied(),
            eos_token_ids: keys.ids("eos_token_id")?,
            pad_token_id: keys.ids("pad_token_id")?.first().copied(),
            stored_dtype: stored_dtype(keys)?,
            json: json.clone(),
        })
    }
}

fn family(keys: Keys) -> Result<Family> {
    let Some(model_type) = keys.0.get("model_type").and_then(Value::as_str) else {
        bail!(
            "`model_type` is missing; supported: {}",
            SUPPORTED.join(", ")
        );
    };
    Ok(match model_type {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "phi3" => Family::Phi3,
        "gemma2" => Family::Gemma2,
        "mistral" => Family::Mistral,
        "qwen3" => Family::Qwen3,
        other => bail!(
            "`model_type` = \"{other}\" is not supported; supported: {}",
            SUPPORTED.join(", ")
        ),
    })
}

/// HF: `LlamaAttention`/`LlamaMLP` read `attention_bias` and `mlp_bias`; `Qwen2Attention` always biases q, k, v only;
/// `Phi3Attention` and `MistralAttention` never do.
fn biases(keys: Keys, family: Family) -> Result<Biases> {
    let attention = keys.flag("attention_bias")?.unwrap_or(false);
    Ok(match family {
        Family::Llama => Biases {
            qkv: attention,
            output: attention,
            feed_forward: keys.flag("mlp_bias")?.unwrap_or(false),
        },
        Family::Qwen2 => Biases {
            qkv: true,
            ..Biases::default()
        },
        Family::Qwen3 | Family::Gemma2 => Biases {
            qkv: attention,
            output: attention,
            feed_forward: false,
        },
        Family::Phi3 | Family::Mistral => Biases::default(),
    })
}

fn activation(keys: Keys, family: Family) -> Result<Activation> {
    // Gemma's first configs said `hidden_act: gelu` while the weights were trained with the tanh form, which
    // `hidden_activation` names; HF reads only the latter.
    let key = if family == Family::Gemma2 {
        "hidden_activation"
    } else {
        "hidden_act"
    };
    match keys.text(key)? {
        None if family == Family::Gemma2 => Ok(Activation::GeGluTanh),
        None | Some("silu" | "swish") => Ok(Activation::SwiGlu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeGluTanh),
        Some(other) => {
            bail!("`{key}` = \"{other}\" is not supported; supported: silu, gelu_pytorch_tanh")
        }
    }
}

/// The sliding window of every layer. `layer_types` decides where it is given; otherwise each family's own rule
/// (HF `configuration_*.py`): Gemma-2 alternates starting with a window, Qwen windows the layers from
/// `max_window_layers` on when `use_sliding_window` is set, Mistral and Phi window all layers, Llama none.
fn windows(keys: Keys, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let default = (family == Family::Gemma2).then_some(4096);
    let mut window = keys.optional_size("sliding_window")?.or(default);
    let from = match family {
        Family::Llama => layers,
        Family::Qwen2 | Family::Qwen3 => {
            if !keys.flag("use_sliding_window")?.unwrap_or(false) {
                window = None;
            }
            keys.optional_count("max_window_layers")?.unwrap_or(28)
        }
        _ => 0,
    };
    let Some(window) = window.filter(|_| family != Family::Llama) else {
        return Ok(vec![None; layers]);
    };
    if let Some(types) = keys.0.get("layer_types").filter(|value| !value.is_null()) {
        let types = types.as_array().context("`layer_types` must be a list")?;
        ensure!(
            types.len() == layers,
            "`layer_types` names {} layers, `num_hidden_layers` = {layers}",
            types.len()
        );
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => bail!("`layer_types` holds {kind}; supported: \"full_attention\", \"sliding_attention\""),
            })
            .collect();
    }
    let sliding =
        |layer: usize| layer >= from && (family != Family::Gemma2 || layer.is_multiple_of(2));
    Ok((0..layers)
        .map(|layer| sliding(layer).then_some(window))
        .collect())
}

fn stored_dtype(keys: Keys) -> Result<StoredDtype> {
    let key = if keys.0.get("dtype").is_some_and(|value| !value.is_null()) {
        "dtype"
    } else {
        "torch_dtype"
    };
    Ok(match keys.text(key)? {
        None | Some("float32") => StoredDtype::F32,
        Some("float16") => StoredDtype::F16,
        Some("bfloat16") => StoredDtype::Bf16,
        Some(other) => {
            bail!("`{key}` = \"{other}\" is not supported; supported: float32, float16, bfloat16")
        }
    })
}

/// Typed access to the keys of a JSON object; `null` counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a>(pub(crate) &'a Value);

impl<'a> Keys<'a> {
    fn present(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn size(self, key: &str) -> Result<usize> {
        self.optional_size(key)?
            .with_context(|| format!("`{key}` is missing"))
    }

    pub(crate) fn optional_size(self, key: &str) -> Result<Option<usize>> {
        let count = self.optional_count(key)?;
        ensure!(count != Some(0), "`{key}` must be at least 1");
        Ok(count)
    }

    pub(crate) fn optional_count(self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        let count = value
            .as_u64()
            .with_context(|| format!("`{key}` must be a whole number, not {value}"))?;
        Ok(Some(usize::try_from(count).with_context(|| {
            format!("`{key}` = {count} is too large")
        })?))
    }

    pub(crate) fn number(self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .map(Some)
            .with_context(|| format!("`{key}` must be a number, not {value}"))
    }

    pub(crate) fn flag(self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .with_context(|| format!("`{key}` must be true or false, not {value}"))
    }

    pub(crate) fn text(self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .with_context(|| format!("`{key}` must be a text, not {value}"))
    }

    /// One id or a list of ids; absent = none.
    fn ids(self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.present(key) else {
            return Ok(Vec::new());
        };
        let list = value
            .as_array()
            .map_or_else(|| vec![value], |list| list.iter().collect());
        list.into_iter()
            .map(|id| {
                id.as_u64()
                    .and_then(|id| u32::try_from(id).ok())
                    .with_context(|| {
                        format!("`{key}` must be a token id or a list of them, not {value}")
                    })
            })
            .collect()
    }
}
