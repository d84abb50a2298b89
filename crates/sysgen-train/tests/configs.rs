//! The configs for published models, with stand-ins for what cannot be shipped: the shape of the real model, a small
//! tokenizer and template of our own, a few rows. Nothing is trained: what is wrong with a config shows before that.
#![allow(clippy::unwrap_used)]

#[path = "it/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Names of the configs that have a stand-in.
fn names() -> Vec<String> {
    let folder = std::fs::read_dir(root().join("tests/standins")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let shapes = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let mut names: Vec<String> = shapes
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    names.sort();
    assert!(names.len() >= 5, "{names:?}");
    names
}

/// A model folder without weights, and rows.
fn stand_in(name: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let model = dir.path().join("model");
    let refusing =
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}";
    let template = match name.starts_with("gemma") {
        true => format!("{refusing}{}", fixture::TEMPLATE),
        false => fixture::TEMPLATE.to_string(),
    };
    fixture::model_folder_with(&model, &template, fixture::VOCAB);
    let shape = root().join(format!("tests/standins/{name}.json"));
    std::fs::copy(shape, model.join("config.json")).unwrap();
    let rows: String = fixture::rows(8)
        .iter()
        .map(|row| format!("{}\n", json!({"id": row.id, "messages": row.messages})))
        .collect();
    std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    dir
}

fn run(name: &str, dir: &Path, command: &[&str], sets: &[String]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    program.current_dir(root()).args(command);
    program.args(["--config", &format!("configs/{name}.toml")]);
    let own = [
        format!("model.path={}", dir.join("model").display()),
        format!("data.path={}", dir.join("rows.jsonl").display()),
        format!("output_dir={}", dir.join("run").display()),
        "device=cpu".to_string(),
    ];
    for set in own.iter().chain(sets) {
        program.args(["--set", set]);
    }
    let output = program.output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{name} {command:?} {sets:?}: {said}"
    );
    said
}

/// The keys of a block at a config's end, as overrides.
fn block(name: &str, title: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(format!("configs/{name}.toml"))).unwrap();
    let (_, block) = text.split_once(title).unwrap();
    let (mut section, mut sets) = ("", Vec::new());
    for line in block
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("# "))
    {
        let line = line.trim_start_matches("# ");
        let line = line.split("  #").next().unwrap().trim();
        match line.strip_prefix('[') {
            Some(name) => section = name.trim_end_matches(']'),
            None => sets.push(format!("{section}.{}", line.replacen(" = ", "=", 1))),
        }
    }
    assert!(sets.len() >= 6, "{name}: {sets:?}");
    sets
}

fn one_gpu(name: &str) -> Vec<String> {
    block(name, "# ---- One GPU")
}

fn all_weights(name: &str) -> Vec<String> {
    block(name, "# ---- All weights")
}

#[test]
fn every_config_for_a_published_model_can_be_read_and_planned() {
    for name in names() {
        let dir = stand_in(&name);
        for sets in [Vec::new(), one_gpu(&name), all_weights(&name)] {
            let shown = run(&name, dir.path(), &["--dry-run"], &sets);
            // The paper's numbers, unless the block for one GPU replaces them.
            let lines = [
                "max_length = 4096",
                "warmup_steps = 10",
                "num_train_epochs = 5",
            ];
            let stated = [
                "learning_rate = 0.000001",
                "per_device_train_batch_size = 4",
            ];
            let stated = if sets.is_empty() { &stated[..] } else { &[] };
            for line in lines.iter().chain(stated) {
                assert!(shown.contains(line), "{name}: {line} is not in\n{shown}");
            }
            let planned = run(&name, dir.path(), &["plan"], &sets);
            assert!(
                planned.contains("weights") && planned.contains("optimizer"),
                "{planned}"
            );
        }
    }
}

/// What `plan` says of a config with a block of its end, in so much memory.
fn fits(name: &str, sets: Vec<String>, memory: &str) -> bool {
    let dir = stand_in(name);
    let command = ["plan", "--json", "--device-memory", memory];
    let said = run(name, dir.path(), &command, &sets);
    let json = said.lines().find(|line| line.starts_with('{')).unwrap();
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    json["fits"].as_bool().unwrap()
}

#[test]
fn the_blocks_at_the_ends_of_the_configs_plan_into_one_device() {
    // Phi-4 with adapters at 4096 tokens, in f32 as a device has it today.
    assert!(fits("phi4", one_gpu("phi4"), "80GB"));
    // Its full fine-tuning, and not as the paper has it.
    assert!(fits("phi4", all_weights("phi4"), "141GB"));
    assert!(!fits("phi4", Vec::new(), "141GB"));
    let qlora = || {
        let mut sets = one_gpu("llama31-8b");
        sets.push("train.method=qlora".to_string());
        sets
    };
    assert!(fits("llama31-8b", qlora(), "24GB"));
    assert!(!fits("llama31-8b", all_weights("llama31-8b"), "24GB"));
}
