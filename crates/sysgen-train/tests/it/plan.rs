//! `plan` and the number format of the weights: what lies on the disk counts, not what `config.json` says of it.

use std::path::Path;

use serde_json::{Value, json};
use sysgen_model::{Decoder, Device, ExportDtype, ModelConfig, StoredDtype};

use crate::command::{Folder, succeeds, text};

/// Bytes of the weights by the plan of LoRA training, and what was said beside it.
fn weights(folder: &Folder, sets: &[&str]) -> (u64, String) {
    let mut command = folder.command(&["plan", "--json", "--set", "train.method=lora"]);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    let plan: Value = serde_json::from_str(&succeeds(&output)).unwrap();
    let bytes = plan["memory_bytes"]["weights"].as_u64().unwrap();
    (bytes, text(&output).1)
}

/// Has `config.json` say another format.
fn claim(model: &Path, dtype: &str) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["torch_dtype"] = json!(dtype);
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn a_plan_goes_by_the_heads_of_the_files_and_says_where_config_json_differs() {
    const PRETRAINED: &str = "model.init=pretrained";
    let folder = Folder::new("max_steps = 2");
    let model = folder.dir.path().join("model");
    let shape = ModelConfig::from_directory(&model).unwrap();
    // Only `config.json` is there, or an index whose files are not.
    let (wide, said) = weights(&folder, &[PRETRAINED]);
    assert!(!said.contains("safetensors"), "{said}");
    claim(&model, "bfloat16");
    let (half, _) = weights(&folder, &[PRETRAINED]);
    assert!(half < wide, "{half} {wide}");
    let index = model.join("model.safetensors.index.json");
    let map = json!({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}});
    std::fs::write(&index, map.to_string()).unwrap();
    assert_eq!(weights(&folder, &[PRETRAINED]).0, half);
    std::fs::remove_file(index).unwrap();

    for (stored, word, other, expected) in [
        (StoredDtype::F32, "float32", "bfloat16", wide),
        (StoredDtype::Bf16, "bfloat16", "float32", half),
    ] {
        let random = Decoder::random(shape.clone(), 1, &Device::flex());
        random.save(&model, ExportDtype::Of(stored), None).unwrap();
        let (bytes, said) = weights(&folder, &[PRETRAINED]);
        assert_eq!(bytes, expected);
        assert!(!said.contains("what counts"), "{said}");
        claim(&model, other);
        let (bytes, said) = weights(&folder, &[PRETRAINED]);
        assert_eq!(bytes, expected, "{word}");
        let expected = format!(
            "model: config.json says {other}, but the safetensors files hold {word}, which is what counts"
        );
        assert!(said.contains(&expected), "{said}");
    }
    // Random weights are made in f32.
    claim(&model, "bfloat16");
    assert_eq!(weights(&folder, &["model.init=random"]).0, wide);

    // The same of a teacher, which stays in bf16 where it is stored so.
    claim(&model, "float32");
    let teacher = ["model.init=random", "distill.teacher=model"];
    let (_, said) = weights(&folder, &teacher);
    assert!(said.contains("hold bfloat16"), "{said}");

    let file = model.join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let output = folder.run(&["plan", "--set", PRETRAINED]);
    let (_, said) = text(&output);
    assert!(
        !output.status.success() && said.contains("model.safetensors is truncated"),
        "{said}"
    );
}
