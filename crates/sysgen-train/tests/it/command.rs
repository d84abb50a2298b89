//! The program as a person uses it: one config file, run, stopped, run again.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::fixture;

/// A folder to run the program in: a model, rows and `c.toml`.
pub(crate) struct Folder {
    pub(crate) dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new(train: &str) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        fixture::model_folder(&dir.path().join("model"));
        let rows: Vec<String> = fixture::rows(60)
            .iter()
            .map(|row| serde_json::json!({"messages": row.messages}).to_string())
            .collect();
        std::fs::write(dir.path().join("rows.jsonl"), rows.join("\n")).unwrap();
        let config = format!(
            "output_dir = \"run\"\ndevice = \"cpu\"\n[model]\npath = \"model\"\ninit = \"random\"\n[data]\npath = \"rows.jsonl\"\n\
             [train]\nmax_length = 128\nlearning_rate = 5e-3\nwarmup_steps = 2\nsamples = 2\n{train}\n[export]\n"
        );
        std::fs::write(dir.path().join("c.toml"), config).unwrap();
        Folder { dir }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
        command
            .current_dir(self.dir.path())
            .args(arguments)
            .args(["--config", "c.toml"])
            .env("NO_COLOR", "1");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }
}

/// What was printed, and what was said beside it.
pub(crate) fn text(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// What a run that went well printed.
pub(crate) fn succeeds(output: &Output) -> String {
    let (stdout, stderr) = text(output);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "{} never came",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn interrupt(child: &std::process::Child, signal: &str) {
    assert!(
        Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_run_trains_exports_and_is_not_repeated() {
    let folder = Folder::new("max_steps = 8\nsave_steps = 4");
    let stdout = succeeds(&folder.run(&[]));
    assert!(
        stdout.contains("Held-out loss:") && stdout.contains("AutoModelForCausalLM"),
        "{stdout}"
    );
    for name in [
        "metrics.jsonl",
        "config.toml",
        "summary.json",
        "summary.txt",
        "export/model.safetensors",
        "checkpoint-8",
    ] {
        assert!(folder.path(name).exists(), "{name} is absent");
    }
    let metrics = std::fs::read(folder.path("metrics.jsonl")).unwrap();
    let again = succeeds(&folder.run(&[]));
    assert!(
        again.contains("complete") && again.contains("Held-out loss:"),
        "{again}"
    );
    assert_eq!(
        std::fs::read(folder.path("metrics.jsonl")).unwrap(),
        metrics
    );

    let refused = folder.run(&["--set", "train.learning_rate=1e-4"]);
    let (_, stderr) = text(&refused);
    assert!(
        !refused.status.success() && stderr.contains("learning_rate was 0.005, is 0.0001"),
        "{stderr}"
    );
}

#[test]
fn a_run_that_exports_an_adapter_is_not_repeated_until_a_file_it_names_changes() {
    let folder = Folder::new("max_steps = 2\nmethod = \"lora\"\nlora_r = 2\neval_fraction = 0.0");
    // Adapters belong to weights that lie in the model's folder.
    let model = folder.dir.path().join("model");
    let f32 = sysgen_model::ExportDtype::Of(sysgen_model::StoredDtype::F32);
    fixture::decoder(&model).save(&model, f32, None).unwrap();
    let benchmark = folder.dir.path().join("benchmark.txt");
    std::fs::write(&benchmark, "Nobody asks this.").unwrap();
    let arguments = [
        "model.init=pretrained",
        "export.adapter=keep",
        "data.decontaminate=benchmark.txt",
    ];
    let arguments: Vec<&str> = arguments.iter().flat_map(|set| ["--set", set]).collect();
    let run = || succeeds(&folder.run(&arguments));
    run();
    assert!(folder.path("export/adapter_config.json").exists());
    assert!(run().contains("nothing was done again"));
    std::fs::write(&benchmark, "Nor does anybody ask this.").unwrap();
    assert!(!run().contains("nothing was done again"));
    assert!(run().contains("nothing was done again"));
}

#[test]
fn a_signal_saves_and_the_same_command_goes_on() {
    let undisturbed = Folder::new("max_steps = 60");
    succeeds(&undisturbed.run(&["-q"]));

    let folder = Folder::new("max_steps = 60");
    for signal in ["-TERM", "-INT", "-USR1"] {
        let child = folder
            .command(&[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(&folder.path("metrics.jsonl"));
        std::thread::sleep(Duration::from_millis(300));
        interrupt(&child, signal);
        let stdout = succeeds(&child.wait_with_output().unwrap());
        assert!(
            stdout.contains("Run the same command again") || stdout.contains("Held-out loss"),
            "{stdout}"
        );
    }
    // No warning at all: killed while it works, it goes on from what was saved.
    let mut child = folder
        .command(&[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let _ = child.kill();
    child.wait().unwrap();
    succeeds(&folder.run(&["-q"]));
    let weights = |folder: &Folder| std::fs::read(folder.path("export/model.safetensors")).unwrap();
    assert!(
        weights(&folder) == weights(&undisturbed),
        "the exported weights differ"
    );
}

#[test]
fn every_signal_that_asks_to_stop_saves_and_is_no_failure() {
    for signal in ["-TERM", "-INT", "-USR1"] {
        let folder = Folder::new("max_steps = 1000000\nsave_steps = 0\nnum_train_epochs = 1e6");
        let child = folder
            .command(&[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(&folder.path("row_losses.jsonl"));
        interrupt(&child, signal);
        let stdout = succeeds(&child.wait_with_output().unwrap());
        assert!(
            stdout.contains("Run the same command again"),
            "{signal}: {stdout}"
        );
        let saved = sysgen_train::checkpoint::find(&folder.path("")).unwrap();
        assert_eq!(saved.complete.len(), 1, "{signal}");
        let name = saved.complete[0].path.file_name().unwrap();
        assert!(
            stdout.contains(&*name.to_string_lossy()),
            "{signal}: {stdout}"
        );
    }
}

#[test]
fn steps_say_loss_speed_what_is_learnt_and_how_long_it_will_take() {
    let folder = Folder::new("max_steps = 4\nsave_steps = 0");
    let (_, stderr) = text(&folder.run(&[]));
    let line = stderr.lines().find(|line| line.contains("step 2/4"));
    let line = line.unwrap_or_else(|| panic!("{stderr}"));
    for word in ["loss ", " tokens/s", " % learnt", " left"] {
        assert!(line.contains(word), "{line}");
    }
    assert!(
        !stderr.contains('\r') && !stderr.contains('\u{1b}'),
        "not plain: {stderr:?}"
    );
}

#[test]
fn a_checkpoint_of_another_model_is_refused_and_a_half_written_one_is_passed_over() {
    let folder = Folder::new("max_steps = 8\nsave_steps = 3\nsave_total_limit = 0");
    succeeds(&folder.run(&["-q"]));
    std::fs::remove_file(folder.path("summary.json")).unwrap();
    // Cut short, as by a power cut on a disk that renames before it writes.
    let newest = folder.path("checkpoint-8/model.safetensors");
    let weights = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &weights[..weights.len() / 2]).unwrap();
    let (_, stderr) = text(&folder.run(&[]));
    for said in [
        "checkpoint-8 is not complete and is ignored: model.safetensors has",
        "going on from run/checkpoint-6",
    ] {
        assert!(stderr.contains(said), "{stderr}");
    }
    let again = std::fs::read(&newest).unwrap();
    assert!(again == weights, "the steps that were lost were done again");

    std::fs::remove_file(folder.path("summary.json")).unwrap();
    let config = folder.dir.path().join("model/config.json");
    let text_of = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text_of.replace("\"intermediate_size\":48", "\"intermediate_size\":64"),
    )
    .unwrap();
    let refused = folder.run(&[]);
    let (_, stderr) = text(&refused);
    assert!(!refused.status.success(), "{stderr}");
    for said in [
        "checkpoint-8 belongs to another run: model files was ",
        "set another output_dir",
    ] {
        assert!(stderr.contains(said), "{stderr}");
    }
}

#[test]
fn check_shows_rows_and_refuses_a_broken_template() {
    let folder = Folder::new("");
    let stdout = succeeds(&folder.run(&["check", "--html", "check.html"]));
    let page = std::fs::read_to_string(folder.dir.path().join("check.html")).unwrap();
    assert!(page.contains("<mark>"), "{page}");
    assert!(
        stdout.contains("⟦")
            && stdout.contains("the stop token is learnt")
            && stdout.contains("No problem found in 60 rows"),
        "{stdout}"
    );
    assert!(
        !folder.path("config.toml").exists(),
        "check wrote into the run"
    );

    let deaf = fixture::TEMPLATE.replace(
        "{{ message['content'] }}",
        "{{ message['content'] | replace('capitals', 'c') }}",
    );
    fixture::model_folder_with(&folder.dir.path().join("model"), &deaf, fixture::VOCAB);
    for arguments in [&["check"][..], &[]] {
        let output = folder.run(arguments);
        let (_, stderr) = text(&output);
        assert!(
            !output.status.success() && stderr.contains("training would go wrong"),
            "{stderr}"
        );
    }
    assert!(!folder.path("metrics.jsonl").exists());
}

#[test]
fn export_writes_the_newest_checkpoint() {
    let folder = Folder::new("max_steps = 2");
    succeeds(&folder.run(&["--set", "export=false"]));
    assert!(!folder.path("export").exists());
    let stdout = succeeds(&folder.run(&["export"]));
    assert!(stdout.contains("exported to run/export"), "{stdout}");
    let checkpoint = std::fs::read(folder.path("checkpoint-2/model.safetensors")).unwrap();
    assert!(std::fs::read(folder.path("export/model.safetensors")).unwrap() == checkpoint);
}

/// What is said of the exported model.
fn card(folder: &Folder) -> String {
    std::fs::read_to_string(folder.path("export/README.md")).unwrap()
}

#[test]
fn the_best_model_is_exported_and_its_card_speaks_of_it() {
    let folder = Folder::new(
        "max_steps = 12\neval_steps = 1\nload_best_model_at_end = true\neval_fraction = 0.2\nlr_scheduler_type = \"constant\"",
    );
    succeeds(&folder.run(&["--set", "train.learning_rate=1.0"]));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path("summary.json")).unwrap()).unwrap();
    let best = summary["best_step"].as_u64().unwrap();
    let loss = format!(
        "| held-out loss after | {} |",
        summary["held_out_loss_after"]
    );
    let steps = format!("| steps | {best} |");
    let said = card(&folder);
    assert!(
        said.contains(&steps) && said.contains(&loss) && said.contains("best evaluation of 12"),
        "{said}"
    );
    let weights = || std::fs::read(folder.path("export/model.safetensors")).unwrap();
    let by_the_run = weights();
    succeeds(&folder.run(&["export", "--set", "train.learning_rate=1.0"]));
    assert!(weights() == by_the_run, "export takes another checkpoint");
    let said = card(&folder);
    assert!(said.contains(&steps) && said.contains(&loss), "{said}");
}

#[test]
fn a_checkpoint_is_not_exported_with_another_model_or_template() {
    let folder = Folder::new("max_steps = 2\nmethod = \"lora\"");
    succeeds(&folder.run(&["--set", "export=false"]));
    let other = folder.dir.path().join("other");
    fixture::model_folder(&other);
    for (set, expected) in [
        ("model.path=other", "model.path was model, is other"),
        (
            "model.system_role=own_turn",
            "tokenizer and chat template was",
        ),
        (
            "model.init=pretrained",
            "model.init was random, is pretrained",
        ),
    ] {
        let (_, stderr) = text(&folder.run(&["export", "--set", set]));
        assert!(
            stderr.contains("was trained with another model") && stderr.contains(expected),
            "{set}: {stderr}"
        );
        assert!(!folder.path("export").exists(), "{set}");
    }
    succeeds(&folder.run(&["export", "--set", "train.learning_rate=1.0"]));
}

#[test]
fn a_folder_that_is_no_export_is_named_before_anything_is_done() {
    let folder = Folder::new("max_steps = 2");
    std::fs::create_dir(folder.dir.path().join("mine")).unwrap();
    std::fs::write(folder.dir.path().join("mine/thesis.tex"), "years").unwrap();
    let (_, stderr) = text(&folder.run(&["--set", "export.path=mine"]));
    assert!(
        stderr.contains("export.path: mine holds files that are not an export"),
        "{stderr}"
    );
    assert!(!folder.path("metrics.jsonl").exists());
}

#[test]
fn a_dry_run_prints_the_effective_config_and_writes_nothing() {
    let folder = Folder::new("");
    let stdout = succeeds(&folder.run(&["--dry-run", "--set", "train.max_steps=7"]));
    assert!(
        stdout.contains("max_steps = 7") && stdout.contains("adam_beta2 = 0.999"),
        "{stdout}"
    );
    assert!(!folder.dir.path().join("run").exists());
}

/// A limit on file sizes stands for the full disk: writing fails in the middle of a checkpoint, whoever runs the test.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_good_one_and_says_so() {
    let folder =
        Folder::new("max_steps = 40\nsave_steps = 3\nsave_total_limit = 0\nlogging_steps = 40");
    let child = folder
        .command(&[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&folder.path("checkpoint-3/trainer_state.json"));
    interrupt(&child, "-TERM");
    succeeds(&child.wait_with_output().unwrap());
    let newest = |folder: &Folder| sysgen_train::checkpoint::find(&folder.path("")).unwrap();
    let before = newest(&folder).complete.pop().unwrap();
    assert!(
        before.state.progress.step < 40,
        "it finished before the signal"
    );
    let limited = Command::new("bash")
        .current_dir(folder.dir.path())
        .args(["-c", "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_sysgen-train"))
        .args(["--config", "c.toml"])
        .output()
        .unwrap();
    let (_, stderr) = text(&limited);
    assert!(
        !limited.status.success() && !stderr.contains("panicked"),
        "{stderr}"
    );
    let name = before
        .path
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    for said in [
        "training stops at step",
        &name,
        "`ulimit -f` allows; raise it",
    ] {
        assert!(stderr.contains(said), "{stderr}");
    }
    let after = newest(&folder);
    assert_eq!(after.complete.last().unwrap().path, before.path);
    assert!(after.incomplete.is_empty(), "{:?}", after.incomplete);
    // With room again the same command goes on.
    succeeds(&folder.run(&["-q"]));
}

/// A disk of its own for the output: it fills up, is made larger, and the same command ends with the bytes of an undisturbed run.
#[test]
fn a_full_disk_leaves_the_last_good_checkpoint_and_says_how_much_is_missing() {
    let train = "max_steps = 12\nsave_steps = 3\nsave_total_limit = 0";
    let undisturbed = Folder::new(train);
    succeeds(&undisturbed.run(&["-q"]));
    let folder = Folder::new(train);
    std::fs::create_dir(folder.path("")).unwrap();
    let script = "
        mount -t tmpfs -o size=800k tmpfs run || exit 77
        \"$0\" --config c.toml; echo \"ended with $?\"
        ls -A run
        mount -o remount,size=64m run && \"$0\" -q --config c.toml || exit 1
        cp run/export/model.safetensors again.safetensors";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "bash", "-c", script])
        .arg(env!("CARGO_BIN_EXE_sysgen-train"))
        .current_dir(folder.dir.path())
        .env("NO_COLOR", "1")
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no `unshare` to make a small disk with");
        return;
    };
    let (stdout, stderr) = text(&output);
    if output.status.code() != Some(0) && !stdout.contains("ended with") {
        eprintln!("SKIPPED: a small disk cannot be mounted here: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: "));
    let error = error.unwrap_or_else(|| panic!("{stdout}\n{stderr}"));
    for said in [
        "training stops at step 9; run/checkpoint-6 is whole, and the same command goes on from there: ",
        "cannot write run/checkpoint-9: the disk is full after ",
        " KiB are missing; free some space and run the same command again",
    ] {
        assert!(error.contains(said), "{error}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(stdout.contains("ended with 1\n"), "{stdout}");
    let left = |name: &str| stdout.lines().any(|line| line == name);
    assert!(left("checkpoint-3") && left("checkpoint-6"), "{stdout}");
    assert!(
        !left("checkpoint-9") && !stdout.contains(".writing-"),
        "{stdout}"
    );
    let weights = |path: PathBuf| std::fs::read(path).unwrap();
    let again = weights(folder.dir.path().join("again.safetensors"));
    assert!(again == weights(undisturbed.path("export/model.safetensors")));
}

#[test]
fn trace_goes_from_a_step_to_its_rows_and_back_and_the_run_leaves_its_pages() {
    let folder = Folder::new(
        "max_steps = 6\neval_steps = 3\nobedience_probe = true\nreport_to = \"tensorboard\"",
    );
    succeeds(&folder.run(&[]));
    let rows = succeeds(&folder.run(&["trace", "--step", "2"]));
    let row = rows
        .lines()
        .nth(2)
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .to_string();
    let steps = succeeds(&folder.run(&["trace", "--row", &row]));
    assert!(
        steps
            .lines()
            .any(|line| line.trim_start().starts_with("2 ")),
        "{row}: {steps}"
    );
    let (_, stderr) = text(&folder.run(&["trace", "--row", "nobody"]));
    assert!(stderr.contains("trained on row nobody"), "{stderr}");
    let report = std::fs::read_to_string(folder.path("report.html")).unwrap();
    assert!(
        report.contains("share of fixed system messages obeyed"),
        "{report}"
    );
    let read = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.path(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let samples = read("samples.jsonl");
    let steps: Vec<_> = samples.iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [Some(3), Some(6)]);
    for line in &samples {
        assert_eq!(line["answers"].as_array().unwrap().len(), 2, "{line}");
    }
    let obeyed = |line: &&serde_json::Value| line["obedience"].as_f64().is_some();
    let metrics = read("metrics.jsonl");
    let asked: Vec<_> = metrics
        .iter()
        .filter(obeyed)
        .map(|line| line["step"].as_u64())
        .collect();
    assert_eq!(asked, [Some(0), Some(3), Some(6)]);
    assert_eq!(std::fs::read_dir(folder.path("runs")).unwrap().count(), 1);
}
