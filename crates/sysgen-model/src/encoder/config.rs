//! What the `config.json` of an encoder says.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::config::{Keys, SUPPORTED};

/// The supported values of `model_type`.
pub const SUPPORTED_ENCODERS: [&str; 3] = ["bert", "roberta", "xlm-roberta"];

/// Which published implementation the checkpoint follows (`model_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT: positions count from 0.
    Bert,
    /// RoBERTa: positions count from the padding id plus one.
    Roberta,
    /// XLM-RoBERTa: RoBERTa's network, another tokenizer.
    XlmRoberta,
}

/// An encoder, described. Sizes count elements.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    /// `model_type`.
    pub family: EncoderFamily,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    /// Rows of the table of token types, of which only the first is used.
    pub type_vocab_size: usize,
    /// Added to the variance inside every norm.
    pub layer_norm_eps: f64,
    /// The id of padding, which RoBERTa also counts positions from.
    pub pad_token_id: u32,
}

impl EncoderConfig {
    /// Reads `<dir>/config.json`.
    ///
    /// # Errors
    /// The file is absent or not JSON, the model is no encoder that is supported, a key is missing or has a value that is not
    /// implemented; the message names the file and the key.
    pub fn from_directory(dir: &Path) -> Result<EncoderConfig> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; `{}` must be an encoder's directory in Hugging Face format",
                path.display(),
                dir.display()
            )
        })?;
        let json: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not valid JSON", path.display()))?;
        from_json(&json).with_context(|| format!("{} cannot be used", path.display()))
    }

    /// Tokens of the longest text, its special tokens included.
    pub fn max_length(&self) -> usize {
        self.max_position_embeddings
            .saturating_sub(self.first_position())
    }

    /// The position of a text's first token.
    pub(super) fn first_position(&self) -> usize {
        match self.family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta | EncoderFamily::XlmRoberta => self.pad_token_id as usize + 1,
        }
    }
}

fn from_json(json: &Value) -> Result<EncoderConfig> {
    let keys = Keys(json);
    let supported = SUPPORTED_ENCODERS.join(", ");
    let family = match keys.text("model_type")? {
        Some("bert") => EncoderFamily::Bert,
        Some("roberta") => EncoderFamily::Roberta,
        Some("xlm-roberta") => EncoderFamily::XlmRoberta,
        Some(decoder) if SUPPORTED.contains(&decoder) => bail!(
            "`model_type` = \"{decoder}\" is a decoder, which sees a word's left side only; an encoder is wanted: {supported}"
        ),
        Some(other) => {
            bail!("`model_type` = \"{other}\" is not a supported encoder; supported: {supported}")
        }
        None => bail!("`model_type` is missing; supported: {supported}"),
    };
    for key in ["is_decoder", "add_cross_attention"] {
        ensure!(
            !keys.flag(key)?.unwrap_or(false),
            "`{key}` is true: this is not an encoder"
        );
    }
    match keys.text("hidden_act")? {
        None | Some("gelu") => {}
        Some(other) => bail!("`hidden_act` = \"{other}\" is not supported; supported: gelu"),
    }
    match keys.text("position_embedding_type")? {
        None | Some("absolute") => {}
        Some(other) => {
            bail!("`position_embedding_type` = \"{other}\" is not supported; supported: absolute")
        }
    }
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    ensure!(
        hidden_size % heads == 0,
        "`hidden_size` = {hidden_size} is not a multiple of `num_attention_heads` = {heads}"
    );
    let default_pad = if family == EncoderFamily::Bert { 0 } else { 1 };
    let vocab_size = keys.size("vocab_size")?;
    let pad = keys.optional_count("pad_token_id")?.unwrap_or(default_pad);
    ensure!(
        pad < vocab_size && vocab_size <= i32::MAX as usize,
        "`pad_token_id` = {pad} is not below `vocab_size` = {vocab_size}"
    );
    let config = EncoderConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        layers: keys.size("num_hidden_layers")?,
        heads,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        type_vocab_size: keys.optional_size("type_vocab_size")?.unwrap_or(2),
        layer_norm_eps: keys.number("layer_norm_eps")?.unwrap_or(1e-12),
        pad_token_id: pad as u32,
    };
    ensure!(
        config.max_length() > 2,
        "`max_position_embeddings` = {} leaves no room for a text",
        config.max_position_embeddings
    );
    Ok(config)
}
