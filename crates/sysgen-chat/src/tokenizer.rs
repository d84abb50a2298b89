//! The tokenizer of a model directory: text to ids and back, and which ids begin, end and pad a text.
//! Conversations are left to `render`.
//!
//! Text that spells a special token (`<|im_end|>` inside a user's message) becomes that token, as `transformers`
//! does it: a data set can therefore write control tokens. Whoever serves untrusted text has to filter it before.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::known_words::KnownWords;
use crate::template::SpecialTokens;

/// Text <-> ids.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special_tokens: SpecialTokens,
    /// Tokens outside the model's own vocabulary, longest text first.
    added: Vec<(String, u32)>,
    begins_with_bos: bool,
    has_dummy_prefix: bool,
    stop_ids: Vec<u32>,
    vocab_size: usize,
    /// Where texts may be cut without a change of their ids.
    known_words: Option<KnownWords>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` and `config.json` of `dir`.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            bail!(
                "{} is missing: SysGen reads the fast tokenizer's file; save the tokenizer once with \
                 transformers (`AutoTokenizer.from_pretrained(...).save_pretrained(...)`) to get it",
                path.display()
            );
        }
        let mut inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|error| anyhow!("{}: {error}", path.display()))?;
        // Settings of whoever saved the file; transformers ignores them unless asked, and they would cut rows silently.
        inner
            .with_truncation(None)
            .map_err(|error| anyhow!("{}: {error}", path.display()))?;
        inner.with_padding(None);
        if let Err(error) = inner.encode_fast("a \u{10fffd}\u{1}", false) {
            bail!("{}: not every text can be encoded: {error}", path.display());
        }

        let settings = read_json(dir, "tokenizer_config.json")?;
        let mut special_tokens = SpecialTokens::new();
        for source in [&read_json(dir, "special_tokens_map.json")?, &settings] {
            special_tokens.extend(named_tokens(source));
        }
        let mut added: Vec<(String, u32)> = inner
            .get_added_tokens_decoder()
            .iter()
            .map(|(id, token)| (token.content.clone(), *id))
            .collect();
        added.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let vocab_size = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);

        let mut tokenizer = Tokenizer {
            inner,
            special_tokens,
            added,
            begins_with_bos: false,
            has_dummy_prefix: false,
            stop_ids: Vec::new(),
            vocab_size,
            known_words: None,
        };
        for name in ["bos_token", "eos_token"] {
            if let Some(text) = tokenizer.special_tokens.get(name)
                && tokenizer.inner.token_to_id(text).is_none()
            {
                bail!(
                    "{}: {name} is `{text}`, which {} does not have",
                    dir.display(),
                    path.display()
                );
            }
        }
        tokenizer.begins_with_bos = tokenizer.wants_bos(&settings);
        tokenizer.has_dummy_prefix = ["a", "Hello"]
            .iter()
            .any(|text| tokenizer.after("\n", text) != Some(tokenizer.encode(text)));
        tokenizer.known_words = KnownWords::of(&tokenizer.inner);
        tokenizer.stop_ids.extend(tokenizer.special_id("eos_token"));
        for file in ["generation_config.json", "config.json"] {
            for id in id_list(&read_json(dir, file)?["eos_token_id"]) {
                tokenizer.add_stop_id(id);
            }
        }
        Ok(tokenizer)
    }

    /// Whether the tokenizer itself puts BOS first: `add_bos_token` where the configuration says, otherwise what
    /// the post-processor of `tokenizer.json` does.
    fn wants_bos(&self, settings: &Value) -> bool {
        let Some(bos) = self.bos_id() else {
            return false;
        };
        settings["add_bos_token"].as_bool().unwrap_or_else(|| {
            self.inner
                .encode_fast("a", true)
                .is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos))
        })
    }

    /// The ids of a text that begins here. Never adds special tokens; special tokens written in the text are parsed.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match &self.known_words {
            Some(known) => known.encode(text, |part| self.encode_whole(part)),
            None => self.encode_whole(text),
        }
    }

    pub(crate) fn encode_whole(&self, text: &str) -> Vec<u32> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .expect("load() checked that unknown text can be encoded");
        encoding.get_ids().to_vec()
    }

    /// The ids of a text with the special tokens that the post-processor of `tokenizer.json` puts around it.
    pub(crate) fn encode_with_special_tokens(&self, text: &str) -> Vec<u32> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .expect("load() checked that unknown text can be encoded");
        encoding.get_ids().to_vec()
    }

    /// Puts BOS first where the tokenizer wants it and the template has not written it: the only place that adds BOS.
    /// Two of them (a template that writes it twice) are an error.
    pub fn with_bos(&self, mut ids: Vec<u32>) -> Result<Vec<u32>> {
        let Some(bos) = self.bos_id() else {
            return Ok(ids);
        };
        if self.begins_with_bos && ids.first() != Some(&bos) {
            ids.insert(0, bos);
        }
        let second = ids
            .iter()
            .skip(1)
            .position(|id| *id == bos)
            .map(|place| place + 1);
        if let Some(second) = second
            && ids[0] == bos
            && self.decode(&ids[1..second]).trim().is_empty()
        {
            bail!(
                "the text begins with two {} tokens: the chat template has to write it once, and first",
                self.token(bos)
            );
        }
        Ok(ids)
    }

    /// The ids of a text that follows other text: no BOS and no space put before the first word.
    pub fn encode_continuation(&self, text: &str) -> Vec<u32> {
        if !self.has_dummy_prefix {
            return self.encode(text);
        }
        // SentencePiece puts its word mark before the first word of a text; an anchor takes it, provided that no
        // piece spans anchor and text.
        ["\n", ".", "1", "a"]
            .iter()
            .find_map(|anchor| self.after(anchor, text))
            .unwrap_or_else(|| self.encode(text))
    }

    /// The ids of `text` where `context` is what was written before it. Right after an added token the tokenizer
    /// starts afresh, so those ids are the ones the whole text would give; after other text they are
    /// [`Tokenizer::encode_continuation`]'s, as a model that has read `context` would write them.
    pub fn encode_after(&self, context: &str, text: &str) -> Vec<u32> {
        if text.is_empty() {
            return Vec::new();
        }
        if let Some((token, _)) = self
            .added
            .iter()
            .find(|(token, _)| context.ends_with(token.as_str()))
            && let Some(ids) = self.after(token, text)
        {
            return ids;
        }
        self.encode_continuation(text)
    }

    /// The ids of `anchor` + `text` without those of `anchor`; none if a token spans both.
    fn after(&self, anchor: &str, text: &str) -> Option<Vec<u32>> {
        let anchor_ids = self.encode(anchor);
        let ids = self.encode(&format!("{anchor}{text}"));
        ids.strip_prefix(anchor_ids.as_slice()).map(<[u32]>::to_vec)
    }

    /// The text of `ids`; special tokens are skipped.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_else(|_| {
            ids.iter()
                .map(|&id| self.token(id))
                .collect::<Vec<_>>()
                .concat()
        })
    }

    /// One token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> String {
        self.inner
            .id_to_token(id)
            .unwrap_or_else(|| format!("<id {id}>"))
    }

    /// The id of a token's spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    #[cfg(test)]
    pub(crate) fn cuts_before_spaces(&self) -> bool {
        self.known_words.is_some()
    }

    #[cfg(test)]
    pub(crate) fn known_words(&self) -> usize {
        self.known_words.as_ref().map_or(0, KnownWords::len)
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The special tokens templates can print.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    fn special_id(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(self.special_tokens.get(name)?)
    }

    /// The beginning-of-sequence id, whether or not texts begin with it.
    pub fn bos_id(&self) -> Option<u32> {
        self.special_id("bos_token")
    }

    /// Whether the tokenizer itself puts BOS before a text.
    pub fn begins_with_bos(&self) -> bool {
        self.begins_with_bos
    }

    /// The padding id: `pad_token`, else the first stop id, else 0. Padding is masked by position, never by id, so a
    /// pad that equals a stop token costs nothing.
    pub fn pad_id(&self) -> u32 {
        self.special_id("pad_token")
            .or_else(|| self.stop_ids.first().copied())
            .unwrap_or(0)
    }

    /// The ids that end an answer; the tokenizer's eos first.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    pub(crate) fn add_stop_id(&mut self, id: u32) {
        if !self.stop_ids.contains(&id) {
            self.stop_ids.push(id);
        }
    }

    /// The added token that `text` begins with, or a stop token's spelling.
    pub(crate) fn leading_token(&self, text: &str) -> Option<u32> {
        let added = self
            .added
            .iter()
            .find(|(token, _)| text.starts_with(token.as_str()));
        added.map(|(_, id)| *id).or_else(|| {
            self.stop_ids
                .iter()
                .copied()
                .find(|&id| text.starts_with(self.token(id).as_str()))
        })
    }
}

pub(crate) fn read_json(dir: &Path, name: &str) -> Result<Value> {
    let path = dir.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not valid JSON", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// `*_token` entries: a string, or an AddedToken object with `content`.
fn named_tokens(settings: &Value) -> Vec<(String, String)> {
    let Some(entries) = settings.as_object() else {
        return Vec::new();
    };
    entries
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name.clone(), text.to_owned()))
        })
        .collect()
}

/// An id, a list of ids, or nothing.
fn id_list(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
