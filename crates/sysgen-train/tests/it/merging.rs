//! Whether a merged model is the model with its adapter: right merges pass, and whatever is forgotten is noticed.

use std::cell::RefCell;

use sysgen_model::{
    Decoder, Device, ExportDtype, Lora, Merge, ModelConfig, Parameter, StoredDtype, Weight,
    WeightDtype,
};
use sysgen_ops::{Adapter, merged};
use sysgen_train::method::check_merge;

use crate::memory::configs;

/// A model with adapters, as if trained: an untrained adapter's B is zero, and a row's length that of the base.
fn trained(config: &ModelConfig, dtype: WeightDtype, lora: Lora, strength: f32) -> Decoder {
    let base = Decoder::random_as(config.clone(), 1, &Device::flex(), dtype);
    let (frozen, mut trained) = base.with_lora(lora, 3).unwrap().split();
    for parameter in &mut trained {
        let mut values = parameter.tensor.to_vec();
        for (at, value) in values.iter_mut().enumerate() {
            let noise = strength * ((at * 37 % 101) as f32 / 50.0 - 1.0);
            match parameter.name.contains("magnitude") {
                true => *value *= 1.0 + noise,
                false => *value += noise,
            }
        }
        let shape = parameter.tensor.shape();
        parameter.tensor = Weight::from_values(values, &shape, &Device::flex());
    }
    frozen.join(trained)
}

/// Sums as long as those of large models.
fn wide() -> ModelConfig {
    let mut json = configs().remove(0).json;
    json["intermediate_size"] = 16384.into();
    json["num_hidden_layers"] = 2.into();
    ModelConfig::from_json(&json).unwrap()
}

/// Shapes, number formats, kinds of adapters, ranks, scales, and sizes of what was learnt.
fn cases() -> Vec<(String, Decoder)> {
    let lora = |rank, alpha, rslora, dora| Lora {
        rank,
        alpha,
        dropout: 0.1,
        target_modules: Vec::new(),
        rslora,
        dora,
    };
    let adapters = [
        lora(1, 1.0, false, false),
        lora(8, 16.0, false, false),
        lora(32, 32.0, true, false),
        lora(8, 16.0, false, true),
    ];
    let mut all = Vec::new();
    for config in configs() {
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            for lora in &adapters {
                for strength in [1e-3, 1e-2, 1e-1] {
                    all.push((config.clone(), dtype, lora, strength));
                }
            }
        }
    }
    all.extend(
        adapters[2..]
            .iter()
            .map(|lora| (wide(), WeightDtype::F32, lora, 1e-1)),
    );
    let cases = all.into_iter().map(|(config, dtype, lora, strength)| {
        let family = &config.json["model_type"];
        let name = format!("{family} {dtype:?} {lora:?} strength {strength}");
        (name, trained(&config, dtype, lora.clone(), strength))
    });
    cases.collect()
}

/// Merges to the disk in f32; `look` sees every projection.
fn save(decoder: &Decoder, look: &dyn Fn(&Merge) -> anyhow::Result<()>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    decoder.save_merged(dir.path(), F32, None, look).unwrap();
    dir
}

const F32: ExportDtype = ExportDtype::Of(StoredDtype::F32);

#[test]
fn a_right_merge_passes_and_a_wrong_one_does_not_whatever_the_adapter() {
    let farthest = RefCell::new(0.0f32);
    for (name, decoder) in cases() {
        save(&decoder, &|merge| {
            let difference = check_merge(merge)?;
            farthest.replace_with(|most| most.max(difference));
            let weaker = Adapter {
                scale: 0.9 * merge.adapter.scale,
                ..merge.adapter.clone()
            };
            for wrong in [merge.weight.dense(), merged(&merge.weight, &weaker)] {
                let wrong = Merge {
                    name: merge.name.clone(),
                    weight: merge.weight.clone(),
                    adapter: merge.adapter.clone(),
                    merged: wrong,
                };
                let said = check_merge(&wrong).expect_err(&name).to_string();
                assert!(said.starts_with(&merge.name), "{said}");
            }
            Ok(())
        });
    }
    eprintln!("right merges differ by at most {:e}", farthest.into_inner());
}

#[test]
fn a_written_model_with_one_projection_left_unmerged_is_not_the_model() {
    for config in configs() {
        let lora = Lora {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            target_modules: Vec::new(),
            rslora: false,
            dora: false,
        };
        let decoder = trained(&config, WeightDtype::F32, lora, 1e-3);
        let dir = save(&decoder, &|merge| check_merge(merge).map(drop));
        decoder.compare_saved(dir.path(), F32, None).unwrap();
        let (config, mut parameters) = Decoder::load(dir.path(), &Device::flex())
            .unwrap()
            .into_parameters();
        let base = Decoder::random_as(config.clone(), 1, &Device::flex(), WeightDtype::F32);
        let name = "model.layers.1.self_attn.o_proj.weight";
        let at = |parameters: &[Parameter]| parameters.iter().position(|p| p.name == name);
        let (forgotten, base) = (at(&parameters).unwrap(), base.parameters());
        parameters[forgotten] = base[at(&base).unwrap()].clone();
        let dir = tempfile::tempdir().unwrap();
        let wrong = Decoder::from_parameters(config, parameters);
        wrong.save(dir.path(), F32, None).unwrap();
        let said = decoder.compare_saved(dir.path(), F32, None).unwrap_err();
        let said = format!("{said:#}");
        assert!(
            said.contains(name) && said.contains("bytes differ"),
            "{said}"
        );
    }
}
