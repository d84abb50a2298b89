//! Adapters on disk as PEFT has them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::adapters::{Lora, PREFIX, projections};
use crate::checkpoint::{Shard, decode};
use crate::compare::compare_tensors;
use crate::config::{ModelConfig, StoredDtype};
use crate::decoder::Decoder;
use crate::parameter::{Parameter, Weight};
use crate::save::{write_json, write_tensors};

/// The settings of an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The tensors of an adapter.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Keys of `adapter_config.json` that change what an adapter computes and that we do not compute, with the only values
/// accepted beside `null` and empty ones.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("fan_in_fan_out", "false"),
    ("lora_bias", "false"),
    ("use_qalora", "false"),
    ("modules_to_save", "null"),
    ("layers_to_transform", "null"),
    ("layer_replication", "null"),
    ("rank_pattern", "{}"),
    ("alpha_pattern", "{}"),
    ("target_parameters", "null"),
    ("trainable_token_indices", "null"),
    ("alora_invocation_tokens", "null"),
    ("arrow_config", "null"),
    ("kasa_config", "null"),
    ("velora_config", "null"),
    ("monteclora_config", "null"),
    ("use_bdlora", "null"),
];

impl Lora {
    /// The settings of the adapter in `dir`, for a model of this config.
    ///
    /// # Errors
    /// The folder holds no adapter, one of another kind, or one for another model.
    pub fn read(dir: &Path, config: &ModelConfig) -> Result<Lora> {
        let path = dir.join(ADAPTER_CONFIG);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let json: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not valid JSON", path.display()))?;
        let lora = from_json(&json, &open(dir)?, config)
            .with_context(|| format!("{} cannot be used", path.display()))?;
        lora.check(config)
            .with_context(|| path.display().to_string())?;
        Ok(lora)
    }
}

impl Decoder {
    /// Adds the adapter in `dir`. From then on only it is trained.
    ///
    /// # Errors
    /// As [`Lora::read`]; or a tensor is missing, surplus or mis-shaped.
    pub fn with_adapter(self, dir: &Path) -> Result<Decoder> {
        let lora = Lora::read(dir, &self.config)?;
        let file = open(dir)?;
        let device = self.device();
        let (frozen, mut parameters) = self.with_lora(lora, 0)?.split();
        for Parameter { name, tensor } in &mut parameters {
            let stored = file.tensors.iter().find(|stored| stored.name == *name);
            let place = file.path.display();
            let stored =
                stored.with_context(|| format!("tensor `{name}` is missing from {place}"))?;
            ensure!(
                stored.shape == tensor.shape(),
                "tensor `{name}` in {place} has shape {:?}, the model and {ADAPTER_CONFIG} ask for {:?}",
                stored.shape,
                tensor.shape()
            );
            let Some(dtype) = stored.dtype else {
                bail!(
                    "tensor `{name}` in {place} is stored as {}; supported: F32, F16, BF16",
                    stored.dtype_name
                );
            };
            let values = decode(file.bytes_of(stored), dtype);
            *tensor = Weight::from_values(values, &stored.shape, &device);
        }
        let known: BTreeSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
        for stored in &file.tensors {
            ensure!(
                known.contains(stored.name.as_str()),
                "tensor `{}` in {} is not part of an adapter of this model",
                stored.name,
                file.path.display()
            );
        }
        Ok(frozen.join(parameters))
    }

    /// Writes the adapters as PEFT reads them; `base` is the model they belong to, as it is to be found later.
    ///
    /// # Errors
    /// The decoder has no adapters, or a file cannot be written.
    pub fn save_adapter(&self, dir: &Path, base: &str, dtype: StoredDtype) -> Result<()> {
        let Some(lora) = &self.lora else {
            bail!("{}: there is no adapter to save", dir.display());
        };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        write_tensors(&dir.join(ADAPTER_WEIGHTS), &self.trainable(), dtype)?;
        write_json(
            &dir.join(ADAPTER_CONFIG),
            &to_json(lora, &self.config, base),
        )
    }
}

/// Compares the adapter in `dir` with that of `decoder`, byte by byte.
pub(crate) fn compare_adapter(decoder: &Decoder, dir: &Path, dtype: StoredDtype) -> Result<()> {
    let read = Lora::read(dir, &decoder.config)?;
    let own = decoder.lora.as_ref().map(|lora| Lora {
        target_modules: lora.modules(&decoder.config),
        ..lora.clone()
    });
    ensure!(
        own == Some(read),
        "{ADAPTER_CONFIG} describes another adapter"
    );
    compare_tensors(&open(dir)?, &decoder.trainable(), dtype)
}

fn open(dir: &Path) -> Result<Shard> {
    let path = dir.join(ADAPTER_WEIGHTS);
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        bail!(
            "{} holds its adapter as adapter_model.bin; only {ADAPTER_WEIGHTS} is read",
            dir.display()
        );
    }
    Shard::open(path)
}

fn from_json(json: &Value, file: &Shard, config: &ModelConfig) -> Result<Lora> {
    let word = |key: &str| json.get(key).and_then(Value::as_str);
    let yes = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
    ensure!(
        word("peft_type") == Some("LORA"),
        "peft_type is {}; supported: \"LORA\"",
        json.get("peft_type").unwrap_or(&Value::Null)
    );
    for (key, accepted) in UNSUPPORTED {
        let value = json.get(*key).unwrap_or(&Value::Null);
        let empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty);
        ensure!(
            value.is_null()
                || empty
                || serde_json::from_str(accepted).is_ok_and(|accepted: Value| *value == accepted),
            "{key} = {value} is not supported"
        );
    }
    let number = |key: &str| {
        let number = json.get(key).and_then(Value::as_f64);
        number.with_context(|| format!("{key} is not a number"))
    };
    let rank = json.get("r").and_then(Value::as_u64);
    Ok(Lora {
        rank: rank.context("r is not a whole number")? as usize,
        alpha: number("lora_alpha")?,
        dropout: number("lora_dropout").unwrap_or(0.0),
        target_modules: adapted_modules(file, config)?,
        rslora: yes("use_rslora"),
        dora: yes("use_dora"),
    })
}

/// The modules that have tensors: `target_modules` may be a list, a word or a pattern, the tensors say what it came to.
fn adapted_modules(file: &Shard, config: &ModelConfig) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for stored in &file.tensors {
        let module = stored
            .name
            .strip_prefix(PREFIX)
            .and_then(|name| name.split_once(".lora_"))
            .and_then(|(path, _)| path.rsplit('.').next());
        let module = module.with_context(|| {
            format!(
                "tensor `{}` in {} is not of a LoRA adapter of a causal language model",
                stored.name,
                file.path.display()
            )
        })?;
        found.insert(module.to_string());
    }
    ensure!(!found.is_empty(), "{} holds no tensor", file.path.display());
    let known = projections(config);
    let ordered = known.iter().filter(|module| found.contains(*module));
    let mut modules: Vec<String> = ordered.cloned().collect();
    modules.extend(found.into_iter().filter(|module| !known.contains(module)));
    Ok(modules)
}

fn to_json(lora: &Lora, config: &ModelConfig, base: &str) -> Value {
    json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": lora.modules(config),
        "task_type": "CAUSAL_LM",
        "use_dora": lora.dora,
        "use_rslora": lora.rslora,
    })
}

/// PEFT declares `lora_alpha` a whole number; one that is written as one.
fn whole(alpha: f64) -> Value {
    if alpha.fract() == 0.0 {
        json!(alpha as i64)
    } else {
        json!(alpha)
    }
}
