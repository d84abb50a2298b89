//! Adapters as a person meets them: a run that is killed, its export alone and merged, and what is refused.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

const MODEL: &str = "checkpoints/sysgen-nano-plain";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A run of a dozen steps on rows about nothing.
fn run(folder: &Path, sets: &[&str]) -> Command {
    let rows: String = (0..24)
        .map(|n| {
            let messages = json!([
                {"role": "system", "content": "Answer in capitals."},
                {"role": "user", "content": format!("Say the number {n}.")},
                {"role": "assistant", "content": format!("NUMBER {n}")},
            ]);
            format!(
                "{}\n",
                json!({"id": format!("row-{n}"), "messages": messages})
            )
        })
        .collect();
    std::fs::write(folder.join("rows.jsonl"), rows).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    command
        .current_dir(root())
        .args(["--config", "configs/quickstart.toml"]);
    let mut set = |value: &str| {
        command.args(["--set", value]);
    };
    set("generate=false");
    set(&format!(
        "data.path={}",
        folder.join("rows.jsonl").display()
    ));
    set(&format!("output_dir={}", folder.join("run").display()));
    for value in [
        "data.existing_system=keep",
        "train.method=qlora",
        "train.lora_r=4",
        "train.lora_dropout=0.1",
        "train.max_length=64",
        "train.max_steps=12",
        "train.save_steps=1",
        "train.samples=0",
        "export.adapter=keep",
        // In bf16 the adapter itself would be rounded before it is merged.
        "export.dtype=f32",
    ] {
        set(value);
    }
    for value in sets {
        set(value);
    }
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

fn adapter(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("run/export/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_killed_run_ends_with_the_adapter_of_an_undisturbed_one_and_it_can_be_merged() {
    let (calm, killed) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let started = Instant::now();
    succeed(run(calm.path(), &[]));
    let whole = started.elapsed();
    for share in [0.3, 0.6, 0.8] {
        let mut command = run(killed.path(), &[]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + whole.mul_f64(share);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(run(killed.path(), &[]));
    assert!(
        adapter(calm.path()) == adapter(killed.path()),
        "other bytes"
    );

    let export = calm.path().join("run/export");
    for name in [
        "adapter_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
    ] {
        assert!(export.join(name).is_file(), "{name}");
    }
    assert!(!export.join("model.safetensors").exists());
    let card = std::fs::read_to_string(export.join("README.md")).unwrap();
    assert!(card.contains("qlora (rank 4, alpha 32"), "{card}");

    let merged = calm.path().join("merged");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    command
        .current_dir(root())
        .args(["merge", "--model", MODEL, "--dtype", "f32"]);
    command
        .arg("--adapter")
        .arg(&export)
        .arg("--output")
        .arg(&merged);
    succeed(command);
    // The same as exporting the run's last checkpoint merged.
    let sets = [format!(
        "export.path={}",
        calm.path().join("whole").display()
    )];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let mut export = run(
        calm.path(),
        &[&sets[..], &["export.adapter=merge"]].concat(),
    );
    let arguments: Vec<_> = export.get_args().map(ToOwned::to_owned).collect();
    export = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    export.current_dir(root()).arg("export").args(arguments);
    succeed(export);
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(
        weights(&merged) == weights(&calm.path().join("whole")),
        "other bytes"
    );
}

#[test]
fn wrong_adapter_settings_are_one_clear_line() {
    let folder = TempDir::new().unwrap();
    for (set, expected) in [
        ("train.lora_target_modules=[\"qkv_proj\"]", "q_proj"),
        ("train.lora_r=0", "lora_r"),
        ("train.lora_dropout=1.0", "lora_dropout"),
        ("train.lora_adapter=/nowhere", "adapter_config.json"),
        ("train.method=full", "export.adapter"),
        ("train.use_doar=true", "use_dora"),
        ("export.checkpoint=/nowhere", "complete checkpoint"),
    ] {
        let output = run(folder.path(), &[set]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = said.lines().last().unwrap_or_default();
        assert!(
            !output.status.success() && last.contains(expected),
            "{set}: {said}"
        );
    }
}
