//! The program itself, from the command line, on the embedded model: what a person sees and what is left on disk.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A share of an undisturbed run's time after which a run is killed.
const KILL_AFTER: [f64; 4] = [0.2, 0.35, 0.5, 0.75];
const CONFIG: &str = "configs/quickstart.toml";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_path_buf()
}

/// The quickstart made small, into `output`, with further `--set`s.
fn quickstart(output: &Path, sets: &[&str]) -> Command {
    with_quickstart(&[], output, sets)
}

/// A command on the small quickstart.
fn with_quickstart(subcommand: &[&str], output: &Path, sets: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    command
        .current_dir(root())
        .env("NO_COLOR", "1")
        .args(subcommand)
        .args(["--config", CONFIG]);
    let mut set = |value: String| {
        command.args(["--set", &value]);
    };
    set(format!("output_dir={}", output.display()));
    set(format!("export.path={}", output.join("export").display()));
    for value in [
        "data.limit=16",
        "train.max_steps=8",
        "train.save_steps=2",
        "train.eval_fraction=0.2",
    ] {
        set(value.to_string());
    }
    for value in sets {
        set(value.to_string());
    }
    command
}

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

fn start(mut command: Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn succeed(command: Command) -> String {
    let output = output(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// What the run is for: the data set, its manifest, and the trained weights.
fn results(output: &Path) -> Vec<(&'static str, Vec<u8>)> {
    [
        "data/dataset.jsonl",
        "data/manifest.json",
        "export/model.safetensors",
    ]
    .into_iter()
    .map(|name| {
        (
            name,
            std::fs::read(output.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")),
        )
    })
    .collect()
}

fn assert_same_results(one: &Path, other: &Path) {
    for ((name, one), (_, other)) in results(one).into_iter().zip(results(other)) {
        assert!(one == other, "{name} differs");
    }
}

/// The one line that says what is wrong.
fn error_line(command: Command) -> String {
    let output = output(command);
    assert!(
        !output.status.success(),
        "it went through: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let at = stderr
        .find("error: ")
        .unwrap_or_else(|| panic!("no error line in {stderr:?}"));
    stderr[at..].to_string()
}

#[test]
fn killed_runs_end_with_the_bytes_of_an_undisturbed_run() {
    let (calm, killed) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let started = Instant::now();
    succeed(quickstart(calm.path(), &[]));
    let whole = started.elapsed();
    for share in KILL_AFTER {
        let mut child = start(quickstart(killed.path(), &[]));
        let until = Instant::now() + whole.mul_f64(share);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Another batch size as well: what a row says must not depend on its neighbours.
    succeed(quickstart(killed.path(), &["generate.batch_size=5"]));
    assert_same_results(calm.path(), killed.path());
}

#[test]
fn an_interrupted_run_says_how_to_go_on_and_a_finished_one_how_to_ask_it() {
    let (calm, stopped) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    succeed(quickstart(calm.path(), &[]));
    let child = {
        let mut command = quickstart(stopped.path(), &[]);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // As soon as the first row is written, so that there is something to go on from.
    let log = stopped.path().join("data/log.jsonl");
    while std::fs::metadata(&log).map_or(0, |file| file.len()) < 4096 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let signalled = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(signalled.success());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "an interrupt that saves is not a failure"
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("Run the same command again"), "{said}");

    succeed(quickstart(stopped.path(), &[]));
    assert_same_results(calm.path(), stopped.path());
    let again = succeed(quickstart(stopped.path(), &[]));
    assert!(again.contains("nothing was done again"), "{again}");

    let mut printed = again.lines().skip_while(|line| *line != "Ask it:");
    let mut shell = Command::new("sh");
    shell
        .current_dir(root())
        .args(["-c", printed.nth(2).unwrap()]);
    assert!(!succeed(shell).is_empty());
}

#[test]
fn two_processes_do_not_share_an_output_folder() {
    let folder = TempDir::new().unwrap();
    let mut first = start(quickstart(folder.path(), &[]));
    while !folder.path().join("data").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = error_line(quickstart(folder.path(), &[]));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn another_run_is_not_mixed_into_an_output_folder() {
    let folder = TempDir::new().unwrap();
    succeed(quickstart(
        folder.path(),
        &["train=false", "export=false", "data.limit=4"],
    ));
    let before = std::fs::read(folder.path().join("data/dataset.jsonl")).unwrap();
    let said = error_line(quickstart(folder.path(), &["seed=7", "data.limit=4"]));
    assert!(said.contains("seed"), "{said}");
    assert_eq!(
        before,
        std::fs::read(folder.path().join("data/dataset.jsonl")).unwrap()
    );
}

#[test]
fn wrong_input_is_one_clear_line() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty.jsonl");
    std::fs::write(&empty, "").unwrap();
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"question\": \"no answer\"}\nnot json\n[1, 2]\n").unwrap();
    let output_dir = folder.path().join("run");
    let cases: [(String, &[&str]); 9] = [
        (
            "train.lerning_rate=1".into(),
            &["lerning_rate", "did you mean `learning_rate`"],
        ),
        ("trian.learning_rate=1".into(), &["trian", "train"]),
        ("train.learning_rate=-1".into(), &["learning_rate"]),
        (
            "train.num_train_epochs=\"three\"".into(),
            &["num_train_epochs"],
        ),
        ("model.path=/nowhere".into(), &["model.path", "/nowhere"]),
        (
            "data.path=/nowhere.jsonl".into(),
            &["data.path", "/nowhere.jsonl"],
        ),
        (format!("data.path={}", empty.display()), &["empty.jsonl"]),
        (format!("data.path={}", rows.display()), &["rows.jsonl"]),
        ("device=cuda:7".into(), &["cuda"]),
    ];
    for (set, expected) in cases {
        let said = error_line(quickstart(&output_dir, &[&set]));
        for word in expected {
            assert!(said.contains(word), "{set}: {word:?} is not in {said:?}");
        }
        assert!(
            !output_dir.join("data/dataset.jsonl").exists(),
            "{set} wrote a data set"
        );
    }
}

/// What other runs make, the user's own rows, and published models (see `configs.rs`) are all that may be missing in a
/// fresh clone.
#[test]
fn every_config_is_sound() {
    let configs = std::fs::read_dir(root().join("configs")).unwrap();
    let configs = configs.map(|entry| entry.unwrap().path());
    let mut found = 0;
    for config in configs.filter(|path| path.extension().is_some_and(|end| end == "toml")) {
        found += 1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
        command.current_dir(root()).arg("--config").arg(&config);
        let output = command.arg("--dry-run").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let missing = |line: &&str| {
            ["\"models/", "\"data/", "\"runs/"].iter().any(|path| {
                line.contains(&format!("path = {path}"))
                    || line.contains(&format!("teacher = {path}"))
            }) && line.contains("does not exist")
        };
        let faults = said
            .lines()
            .filter(|line| line.contains(".toml"))
            .collect::<Vec<_>>();
        assert!(
            output.status.success() || (!faults.is_empty() && faults.iter().all(missing)),
            "{}: {said}",
            config.display()
        );
    }
    assert!(found >= 3, "{found} configs");
}

#[test]
fn check_says_that_there_is_no_data_yet() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    let output_dir = format!("output_dir={}", folder.path().display());
    command.current_dir(root());
    command.args(["check", "--config", CONFIG, "--set", &output_dir]);
    let said = error_line(command);
    assert!(
        said.contains("data/dataset.jsonl is not there yet") && said.contains("`sysgen-data`"),
        "{said}"
    );
}

#[test]
fn a_reader_who_goes_away_is_no_failure() {
    let folder = TempDir::new().unwrap();
    let mut command = quickstart(folder.path(), &[]);
    command.arg("--dry-run").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_exported_model_answers_under_a_system_message() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
    command
        .current_dir(root())
        .args(["answer", "--model", "checkpoints/sysgen-nano", "--json"]);
    command.args([
        "--system",
        "You are a chef. Keep the answer short.",
        "--user",
        "How do I make rice?",
    ]);
    let said: serde_json::Value = serde_json::from_str(&succeed(command)).unwrap();
    assert_eq!(said["finish"], "stop", "{said}");
    assert!(said["text"].as_str().unwrap().contains("rice"), "{said}");
}

#[test]
fn a_question_that_cannot_be_asked_is_refused_with_its_option() {
    let nano = "checkpoints/sysgen-nano";
    for (arguments, expected) in [
        (["nowhere", "--seed", "1"], "--model nowhere does not exist"),
        (
            ["configs", "--seed", "1"],
            "--model configs has no config.json",
        ),
        ([nano, "--temperature", "-1"], "--temperature -1 must be 0"),
        (
            [nano, "--temperature", "nan"],
            "--temperature NaN must be 0",
        ),
        (
            [nano, "--max-tokens", "0"],
            "--max-tokens must be at least 1",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
        command.current_dir(root());
        command
            .args(["answer", "--user", "hi", "--model"])
            .args(arguments);
        let said = error_line(command);
        assert!(said.contains(expected), "{said}");
    }
}
