//! The trained model as a Hugging Face folder: weights, configuration, tokenizer, the chat template in use, stop ids, a card.
//!
//! The folder is written beside its place, read again and compared before it gets its name: what has the name works. Adapters
//! are merged one projection at a time, on the host in f32, so that nothing like a second model exists in between.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::config::{AdapterExport, ExportDtype};
use sysgen_core::files::write_directory_atomically;
use sysgen_core::message::Message;
use sysgen_model::{Decoder, Merge, StoredDtype};

use crate::check::same_ids;
use crate::method::check_merge;

/// Says that a folder is an export of ours and may be replaced by the next one.
pub const MARKER: &str = "sysgen.json";

/// A system message and a question that any model can be asked.
pub const EXAMPLE_QUESTION: (&str, &str) = ("Answer in one sentence.", "What is a comet?");

/// What is exported, and where.
pub struct Export<'a> {
    /// The weights, and the adapters if there are any.
    pub decoder: &'a Decoder,
    /// Tokenizer and template.
    pub chat: &'a Chat,
    /// The folder to write.
    pub path: &'a Path,
    /// Number format of the weights.
    pub dtype: ExportDtype,
    /// Whether a decoder with adapters is written as its adapters alone, or as one model.
    pub adapter: AdapterExport,
    /// The folder the model was loaded from: its names, shards and number formats are kept, and an adapter that was trained
    /// beside it in four bits is merged into what is there. None for a model from scratch.
    pub like: Option<&'a Path>,
    /// Conversations whose ids must come out of the exported files as they come out of the ones in use.
    pub conversations: &'a [Vec<Message>],
    /// Facts for the card and the marker file.
    pub about: &'a Value,
}

impl Export<'_> {
    /// Writes the folder and verifies it.
    ///
    /// # Errors
    /// When the folder holds something else, a merged projection computes something else than with its adapter beside it,
    /// a file cannot be written, or what is read again differs.
    pub fn write(&self) -> Result<PathBuf> {
        refuse_foreign_folder(self.path)?;
        write_directory_atomically(self.path, |dir| {
            if self.keeps_adapter() {
                self.decoder
                    .save_adapter(dir, &self.base(), self.adapter_dtype())?;
            } else {
                self.merge(dir)?;
            }
            self.chat.save(dir)?;
            self.stop_ids(&dir.join("generation_config.json"))?;
            std::fs::write(dir.join("README.md"), self.card())?;
            std::fs::write(
                dir.join(MARKER),
                serde_json::to_string_pretty(self.about)? + "\n",
            )?;
            self.verify(dir).context(
                "the export was read again and is not what was trained; nothing was written",
            )
        })?;
        Ok(self.path.to_path_buf())
    }

    /// The whole model, adapters merged.
    fn merge(&self, dir: &Path) -> Result<()> {
        let largest = Cell::new(0.0f32);
        let look = |merge: &Merge| {
            largest.set(largest.get().max(check_merge(merge)?));
            Ok(())
        };
        let decoder = self.decoder;
        decoder.save_merged(dir, self.model_dtype(), self.like, &look)?;
        if decoder.lora().is_some() {
            tracing::info!(
                "merged the adapter; no projection says anything that differs by more than {:.1e} of its largest number",
                largest.get()
            );
        }
        Ok(())
    }

    fn keeps_adapter(&self) -> bool {
        self.adapter == AdapterExport::Keep && self.decoder.lora().is_some()
    }

    fn base(&self) -> String {
        self.like
            .map_or_else(String::new, |like| like.display().to_string())
    }

    /// An adapter is small: it is rounded only where that is asked for.
    fn adapter_dtype(&self) -> StoredDtype {
        match self.dtype {
            ExportDtype::Auto | ExportDtype::F32 => StoredDtype::F32,
            ExportDtype::Bf16 => StoredDtype::Bf16,
            ExportDtype::F16 => StoredDtype::F16,
        }
    }

    fn model_dtype(&self) -> sysgen_model::ExportDtype {
        match self.dtype {
            ExportDtype::Auto => sysgen_model::ExportDtype::Auto,
            ExportDtype::F32 => sysgen_model::ExportDtype::Of(StoredDtype::F32),
            ExportDtype::Bf16 => sysgen_model::ExportDtype::Of(StoredDtype::Bf16),
            ExportDtype::F16 => sysgen_model::ExportDtype::Of(StoredDtype::F16),
        }
    }

    /// Generation has to stop where training taught it to, whatever the source folder said.
    fn stop_ids(&self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).unwrap_or_else(|_| "{}".into());
        let mut config: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let has: Vec<u64> = match &config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
            id => id.as_u64().into_iter().collect(),
        };
        let stop_ids = self.chat.stop_ids();
        if stop_ids.iter().all(|&id| has.contains(&u64::from(id))) {
            return Ok(());
        }
        config["eos_token_id"] = if let [id] = stop_ids {
            json!(id)
        } else {
            json!(stop_ids)
        };
        std::fs::write(path, serde_json::to_string_pretty(&config)? + "\n")?;
        Ok(())
    }

    fn card(&self) -> String {
        let base = self.like.map_or_else(String::new, |like| {
            format!("base_model: {}\n", like.display())
        });
        let facts: Vec<String> = self
            .about
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| {
                format!(
                    "| {key} | {} |",
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_string)
                )
            })
            .collect();
        format!(
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\n{base}tags:\n- sysgen\n---\n\n\
             # Trained with SysGen\n\n\
             A model trained to follow system messages. `chat_template.jinja` is the template it was trained with.\n\n\
             ```python\n{}\n```\n\n\
             | | |\n|---|---|\n{}\n",
            usage(self.path, EXAMPLE_QUESTION.0, EXAMPLE_QUESTION.1),
            facts.join("\n")
        )
    }

    /// Whether the folder holds these weights, byte by byte in the format of its files, and a template that gives these ids.
    ///
    /// # Errors
    /// What differs, or a file cannot be read.
    pub fn verify(&self, dir: &Path) -> Result<()> {
        if self.keeps_adapter() {
            self.decoder
                .compare_saved_adapter(dir, self.adapter_dtype())?;
        } else {
            self.decoder
                .compare_saved(dir, self.model_dtype(), self.like)?;
        }
        let options = ChatOptions {
            now: self.chat.options().now,
            ..ChatOptions::default()
        };
        let chat = Chat::load(dir, options)?;
        for messages in self.conversations {
            ensure!(
                same_ids(self.chat, &chat, messages),
                "the chat template gives other ids"
            );
        }
        Ok(())
    }
}

/// Whether an export may be written to `path`: a folder that is not there yet, is empty, or is an earlier export.
///
/// # Errors
/// It holds something else.
pub fn refuse_foreign_folder(path: &Path) -> Result<()> {
    let empty = std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
    ensure!(
        empty || path.join(MARKER).exists(),
        "{} holds files that are not an export of this program; choose an empty or new folder",
        path.display()
    );
    Ok(())
}

/// How the folder is used from Python.
pub fn usage(path: &Path, system: &str, user: &str) -> String {
    let path = path.display();
    let (system, user) = (json!(system), json!(user));
    format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\"{path}\")\n\
         model = AutoModelForCausalLM.from_pretrained(\"{path}\")\n\
         messages = [{{\"role\": \"system\", \"content\": {system}}}, {{\"role\": \"user\", \"content\": {user}}}]\n\
         inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors=\"pt\", return_dict=True)\n\
         output = model.generate(**inputs, max_new_tokens=200)\n\
         print(tokenizer.decode(output[0][inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))"
    )
}
