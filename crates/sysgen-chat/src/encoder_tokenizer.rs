//! The tokenizer of an encoder of the BERT family: a text between the two special tokens that such a model was trained
//! with, cut to its length. Conversations and templates have no part in it.

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::jinja::trim;
use crate::tokenizer::{Tokenizer, read_json};

/// Text -> ids with the special tokens around them.
pub struct EncoderTokenizer {
    tokenizer: Tokenizer,
    special_ids: [u32; 2],
    max_length: usize,
    space_first: bool,
}

/// A text as an encoder reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedText {
    /// Special tokens included.
    pub ids: Vec<u32>,
    /// Whether its end was cut off.
    pub is_cut: bool,
}

impl EncoderTokenizer {
    /// Reads the tokenizer of `dir`. Texts are cut to `max_length` tokens, or to `model_max_length` of
    /// `tokenizer_config.json` where that is less. With `space_first` a text begins with a space, as RoBERTa's texts do.
    ///
    /// # Errors
    /// Files that cannot be read; a tokenizer that does not put one special token before a text and one after it.
    pub fn load(dir: &Path, max_length: usize, space_first: bool) -> Result<EncoderTokenizer> {
        let tokenizer = Tokenizer::load(dir)?;
        let special_ids = tokenizer.encode_with_special_tokens("");
        let special_ids = special_ids.as_slice().try_into().map_err(|_| {
            anyhow!(
                "{}: the tokenizer puts {} special tokens around a text, an encoder's two ([CLS] and [SEP], or <s> and </s>)",
                dir.display(),
                special_ids.len()
            )
        })?;
        let settings = read_json(dir, "tokenizer_config.json")?;
        // A tokenizer without a length writes 1e30 here, which is no u64.
        let own_length = settings["model_max_length"].as_u64();
        let own_length = own_length.and_then(|length| usize::try_from(length).ok());
        Ok(EncoderTokenizer {
            tokenizer,
            special_ids,
            max_length: own_length
                .map_or(max_length, |own| own.min(max_length))
                .max(2),
            space_first,
        })
    }

    /// The ids of a text without the white space around it. Special tokens that it spells become those tokens.
    pub fn encode(&self, text: &str) -> EncodedText {
        let text = trim(text);
        let [first, last] = self.special_ids;
        let mut words = match text.is_empty() {
            true => Vec::new(),
            false if self.space_first => self.tokenizer.encode(&format!(" {text}")),
            false => self.tokenizer.encode(text),
        };
        let room = self.max_length - 2;
        let is_cut = words.len() > room;
        words.truncate(room);
        let mut ids = vec![first];
        ids.extend(words);
        ids.push(last);
        EncodedText { ids, is_cut }
    }

    /// What stands before and after every text.
    pub fn special_ids(&self) -> [u32; 2] {
        self.special_ids
    }

    /// Tokens of the longest text, the special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }
}
