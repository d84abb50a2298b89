//! Damaged and foreign files: each is named in one line, and nothing is lost.

use std::fs;

use sysgen_core::config::RunConfig;
use sysgen_core::hash::FileHashes;
use sysgen_data::run_with;

use crate::scripted::{Bench, bytes, data_dir, model, outcome, run, run_until};

fn log(config: &RunConfig) -> String {
    bytes(&data_dir(config).join("log.jsonl"))
}

/// The run says this in one line and leaves the log as it is.
#[track_caller]
fn refused(config: &RunConfig, content: &str, expected: &str) {
    // A finished data set would be left alone, whatever the log is.
    let _ = fs::remove_file(data_dir(config).join("manifest.json"));
    let path = data_dir(config).join("log.jsonl");
    fs::write(&path, content).unwrap();
    let error = format!("{:#}", run(config).unwrap_err());
    assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    assert_eq!(bytes(&path), content);
}

#[test]
fn damage_in_the_middle_of_a_log_is_named_and_one_line_repairs_it() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let expected = outcome(&config);
    let whole = log(&config);
    let lines: Vec<&str> = whole.lines().collect();
    for (at, damaged) in [
        (3, lines[3][..20].to_string()),
        (5, lines[5].replace('"', "\0")),
    ] {
        let mut changed = lines.clone();
        changed[at] = &damaged;
        let changed = changed.join("\n") + "\n";
        refused(
            &config,
            &changed,
            &format!("log.jsonl:{}: damaged log entry", at + 1),
        );
        // As the message says.
        let mut repaired = lines.clone();
        repaired.remove(at);
        fs::write(
            data_dir(&config).join("log.jsonl"),
            repaired.join("\n") + "\n",
        )
        .unwrap();
        run(&config).unwrap();
        assert_eq!(outcome(&config), expected);
        assert_eq!(log(&config).lines().count(), lines.len());
    }
    // JSON, but no answer.
    let nonsense = lines[4].replace("\"answer\":{", "\"answer\":{\"x\":0,");
    let changed = whole.replace(lines[4], &nonsense);
    refused(&config, &changed, "is damaged; delete this line");
    refused(
        &config,
        &(lines[1..].join("\n") + "\n"),
        "log.jsonl: the first line, which says",
    );
    refused(
        &config,
        "{\"messages\":[]}\n",
        "log.jsonl is not a log of this program",
    );
}

#[test]
fn a_changed_model_is_named() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let mut changed = model();
    changed.key.insert("model".to_string(), "v2".to_string());
    let error = run_with(&config, &changed, || panic!("nothing is generated"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model was v1 and is v2; change them back"),
        "{error}"
    );
}

#[test]
fn a_log_that_cannot_be_written_is_known_before_the_model_is_loaded() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run_until(&config, Some(3)).unwrap_err();
    let before = log(&config);
    let path = data_dir(&config).join("log.jsonl");
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    if fs::File::options().append(true).open(&path).is_ok() {
        eprintln!("skipped: this user (root) may write to read-only files");
        return;
    }
    let error = run_with(&config, &model(), || panic!("the model was loaded"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("log.jsonl: permission denied; choose a folder"),
        "{error}"
    );
    assert_eq!(log(&config), before);
}

/// A copy of the embedded model and two rows for it.
fn of_nano(folder: &std::path::Path) -> RunConfig {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let model = folder.join("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(root.join("checkpoints/sysgen-nano")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let rows = fs::read_to_string(root.join("configs/quickstart/instructions.jsonl")).unwrap();
    let rows: Vec<&str> = rows.lines().take(2).collect();
    fs::write(folder.join("rows.jsonl"), rows.join("\n")).unwrap();
    let prompt = |name: &str| root.join("configs/quickstart").join(name);
    let text = format!(
        "output_dir = {:?}\n[model]\npath = {model:?}\n[data]\npath = {:?}\n[generate]\nmax_length = 1024\n\
         draft_prompt = {:?}\nverify_prompt = {:?}\n[generate.respond]\nmax_tokens = 60\n",
        folder.join("out"),
        folder.join("rows.jsonl"),
        prompt("draft.txt"),
        prompt("verify.txt"),
    );
    fs::write(folder.join("run.toml"), text).unwrap();
    RunConfig::load(&folder.join("run.toml"), &[]).unwrap()
}

#[test]
fn one_changed_number_of_the_model_is_noticed_before_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let config = of_nano(folder.path());
    let environment = sysgen_data::Environment::default();
    let start = || {
        let files = FileHashes::default();
        sysgen_data::run(&config, &sysgen_model::Device::flex(), &environment, &files)
    };
    // Whether or not its answers are usable, they are in the log.
    let _ = start();
    let before = log(&config);
    assert!(before.lines().count() > 2, "{before}");
    for (name, said) in [
        ("model.safetensors", "model file model.safetensors was "),
        ("config.json", "model file config.json was "),
        ("tokenizer.json", "chat template and tokenizer was "),
        ("chat_template.jinja", "chat template and tokenizer was "),
    ] {
        let path = folder.path().join("model").join(name);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        match name {
            // One bit of the last weight.
            "model.safetensors" => *changed.last_mut().unwrap() ^= 1,
            "chat_template.jinja" => changed.extend(b" "),
            _ => changed.extend(b"\n"),
        }
        fs::write(&path, changed).unwrap();
        let error = format!("{:#}", start().unwrap_err());
        assert!(
            error.contains(said) && error.contains("change them back") && !error.contains('\n'),
            "{name}: {error}"
        );
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(log(&config), before);
}

/// The data set as a link to a disk that is always full.
#[test]
fn a_full_disk_stops_the_run_and_loses_no_answer() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let expected = outcome(&config);
    run_until(&bench.config("full", &[]), Some(3)).unwrap_err();
    let config = bench.config("full", &[]);
    let path = data_dir(&config).join("log.jsonl");
    let before = log(&config);
    let dataset = data_dir(&config).join("dataset.jsonl");
    std::os::unix::fs::symlink("/dev/full", &dataset).unwrap();
    let error = format!("{:#}", run(&config).unwrap_err());
    assert!(
        error.contains("the disk is full; free some space"),
        "{error}"
    );
    assert!(log(&config).starts_with(&before), "answers stay in the log");
    assert!(!data_dir(&config).join("manifest.json").exists());
    // As after freeing some space.
    let _ = fs::remove_file(&dataset);
    run(&config).unwrap();
    assert_eq!(outcome(&config), expected);
    assert!(path.exists());
}

#[test]
fn a_second_writer_is_refused_and_the_first_one_goes_on() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    let mut second = None;
    run_with(&config, &model(), || {
        // While the first one has the folder open.
        second = Some(format!("{:#}", run(&config).unwrap_err()));
        Ok(Box::new(crate::scripted::Script {
            at_once: 3,
            dies_after: None,
            requests: 0,
        }))
    })
    .unwrap();
    let second = second.unwrap();
    assert!(second.contains("is in use by process"), "{second}");
    let undisturbed = bench.config("undisturbed", &[]);
    run(&undisturbed).unwrap();
    assert_eq!(outcome(&config), outcome(&undisturbed));
}
