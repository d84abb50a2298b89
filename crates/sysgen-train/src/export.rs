//! The trained model as a Hugging Face folder: weights, configuration, tokenizer, the chat template in use, stop ids, a card.
//!
//! The folder is written beside its place, loaded again and compared before it gets its name: what has the name works.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::config::{AdapterExport, DefaultSystem, ExportDtype, SystemRole};
use sysgen_core::files::write_directory_atomically;
use sysgen_core::message::Message;
use sysgen_model::{Decoder, Device, Parameter, StoredDtype, Weight, WeightDtype};

use crate::check::same_ids;
use crate::method::probe;

/// Says that a folder is an export of ours and may be replaced by the next one.
const MARKER: &str = "sysgen.json";

/// A system message and a question that any model can be asked.
pub const EXAMPLE_QUESTION: (&str, &str) = ("Answer in one sentence.", "What is a comet?");

/// What is exported, and where.
pub struct Export<'a> {
    /// The weights.
    pub decoder: &'a Decoder,
    /// Tokenizer and template.
    pub chat: &'a Chat,
    /// The folder to write.
    pub path: &'a Path,
    /// Number format of the weights.
    pub dtype: ExportDtype,
    /// Whether a decoder with adapters is written as its adapters alone; merged ones have none any more.
    pub adapter: AdapterExport,
    /// The folder the model was loaded from: its names, shards and number formats are kept. None for a model from scratch.
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
    /// When the folder holds something else, a file cannot be written, or what is loaded again differs.
    pub fn write(&self) -> Result<PathBuf> {
        self.refuse_foreign_folder()?;
        write_directory_atomically(self.path, |dir| {
            if self.keeps_adapter() {
                self.decoder
                    .save_adapter(dir, &self.base(), self.adapter_dtype())?;
            } else {
                self.decoder.save(dir, self.model_dtype(), self.like)?;
            }
            self.chat.save(dir)?;
            self.stop_ids(&dir.join("generation_config.json"))?;
            std::fs::write(dir.join("README.md"), self.card())?;
            std::fs::write(
                dir.join(MARKER),
                serde_json::to_string_pretty(self.about)? + "\n",
            )?;
            self.verify(dir).context(
                "the export was loaded again and is not what was trained; nothing was written",
            )
        })?;
        Ok(self.path.to_path_buf())
    }

    fn refuse_foreign_folder(&self) -> Result<()> {
        let Ok(mut entries) = std::fs::read_dir(self.path) else {
            return Ok(());
        };
        if entries.next().is_some() && !self.path.join(MARKER).exists() {
            bail!(
                "export.path = \"{}\" holds files that are not an export of this program; choose an empty or new folder",
                self.path.display()
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

    fn verify(&self, dir: &Path) -> Result<()> {
        let device = self.decoder.device();
        let reloaded = match self.keeps_adapter() {
            true => self.decoder.clone().with_adapter(dir)?,
            false => Decoder::load_as(dir, &device, WeightDtype::Auto)?,
        };
        let expected = probe(&rounded_as_stored(self.decoder.clone(), dir, &device)?);
        let found = probe(&reloaded);
        let differing = expected
            .iter()
            .zip(&found)
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count();
        ensure!(
            differing == 0,
            "{differing} of {} logits differ",
            expected.len()
        );
        let options = ChatOptions {
            system_role: SystemRole::Native,
            default_system: DefaultSystem::Keep,
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

/// The weights as they are after rounding to the number format each has in the files of `dir`.
fn rounded_as_stored(decoder: Decoder, dir: &Path, device: &Device) -> Result<Decoder> {
    let formats = stored_formats(dir)?;
    let (frozen, parameters) = decoder.split();
    let parameters = parameters
        .into_iter()
        .map(|Parameter { name, tensor }| {
            let round: fn(f32) -> f32 = match formats.iter().find(|(stored, _)| *stored == name) {
                Some((_, Dtype::F32)) => return Ok(Parameter { name, tensor }),
                Some((_, Dtype::BF16)) => |value| bf16::from_f32(value).to_f32(),
                Some((_, Dtype::F16)) => |value| f16::from_f32(value).to_f32(),
                Some((_, other)) => bail!("{name} is stored as {other:?}"),
                None => bail!("{name} is not in the exported files"),
            };
            let values = tensor.to_vec().into_iter().map(round).collect();
            let shape = tensor.shape();
            Ok(Parameter {
                name,
                tensor: Weight::from_values(values, &shape, device),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(frozen.join(parameters))
}

fn stored_formats(dir: &Path) -> Result<Vec<(String, Dtype)>> {
    let mut formats = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            let file = std::fs::File::open(&path)?;
            // SAFETY: the file was just written by this process in a folder nobody else knows.
            let bytes = unsafe { memmap2::Mmap::map(&file)? };
            let (_, header) = SafeTensors::read_metadata(&bytes)?;
            formats.extend(
                header
                    .tensors()
                    .into_iter()
                    .map(|(name, info)| (name, info.dtype)),
            );
        }
    }
    Ok(formats)
}
