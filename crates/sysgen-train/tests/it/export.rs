//! An export is a folder that loads, and nothing else gets its name.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use half::bf16;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::Message;
use sysgen_core::config::{AdapterExport, DefaultSystem, ExportDtype, SystemRole};
use sysgen_model::{Decoder, Device, Lora, Merge, Weight};
use sysgen_ops::{Adapter, LinearWeight, merged};
use sysgen_train::export::Export;
use sysgen_train::method::check_merge;

use crate::fixture;

fn conversations() -> Vec<Vec<Message>> {
    fixture::rows(5)
        .into_iter()
        .map(|row| row.messages)
        .collect()
}

fn export(decoder: &Decoder, chat: &Chat, path: &Path, dtype: ExportDtype) -> anyhow::Result<()> {
    exporting(decoder, chat, path, dtype, AdapterExport::Merge, |export| {
        export.write().map(drop)
    })
}

fn exporting<T>(
    decoder: &Decoder,
    chat: &Chat,
    path: &Path,
    dtype: ExportDtype,
    adapter: AdapterExport,
    then: impl FnOnce(Export) -> T,
) -> T {
    let (conversations, about) = (conversations(), json!({"steps": 12}));
    then(Export {
        decoder,
        chat,
        path,
        dtype,
        adapter,
        like: None,
        conversations: &conversations,
        about: &about,
    })
}

/// A decoder with adapters that have learnt something.
fn adapted(decoder: Decoder, dora: bool) -> Decoder {
    let lora = Lora {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        rslora: false,
        dora,
    };
    let (frozen, mut parameters) = decoder.with_lora(lora, 3).unwrap().split();
    for parameter in &mut parameters {
        let values = (0..parameter.tensor.len()).map(|i| (i % 7) as f32 / 50.0 + 0.1);
        let shape = parameter.tensor.shape();
        parameter.tensor = Weight::from_values(values.collect(), &shape, &Device::flex());
    }
    frozen.join(parameters)
}

/// Every tensor of the file with the place of its bytes in it.
fn places(bytes: &[u8]) -> Vec<(String, usize)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let start = |data: &[u8]| data.as_ptr() as usize - bytes.as_ptr() as usize;
    let tensors = file.tensors().into_iter();
    let mut places: Vec<_> = tensors
        .map(|(name, view)| (name, start(view.data())))
        .collect();
    places.sort();
    places
}

#[test]
fn one_bit_of_one_stored_tensor_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fixture::model_folder(&model);
    let (plain, chat) = (fixture::decoder(&model), fixture::chat(&model));
    let half = plain.clone().in_bf16();
    use AdapterExport::{Keep, Merge};
    for (what, decoder, dtype, adapter) in [
        ("f32", plain.clone(), ExportDtype::F32, Merge),
        ("f32 in bf16", plain.clone(), ExportDtype::Bf16, Merge),
        ("bf16 in f32", half.clone(), ExportDtype::F32, Merge),
        ("bf16", half.clone(), ExportDtype::Bf16, Merge),
        (
            "merged",
            adapted(half.clone(), true),
            ExportDtype::Bf16,
            Merge,
        ),
        ("adapter", adapted(plain, false), ExportDtype::F32, Keep),
    ] {
        let target = dir.path().join(what);
        let checked = |then: fn(Export) -> anyhow::Result<()>| {
            exporting(&decoder, &chat, &target, dtype, adapter, then)
        };
        checked(|export| export.write().map(drop)).unwrap();
        let verify = || checked(|export| export.verify(export.path));
        verify().unwrap();
        let file = target.join(match adapter {
            Merge => "model.safetensors",
            Keep => "adapter_model.safetensors",
        });
        let bytes = std::fs::read(&file).unwrap();
        for (name, place) in places(&bytes) {
            let mut other = bytes.clone();
            other[place] ^= 1;
            std::fs::write(&file, &other).unwrap();
            let said = format!("{:#}", verify().unwrap_err());
            let expected = format!("tensor `{name}`");
            assert!(
                said.contains(&expected) && said.contains("1 bytes differ"),
                "{what}, {name}: {said}"
            );
        }
        std::fs::write(&file, &bytes).unwrap();
        verify().unwrap();
    }
}

#[test]
fn a_folder_in_another_format_or_of_another_shape_is_not_the_export() {
    let dir = tempfile::tempdir().unwrap();
    let (model, target) = (dir.path().join("model"), dir.path().join("export"));
    fixture::model_folder(&model);
    let (decoder, chat) = (fixture::decoder(&model), fixture::chat(&model));
    export(&decoder, &chat, &target, ExportDtype::Bf16).unwrap();
    let verify = |dtype| {
        let verified = exporting(&decoder, &chat, &target, dtype, AdapterExport::Merge, |e| {
            e.verify(&target)
        });
        format!("{:#}", verified.unwrap_err())
    };
    let said = verify(ExportDtype::F32);
    assert!(said.contains("is stored as BF16"), "{said}");
    let path = target.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("10000.0", "20000.0")).unwrap();
    let said = verify(ExportDtype::Bf16);
    assert!(said.contains("describes another model"), "{said}");
}

#[test]
fn adapters_are_merged_on_the_way_to_the_disk_as_they_would_be_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fixture::model_folder(&model);
    let (plain, chat) = (fixture::decoder(&model), fixture::chat(&model));
    for (n, base) in [plain.clone(), plain.in_bf16()].into_iter().enumerate() {
        for dora in [false, true] {
            let decoder = adapted(base.clone(), dora);
            let target = dir.path().join(format!("{n}-{dora}"));
            export(&decoder, &chat, &target, ExportDtype::F32).unwrap();
            let again = Decoder::load(&target, &decoder.device()).unwrap();
            let expected = decoder.merged().parameters();
            for (a, b) in expected.iter().zip(again.parameters()) {
                assert_eq!((&a.name, a.tensor.to_vec()), (&b.name, b.tensor.to_vec()));
            }
        }
    }
}

#[test]
fn a_merge_that_computes_something_else_is_refused_by_name() {
    let of = |count: usize, shape: [usize; 2]| {
        let values = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0);
        Tensor::from_data(TensorData::new(values.collect(), shape), &Device::flex())
    };
    let weight = LinearWeight::Dense(of(40 * 30, [40, 30]));
    let adapter = Adapter {
        a: of(90, [3, 30]),
        b: of(120, [40, 3]),
        scale: 2.0,
        magnitude: None,
        dropout: None,
    };
    let sum = merged(&weight, &adapter);
    let check = |merged| {
        check_merge(&Merge {
            name: "q_proj".into(),
            weight: weight.clone(),
            adapter: adapter.clone(),
            merged,
        })
    };
    assert!(check(sum.clone()).unwrap() < 2e-6);
    let mut values = sum.clone().try_into_vec_as::<f32>().unwrap();
    values[777] += 1e-3;
    let other = Tensor::from_data(TensorData::new(values, [40, 30]), &Device::flex());
    for wrong in [other, sum.mul_scalar(1.001), weight.dense()] {
        let said = check(wrong).unwrap_err().to_string();
        assert!(said.starts_with("q_proj: merged it is not"), "{said}");
    }
}

#[test]
fn an_f32_export_loads_with_the_very_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (model, target) = (dir.path().join("model"), dir.path().join("out/export"));
    fixture::model_folder(&model);
    let decoder = fixture::decoder(&model);
    export(&decoder, &fixture::chat(&model), &target, ExportDtype::F32).unwrap();

    let again = Decoder::load(&target, &decoder.device()).unwrap();
    for (a, b) in decoder.parameters().iter().zip(again.parameters()) {
        assert_eq!((&a.name, a.tensor.to_vec()), (&b.name, b.tensor.to_vec()));
    }
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(target.join(name)).unwrap()).unwrap()
    };
    assert_eq!(json("generation_config.json")["eos_token_id"], json!(1));
    assert_eq!(json("config.json")["model_type"], "llama");
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    ] {
        assert!(target.join(name).is_file(), "{name} is absent");
    }
    assert!(
        std::fs::read_to_string(target.join("README.md"))
            .unwrap()
            .contains("AutoModelForCausalLM")
    );
    let names: Vec<_> = std::fs::read_dir(target.parent().unwrap())
        .unwrap()
        .collect();
    assert_eq!(names.len(), 1, "something was left beside the export");
}

#[test]
fn a_bf16_export_holds_the_rounded_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (model, target) = (dir.path().join("model"), dir.path().join("export"));
    fixture::model_folder(&model);
    let decoder = fixture::decoder(&model);
    export(&decoder, &fixture::chat(&model), &target, ExportDtype::Bf16).unwrap();
    let again = Decoder::load(&target, &decoder.device()).unwrap();
    for (a, b) in decoder.parameters().iter().zip(again.parameters()) {
        let rounded: Vec<f32> = a
            .tensor
            .to_vec()
            .into_iter()
            .map(|value| bf16::from_f32(value).to_f32())
            .collect();
        assert_eq!(rounded, b.tensor.to_vec(), "{}", a.name);
    }
}

#[test]
fn weights_kept_in_bf16_are_exported_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (model, target) = (dir.path().join("model"), dir.path().join("export"));
    fixture::model_folder(&model);
    let decoder = fixture::decoder(&model).in_bf16();
    for dtype in [ExportDtype::Bf16, ExportDtype::F32] {
        export(&decoder, &fixture::chat(&model), &target, dtype).unwrap();
        let again = Decoder::load(&target, &decoder.device()).unwrap();
        for (a, b) in decoder.parameters().iter().zip(again.parameters()) {
            assert_eq!(a.tensor.to_vec(), b.tensor.to_vec(), "{}", a.name);
        }
    }
}

#[test]
fn a_policy_is_part_of_the_exported_template() {
    let dir = tempfile::tempdir().unwrap();
    let (model, target) = (dir.path().join("model"), dir.path().join("export"));
    let refusing = format!(
        "{{% if messages[0]['role'] == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}{}",
        fixture::TEMPLATE
    );
    fixture::model_folder_with(&model, &refusing, fixture::VOCAB);
    let options = ChatOptions {
        system_role: SystemRole::MergeFirstUser,
        default_system: DefaultSystem::Keep,
        ..ChatOptions::default()
    };
    let chat = Chat::load(&model, options).unwrap();
    export(&fixture::decoder(&model), &chat, &target, ExportDtype::Auto).unwrap();
    let served = fixture::chat(&target);
    for messages in conversations() {
        assert_eq!(
            chat.prompt(&messages[..2]).unwrap(),
            served.prompt(&messages[..2]).unwrap()
        );
    }
}

#[test]
fn a_folder_with_other_files_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (model, target) = (dir.path().join("model"), dir.path().join("mine"));
    fixture::model_folder(&model);
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("thesis.tex"), "ten years of work").unwrap();
    let (decoder, chat) = (fixture::decoder(&model), fixture::chat(&model));
    let error = export(&decoder, &chat, &target, ExportDtype::Auto)
        .unwrap_err()
        .to_string();
    assert!(error.contains("choose an empty or new folder"), "{error}");
    assert!(target.join("thesis.tex").exists());

    std::fs::remove_file(target.join("thesis.tex")).unwrap();
    export(&decoder, &chat, &target, ExportDtype::Auto).unwrap();
    export(&decoder, &chat, &target, ExportDtype::Auto).unwrap(); // its own export is replaced
}
