//! `bench` and `doctor` from the command line, on the golden models.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_path_buf()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sysgen-train"))
        .current_dir(root())
        .args(arguments)
        .output()
        .unwrap()
}

/// The lines of a program that succeeds.
fn lines(arguments: &[&str]) -> Vec<String> {
    let output = run(arguments);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout.lines().map(str::to_owned).collect()
}

fn json(arguments: &[&str]) -> Vec<Value> {
    let lines = lines(arguments);
    let parsed = lines.iter().map(|line| serde_json::from_str(line).unwrap());
    parsed.collect()
}

/// The one line that says what is wrong.
fn error_line(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} went through");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr[stderr.find("error: ").unwrap()..].to_owned()
}

fn losses(report: &Value) -> Vec<f64> {
    let losses = report["first_losses"].as_array().unwrap().iter();
    losses.map(|loss| loss.as_f64().unwrap()).collect()
}

const LLAMA: &str = "tests/golden/llama31";
const SMALL: [&str; 6] = ["--batch", "4", "--seq", "16", "--steps", "3"];

/// `bench` on a small step, with further flags.
fn bench<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let device: &[&str] = if flags.contains(&"--device") {
        &[]
    } else {
        &["--device", "cpu"]
    };
    [&["bench"], &SMALL[..], device, flags].concat()
}

#[test]
fn a_bench_prints_one_object_with_finite_losses() {
    let report = &json(&bench(&["--model", LLAMA, "--peak-tflops", "1", "--json"]))[0];
    assert_eq!(report["weights"], "loaded");
    assert_eq!(report["parameters"], 170_432);
    assert_eq!(report["batch"], serde_json::json!([4, 16]));
    assert_eq!(report["steps_timed"], 2);
    assert_eq!(losses(report).len(), 3);
    assert!(
        losses(report).iter().all(|loss| loss.is_finite()),
        "{report}"
    );
    for key in [
        "step_s_median",
        "tokens_per_s_best",
        "supervised_tokens_per_s",
        "mfu",
    ] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let text = lines(&bench(&["--model", LLAMA])).join("\n");
    assert!(
        text.contains("loaded weights") && text.contains("tokens/s"),
        "{text}"
    );
}

#[test]
fn how_a_step_is_cut_does_not_change_its_loss() {
    let whole = json(&bench(&["--model", LLAMA, "--json"]));
    let parts = json(&bench(&[
        "--model",
        LLAMA,
        "--micro-batches",
        "3",
        "--json",
    ]));
    for (one, other) in losses(&whole[0]).iter().zip(losses(&parts[0])) {
        assert!((one - other).abs() < 1e-6, "{one} and {other}");
    }
}

#[test]
fn a_bare_config_is_benched_with_random_weights_and_says_so() {
    let config = format!("{LLAMA}/config.json");
    let share = ["--supervised-share", "0.25"];
    let flags = [&["--model", &config, "--json"], &share[..]].concat();
    let report = &json(&bench(&flags))[0];
    assert_eq!(report["weights"], "random");
    let (all, learnt) = (
        report["tokens_per_s_median"].as_f64().unwrap(),
        report["supervised_tokens_per_s"].as_f64().unwrap(),
    );
    assert!((learnt / all - 0.25).abs() < 1e-3, "{report}");
}

#[test]
fn matrix_products_are_benched_without_a_model() {
    let figures = json(&[
        "bench",
        "--matmul",
        "8x16x24,4x4x4",
        "--device",
        "cpu",
        "--json",
    ]);
    assert_eq!(figures.len(), 2);
    assert_eq!(figures[0]["matmul"], serde_json::json!([8, 16, 24]));
    assert!(figures[0]["seconds_median"].as_f64().unwrap() > 0.0);
}

#[test]
fn wrong_bench_input_is_one_clear_line() {
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--model", "/nowhere"], &["--model", "/nowhere"]),
        (&["--model", "README.md"], &["--model", "README.md", "JSON"]),
        (&["--model", LLAMA, "--inputs", "/nowhere"], &["/nowhere"]),
        (
            &[
                "--model",
                LLAMA,
                "--inputs",
                "tests/golden/llama31/model.safetensors",
            ],
            &["train.input_ids", "lm_head.weight"],
        ),
        (
            &["--model", LLAMA, "--micro-batches", "9"],
            &["--micro-batches 9", "--batch"],
        ),
        (&["--model", LLAMA, "--device", "gpu"], &["gpu", "cuda"]),
        (&["--matmul", "2x3"], &["MxKxN"]),
    ];
    for (flags, expected) in cases {
        let said = error_line(&bench(flags));
        for word in expected {
            assert!(
                said.contains(word),
                "{flags:?}: {word:?} is not in {said:?}"
            );
        }
    }
}

#[test]
fn the_doctor_finds_the_cpu_in_order() {
    let figures = json(&["doctor", "--device", "cpu", "--json"]);
    let checks = |check: &str| -> Vec<&Value> {
        figures
            .iter()
            .filter(|figure| figure["check"] == check)
            .collect()
    };
    assert!(!checks("machine").is_empty());
    let golden = checks("golden");
    assert!(golden.len() >= 8 * 9, "{} figures", golden.len());
    assert!(golden.iter().all(|figure| figure["ok"] == true));
    let text = lines(&["doctor", "--device", "cpu"]).join("\n");
    assert!(text.contains("cpu is fine"), "{text}");
}

#[test]
fn the_doctor_fails_where_a_number_is_wrong_or_nothing_can_be_checked() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("llama31");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(root().join(LLAMA)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let reference = std::fs::read_to_string(model.join("reference.json")).unwrap();
    let changed = reference.replacen("\"mean_loss\": 6.8", "\"mean_loss\": 7.8", 1);
    assert_ne!(reference, changed);
    std::fs::write(model.join("reference.json"), changed).unwrap();
    let golden = folder.path().to_str().unwrap();
    let said = error_line(&["doctor", "--device", "cpu", "--golden", golden]);
    assert!(
        said.contains("1 of") && said.contains("out of tolerance"),
        "{said}"
    );

    let said = error_line(&["doctor", "--device", "cpu", "--golden", "crates"]);
    assert!(said.contains("--golden crates"), "{said}");
}
