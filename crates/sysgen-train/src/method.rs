//! What `train.method` makes of a model: all weights trained, or adapters beside weights that are frozen, in four bits or not.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sysgen_core::RunConfig;
use sysgen_core::config::{ALL_LINEAR, ModelInit, TrainDtype, TrainMethod, TrainSection};
use sysgen_core::hash::seed_from;
use sysgen_model::{Decoder, Device, Lora, Merge, ModelConfig, WeightDtype, device, has_bf16};
use sysgen_ops::{linear, lora_linear};

/// Rows of numbers that a merged projection is tried on.
const PROBE_ROWS: usize = 8;
/// Largest difference of what a merged projection says, relative to the largest number: rounding of f32 in one product. Of the
/// shapes, ranks, scales and strengths in `tests/it/merging.rs`, with up to 16,384 inputs, right merges differ by at most 1.2e-5.
const MERGED: f32 = 2e-5;

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

/// Whether a merged projection computes what it computes with its adapter beside it; the largest difference, relative to the
/// largest number it says. Both are computed on the CPU in f32, whatever the adapter was trained on.
///
/// # Errors
/// They differ by more than rounding.
pub fn check_merge(merge: &Merge) -> Result<f32> {
    let [_, input] = merge.weight.shape();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let x = (0..PROBE_ROWS * input).map(|_| random.random_range(-1.0f32..1.0));
    let x = TensorData::new(x.collect(), [PROBE_ROWS, input]);
    let x = Tensor::<2>::from_data(x, &merge.merged.device());
    let of = |tensor: Tensor<2>| tensor.try_into_vec_as::<f32>().expect("products are f32");
    let expected = of(lora_linear(x.clone(), &merge.weight, None, &merge.adapter));
    let found = of(linear(x, merge.merged.clone(), None));
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let difference = expected
        .iter()
        .zip(&found)
        .map(|(a, b)| (a - b).abs())
        .fold(
            0.0,
            |most: f32, x| if x > most || x.is_nan() { x } else { most },
        );
    if difference.is_nan() || difference > MERGED * largest {
        bail!(
            "{}: merged it is not the projection with its adapter: a number differs by {difference:e} of {largest:.3}; nothing was written",
            merge.name
        );
    }
    Ok(difference / largest.max(f32::MIN_POSITIVE))
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
