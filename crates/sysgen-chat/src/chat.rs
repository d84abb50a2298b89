//! A model directory's tokenizer and chat template as one thing, under the run's policies: loaded, saved, identified.
//! What a conversation becomes is in `render`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sysgen_core::config::{DefaultSystem, SystemRole};

use crate::markup::Markup;
use crate::policy::{self, ChatOptions};
use crate::template::Template;
use crate::tokenizer::{Tokenizer, read_json};

const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// More rows than any model pads its embedding by: they round up to a multiple of at most 1,024.
const MOST_PADDING_ROWS: usize = 1024;

/// Files of a tokenizer besides the two above, in all the forms tokenizers are published.
const COMPANIONS: [&str; 7] = [
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// Tokenizer, effective chat template and stop ids. Shareable between threads.
pub struct Chat {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Template,
    /// The spellings of the stop ids.
    pub(crate) stop_texts: Vec<String>,
    hidden_default: Option<String>,
    options: ChatOptions,
    files: Vec<(&'static str, Vec<u8>)>,
    config: Option<Vec<u8>>,
    original: String,
}

impl Chat {
    /// Reads the tokenizer files and the chat template of `dir` (`chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`: a text, or the one named `default` of a list) and applies the policies.
    pub fn load(dir: &Path, options: ChatOptions) -> Result<Chat> {
        let mut tokenizer = Tokenizer::load(dir)?;
        let original = template_source(dir)?;
        let template = policy::effective(&original, &tokenizer, options)
            .with_context(|| format!("the chat template of {}", dir.display()))?;
        let markup = Markup::of(&template, tokenizer.special_tokens())
            .with_context(|| format!("the chat template of {}", dir.display()))?;
        // Gemma-2 ends its turns with a token that its eos_token does not name.
        if let Some(id) = policy::turn_end(&markup, &tokenizer) {
            tokenizer.add_stop_id(id);
        }
        let mut files = Vec::new();
        for name in COMPANIONS {
            if let Some(bytes) = read_optional(dir, name)? {
                files.push((name, bytes));
            }
        }
        Ok(Chat {
            stop_texts: tokenizer
                .stop_ids()
                .iter()
                .map(|&id| tokenizer.token(id))
                .collect(),
            hidden_default: markup.hidden.filter(|text| !text.trim().is_empty()),
            config: read_optional(dir, CONFIG)?,
            tokenizer,
            template,
            options,
            files,
            original,
        })
    }

    /// The ids of a text that begins here; never adds BOS.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text)
    }

    /// The ids of a text that follows other text: no BOS, no space put before the first word.
    pub fn encode_continuation(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode_continuation(text)
    }

    /// The text of `ids`; special tokens are skipped.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids)
    }

    /// One token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> String {
        self.tokenizer.token(id)
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// How many of a model's `embedding_rows` no text uses. Models round their tables up: Qwen2.5 by 399 rows.
    ///
    /// # Errors
    /// The tokenizer has ids beyond the model's, or so many fewer that it is another model's: then its head could
    /// write ids that are no token.
    pub fn padding_rows(&self, embedding_rows: usize) -> Result<usize> {
        let ids = self.vocab_size();
        match embedding_rows.checked_sub(ids) {
            Some(padding) if padding <= MOST_PADDING_ROWS => Ok(padding),
            Some(_) => bail!(
                "the tokenizer has only {ids} ids, the model's head {embedding_rows}: these files do not belong together"
            ),
            None => bail!(
                "the tokenizer has ids up to {}, the model's embedding only {embedding_rows} rows: these files do not belong together",
                ids - 1
            ),
        }
    }

    /// The ids that end an answer: eos, those of `generation_config.json` and `config.json`, and the token the
    /// template ends an answer with.
    pub fn stop_ids(&self) -> &[u32] {
        self.tokenizer.stop_ids()
    }

    /// The padding id; see [`Tokenizer::pad_id`].
    pub fn pad_id(&self) -> u32 {
        self.tokenizer.pad_id()
    }

    /// The beginning-of-sequence id, if the tokenizer has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.tokenizer.bos_id()
    }

    /// Whether every conversation begins with BOS by the tokenizer's own rule.
    pub fn begins_with_bos(&self) -> bool {
        self.tokenizer.begins_with_bos()
    }

    /// What the effective template writes before the first user turn when there is no system message.
    pub fn hidden_default(&self) -> Option<&str> {
        self.hidden_default.as_deref()
    }

    /// The effective template's text.
    pub fn template(&self) -> &str {
        self.template.source()
    }

    /// Whether ids depend on the day on which they are made: the template writes the date, and the run has none of its own.
    pub fn depends_on_today(&self) -> bool {
        self.template.writes_date() && self.options.now.is_none()
    }

    /// What it was loaded with.
    pub fn options(&self) -> ChatOptions {
        self.options
    }

    /// Whether the effective template differs from the model's own.
    pub fn template_is_changed(&self) -> bool {
        self.template.source() != self.original
    }

    /// Writes the tokenizer's files as they were loaded and the effective template as `chat_template.jinja`, and in
    /// `tokenizer_config.json` if that had one. `dir` has to exist; files there are replaced.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        for (name, bytes) in &self.files {
            write(name, bytes)?;
        }
        if let Some(bytes) = &self.config {
            write(CONFIG, &self.config_in_step(bytes)?)?;
        }
        write(TEMPLATE, self.template.source().as_bytes())
    }

    /// `tokenizer_config.json` with the effective template where it had one that differs; else byte for byte.
    fn config_in_step(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut config: Value =
            serde_json::from_slice(bytes).with_context(|| format!("{CONFIG} is not valid JSON"))?;
        let source = self.template.source();
        let Some(entry) = config.get_mut("chat_template").and_then(default_template) else {
            return Ok(bytes.to_vec());
        };
        if entry.as_str() == Some(source) {
            return Ok(bytes.to_vec());
        }
        *entry = Value::from(source);
        let mut text = serde_json::to_vec_pretty(&config)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Identifies everything ids depend on: tokenizer files, effective template, stop ids, policies. Equal
    /// fingerprints give equal ids, so it keys caches and guards a resumed run.
    pub fn fingerprint(&self) -> String {
        let mut bytes = Vec::new();
        let mut add = |part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        };
        for (name, content) in &self.files {
            // Other forms of the same vocabulary are not read.
            if *name == "tokenizer.json" {
                add(content);
            }
        }
        for (name, text) in self.tokenizer.special_tokens() {
            add(name.as_bytes());
            add(text.as_bytes());
        }
        add(self.template.source().as_bytes());
        add(&[u8::from(self.begins_with_bos())]);
        for id in self.stop_ids() {
            add(&id.to_le_bytes());
        }
        let role: &[u8] = match self.options.system_role {
            SystemRole::Native => b"native",
            SystemRole::OwnTurn => b"own_turn",
            SystemRole::MergeFirstUser => b"merge_first_user",
            SystemRole::Error => b"error",
        };
        add(role);
        add(match self.options.default_system {
            DefaultSystem::Keep => b"keep",
            DefaultSystem::Strip => b"strip",
        });
        if let (true, Some(now)) = (self.template.writes_date(), self.options.now) {
            add(&now.to_le_bytes());
        }
        sysgen_core::hash::hash_bytes(&bytes)
    }
}

/// The model's own chat template.
fn template_source(dir: &Path) -> Result<String> {
    if let Some(bytes) = read_optional(dir, TEMPLATE)? {
        return String::from_utf8(bytes)
            .with_context(|| format!("{} is not UTF-8", dir.join(TEMPLATE).display()));
    }
    let mut config = read_json(dir, CONFIG)?;
    if let Some(text) = config
        .get_mut("chat_template")
        .and_then(default_template)
        .and_then(|entry| entry.as_str())
    {
        return Ok(text.to_owned());
    }
    bail!(
        "{} has no chat template: neither {TEMPLATE} nor `chat_template` in {CONFIG} (a text, or a list with one named \
         `default`); a base model needs one added, e.g. as {TEMPLATE}",
        dir.display()
    )
}

/// The text of a `chat_template` entry: itself, or the `template` of the list's item named `default`.
fn default_template(entry: &mut Value) -> Option<&mut Value> {
    match entry {
        Value::String(_) => Some(entry),
        Value::Array(list) => list
            .iter_mut()
            .find(|item| item["name"] == "default")?
            .get_mut("template"),
        _ => None,
    }
}

fn read_optional(dir: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
