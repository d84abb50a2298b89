//! What `train.method` makes of a model: all weights trained, or adapters beside weights that are frozen, in four bits or not.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use sysgen_core::RunConfig;
use sysgen_core::config::{ALL_LINEAR, ModelInit, TrainDtype, TrainMethod, TrainSection};
use sysgen_core::hash::seed_from;
use sysgen_model::{Decoder, Device, Lora, ModelConfig, Tokens, WeightDtype, device, has_bf16};

/// Tokens whose logits are compared when an adapter is merged.
const PROBE_TOKENS: usize = 64;
/// Largest difference of a merged logit, relative to the largest logit or 1: rounding of f32 through all layers.
const MERGED: f32 = 1e-4;
/// The same where a device multiplies bf16: the merged weight, too, is rounded to its eight bits in every product.
const MERGED_BF16: f32 = 5e-2;

/// The adapters `[train]` asks for, if its method has any; those of `train.lora_adapter` have their own settings.
///
/// # Errors
/// A target module is not one of the model's, or the adapter's folder cannot be used; found without loading a weight.
pub fn lora(train: &TrainSection, model: &ModelConfig) -> Result<Option<Lora>> {
    if !train.method.has_adapter() {
        return Ok(None);
    }
    if !train.lora_adapter.as_os_str().is_empty() {
        let lora = Lora::read(&train.lora_adapter, model).context("train.lora_adapter")?;
        return Ok(Some(lora));
    }
    let mut target_modules = train.lora_target_modules.clone();
    target_modules.retain(|module| module != ALL_LINEAR);
    let lora = Lora {
        rank: train.lora_r,
        alpha: train.lora_alpha,
        dropout: train.lora_dropout,
        target_modules,
        rslora: train.use_rslora,
        dora: train.use_dora,
    };
    lora.check(model).context("train.lora_target_modules")?;
    Ok(Some(lora))
}

/// The devices that train together; the first one has the optimizer.
///
/// # Errors
/// One is not there.
pub fn devices(config: &RunConfig) -> Result<Vec<Device>> {
    let named = config.train.iter().flat_map(|train| &train.devices);
    let named: Vec<Device> = named
        .map(|name| device(&name.to_string()).context("train.devices"))
        .collect::<Result<_>>()?;
    if named.is_empty() {
        return Ok(vec![device(&config.device.to_string())?]);
    }
    Ok(named)
}

/// Whether the device has what `[train]` asks for.
///
/// # Errors
/// Weights in bf16 on a device that has none.
pub fn check_device(train: &TrainSection, device: &Device) -> Result<()> {
    ensure!(
        train.dtype != TrainDtype::Bf16 || has_bf16(device),
        "train.dtype = \"bf16\": this GPU has no bfloat16 (NVIDIA's have it since Ampere); use \"auto\", or device = \"cpu\""
    );
    Ok(())
}

/// What the model's matrices are kept in. Those that are not trained stay as they are stored, unless asked otherwise.
fn weight_dtype(train: Option<&TrainSection>) -> WeightDtype {
    match train.map(|train| (train.dtype, train.method)) {
        Some((TrainDtype::Bf16, _)) => WeightDtype::Bf16,
        Some((TrainDtype::F32, _) | (TrainDtype::Auto, TrainMethod::Full)) => WeightDtype::F32,
        Some((TrainDtype::Auto, _)) | None => WeightDtype::Auto,
    }
}

/// The model of `[model]`, its projections in four bits with `method = "qlora"`.
///
/// # Errors
/// The folder cannot be loaded.
pub fn load_base(config: &RunConfig, device: &Device) -> Result<Decoder> {
    let path = &config.model.path;
    let method = config.train.as_ref().map(|train| train.method);
    let dtype = weight_dtype(config.train.as_ref());
    let pretrained = config.model.init == ModelInit::Pretrained;
    if method == Some(TrainMethod::Qlora) {
        ensure!(
            pretrained,
            "train.method = \"qlora\" quantises a trained model; it cannot start from model.init = \"random\""
        );
        tracing::info!("loading {} in four bits (NF4)", path.display());
        return Decoder::load_nf4(path, device, dtype);
    }
    if pretrained {
        tracing::info!("loading {}", path.display());
        return Decoder::load_as(path, device, dtype);
    }
    tracing::info!(
        "starting from random weights, {}",
        path.join("config.json").display()
    );
    let model = ModelConfig::from_directory(path)?;
    Ok(Decoder::random_as(model, config.seed, device, dtype))
}

/// The base with what is trained beside it: new adapters, those of `train.lora_adapter`, or nothing for `full`.
///
/// # Errors
/// As [`lora`].
pub fn with_adapters(base: Decoder, train: &TrainSection, seed: u64) -> Result<Decoder> {
    let Some(lora) = lora(train, &base.config)? else {
        return Ok(base);
    };
    if train.lora_adapter.as_os_str().is_empty() {
        let seed = seed_from(&["adapters", &seed.to_string()]);
        return base.with_lora(lora, seed);
    }
    tracing::info!("going on with the adapter {}", train.lora_adapter.display());
    base.with_adapter(&train.lora_adapter)
}

/// The whole model with its adapters merged into the weights, in f32. Those of a base in four bits go beside the weights
/// that `base` gives, as they were before they were quantised.
///
/// # Errors
/// The merged model computes something else than base and adapter; or `base` fails.
pub fn merge(decoder: &Decoder, base: impl FnOnce() -> Result<Decoder>) -> Result<Decoder> {
    if decoder.lora().is_none() {
        return Ok(decoder.clone());
    }
    let beside = match decoder.is_nf4() {
        true => base()?.with_adapters_of(decoder),
        false => decoder.clone(),
    };
    let merged = beside.clone().merged();
    let (expected, found) = (probe(&beside), probe(&merged));
    let largest = expected.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    let difference = expected
        .iter()
        .zip(&found)
        .map(|(a, b)| (a - b).abs())
        .fold(
            0.0,
            |most: f32, x| if x > most || x.is_nan() { x } else { most },
        );
    let tolerance = match decoder.dtype() == burn::tensor::DType::F32 {
        true => MERGED,
        false => MERGED_BF16,
    };
    if difference.is_nan() || difference > tolerance * largest {
        bail!(
            "the merged model is not the model with its adapter: a logit differs by {difference:e} of {largest:.3}; nothing was written"
        );
    }
    tracing::info!("merged the adapter; the logits differ by at most {difference:.1e}");
    Ok(merged)
}

/// Logits of ids spread over the whole vocabulary.
pub(crate) fn probe(decoder: &Decoder) -> Vec<f32> {
    let vocab = decoder.config.vocab_size as u32;
    let step = (vocab / PROBE_TOKENS as u32).max(1);
    let ids: Vec<u32> = (0..PROBE_TOKENS as u32)
        .map(|n| (n * step) % vocab)
        .collect();
    let logits = decoder.logits(decoder.hidden(&Tokens::padded(&[&ids], 0)));
    logits.try_into_vec_as::<f32>().expect("logits are f32")
}

/// What identifies the adapter that training starts from: its files by content.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn adapter_files(adapter: &Path) -> Result<String> {
    let mut hashes = Vec::new();
    for file in [sysgen_model::ADAPTER_CONFIG, sysgen_model::ADAPTER_WEIGHTS] {
        hashes.push(sysgen_core::hash::hash_file(&adapter.join(file))?);
    }
    Ok(hashes.join(" "))
}
