//! The bytes of a data set do not depend on batches, deaths, or where a log was cut.

use std::fs;

use sysgen_core::config::RunConfig;

use crate::scripted::{Bench, bytes, data_dir, outcome, run, run_until};

/// The log of an undisturbed run, and what came of it.
fn undisturbed(bench: &Bench) -> (String, (String, String)) {
    let config = bench.config("undisturbed", &[]);
    run(&config).unwrap();
    (
        bytes(&data_dir(&config).join("log.jsonl")),
        outcome(&config),
    )
}

fn goes_on_from(bench: &Bench, log: &[u8], expected: &(String, String), place: &str) {
    let config = bench.config("cut", &[]);
    let _ = fs::remove_dir_all(data_dir(&config));
    fs::create_dir_all(data_dir(&config)).unwrap();
    fs::write(data_dir(&config).join("log.jsonl"), log).unwrap();
    run(&config).unwrap();
    assert_eq!(&outcome(&config), expected, "log cut {place}");
}

#[test]
fn a_log_cut_anywhere_gives_the_same_bytes() {
    let bench = Bench::new();
    let (log, expected) = undisturbed(&bench);
    let mut end = 0;
    for line in log.split_inclusive('\n') {
        goes_on_from(&bench, &log.as_bytes()[..end], &expected, "between lines");
        goes_on_from(
            &bench,
            &log.as_bytes()[..end + line.len() / 2],
            &expected,
            "within a line",
        );
        goes_on_from(
            &bench,
            &log.as_bytes()[..end + line.len() - 1],
            &expected,
            "before a line's end",
        );
        end += line.len();
    }
    goes_on_from(&bench, log.as_bytes(), &expected, "nowhere");
}

#[test]
fn the_batch_size_does_not_show() {
    let bench = Bench::new();
    let (_, expected) = undisturbed(&bench);
    for size in [1, 2, 3, 7, 100] {
        let config = bench.config(
            &format!("batch{size}"),
            &[&format!("generate.batch_size={size}")],
        );
        run(&config).unwrap();
        assert_eq!(outcome(&config), expected, "batch_size {size}");
    }
}

#[test]
fn a_model_that_dies_after_any_answer_loses_nothing_that_was_said() {
    let bench = Bench::new();
    let (log, expected) = undisturbed(&bench);
    let requests = log.lines().count() - 1;
    for answers in 0..requests {
        let config = bench.config(&format!("dies{answers}"), &["generate.batch_size=2"]);
        let error = run_until(&config, Some(answers)).unwrap_err().to_string();
        assert_eq!(error, "the power is gone");
        assert_eq!(
            bytes(&data_dir(&config).join("log.jsonl")).lines().count() - 1,
            answers
        );
        assert!(!data_dir(&config).join("manifest.json").exists());
        run(&config).unwrap();
        assert_eq!(outcome(&config), expected, "died after {answers}");
        // Nothing was asked twice.
        assert_eq!(
            bytes(&data_dir(&config).join("log.jsonl")).lines().count() - 1,
            requests
        );
    }
}

#[test]
fn a_larger_limit_goes_on_with_the_same_rows() {
    let bench = Bench::new();
    let (_, expected) = undisturbed(&bench);
    run(&bench.config("grows", &["data.limit=2"])).unwrap();
    let config = bench.config("grows", &[]);
    run(&config).unwrap();
    assert_eq!(outcome(&config), expected);
}

#[test]
fn a_changed_config_is_refused_and_named() {
    let bench = Bench::new();
    run(&bench.config("out", &[])).unwrap();
    let refused = |config: &RunConfig, change: &str| {
        let error = run(config).unwrap_err().to_string();
        assert!(
            error.contains(change) && error.contains("choose another output_dir, or delete"),
            "{error}"
        );
    };
    refused(
        &bench.config("out", &["generate.draft.temperature=0.8"]),
        "generate.draft.temperature was 0.7 and is 0.8",
    );
    refused(&bench.config("out", &["seed=6"]), "seed was 5 and is 6");
    refused(
        &bench.config("out", &["data.multi_turn=whole"]),
        "data.multi_turn was unroll and is whole",
    );
    let own = bench.folder.path().join("own.txt");
    fs::write(&own, "{conversation} ## [Conversation]").unwrap();
    refused(
        &bench.config(
            "out",
            &[&format!("generate.draft_prompt={}", own.display())],
        ),
        "generate.draft_prompt was ",
    );
    let rows = bench.folder.path().join("rows.jsonl");
    fs::write(
        &rows,
        bytes(&rows) + "\n{\"question\":\"new\",\"answer\":\"row\"}",
    )
    .unwrap();
    refused(&bench.config("out", &[]), "data.path 1 (rows.jsonl) was ");
}

#[test]
fn a_log_without_answers_holds_no_changed_config_back() {
    let bench = Bench::new();
    run_until(&bench.config("out", &["seed=6"]), Some(0)).unwrap_err();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    assert_eq!(outcome(&config), undisturbed(&bench).1);
}

#[test]
fn a_folder_in_use_is_refused() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    let _lock = sysgen_core::lock_output(&data_dir(&config)).unwrap();
    let error = run(&config).unwrap_err().to_string();
    assert!(error.contains("is in use by process"), "{error}");
}
