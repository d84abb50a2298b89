//! An export is a folder that loads, and nothing else gets its name.

use std::path::Path;

use half::bf16;
use serde_json::{Value, json};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::Message;
use sysgen_core::config::{AdapterExport, DefaultSystem, ExportDtype, SystemRole};
use sysgen_model::Decoder;
use sysgen_train::export::Export;

use crate::fixture;

fn conversations() -> Vec<Vec<Message>> {
    fixture::rows(5)
        .into_iter()
        .map(|row| row.messages)
        .collect()
}

fn export(decoder: &Decoder, chat: &Chat, path: &Path, dtype: ExportDtype) -> anyhow::Result<()> {
    let (conversations, about) = (conversations(), json!({"steps": 12}));
    Export {
        decoder,
        chat,
        path,
        dtype,
        adapter: AdapterExport::Merge,
        like: None,
        conversations: &conversations,
        about: &about,
    }
    .write()
    .map(|_| ())
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
