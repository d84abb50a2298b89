//! Damaged and foreign files: each is named in one line, and nothing is lost.

use std::fs;

use sysgen_core::config::RunConfig;
use sysgen_data::run_with;

use crate::scripted::{Bench, bytes, data_dir, model, outcome, run, run_until};

fn log(config: &RunConfig) -> String {
    bytes(&data_dir(config).join("log.jsonl"))
}

/// The run says this in one line and leaves the log as it is.
#[track_caller]
fn refused(config: &RunConfig, content: &str, expected: &str) {
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
