//! `sysgen-data bench` from the command line, on a golden model.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama31");

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sysgen-data"))
        .args(["bench", "--model", LLAMA, "--device", "cpu"])
        .args(arguments)
        .output()
        .unwrap()
}

fn report(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An inputs file with one prompt.
fn write_inputs(path: &Path, ids: &[i64]) {
    let header = format!(
        r#"{{"prompt.input_ids":{{"dtype":"I64","shape":[1,{}],"data_offsets":[0,{}]}}}}"#,
        ids.len(),
        ids.len() * 8
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn the_first_ids_are_those_of_pytorch_whatever_the_batch() {
    let reference = std::fs::read(Path::new(LLAMA).join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let ids = |name: &str| -> Vec<i64> {
        serde_json::from_value(reference["greedy"][name][0].clone()).unwrap()
    };
    let (prompt, expected) = (ids("prompts"), ids("continuations"));
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("inputs.safetensors");
    write_inputs(&inputs, &prompt);
    let length = prompt.len().to_string();
    for batch in ["1", "3"] {
        let inputs = inputs.to_str().unwrap();
        let flags = [
            "--inputs", inputs, "--prompt", &length, "--new", "20", "--batch", batch,
        ];
        let report = report(&[&flags[..], &["--repeats", "1"]].concat());
        let first: Vec<i64> = serde_json::from_value(report["first_tokens_row0"].clone()).unwrap();
        assert_eq!(first, expected[..16]);
        assert_eq!(report["occupancy"], 1.0);
        assert!(report["tokens_per_s_best"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_shared_prefix_is_computed_once() {
    let flags = [
        "--batch",
        "4",
        "--prompt",
        "40",
        "--new",
        "2",
        "--repeats",
        "1",
    ];
    assert_eq!(report(&flags)["reused_tokens"], 0);
    let shared = report(&[&flags[..], &["--shared-prefix", "32"]].concat());
    assert_eq!(shared["reused_tokens"], 3 * 32);
}

#[test]
fn wrong_input_is_one_clear_line() {
    let cases: [(&[&str], &str); 4] = [
        (&["--inputs", "/nowhere"], "/nowhere"),
        (
            &["--prompt", "8", "--shared-prefix", "9"],
            "--shared-prefix 9",
        ),
        (&["--new", "1000000"], "max_position_embeddings"),
        (&["--batch", "0"], "--batch"),
    ];
    for (flags, expected) in cases {
        let output = run(flags);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && !stderr.contains("panicked"),
            "{flags:?}"
        );
        assert!(
            stderr.contains("error: ") && stderr.contains(expected),
            "{stderr}"
        );
    }
}
