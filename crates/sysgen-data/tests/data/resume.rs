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

/// How many answers of a phase are in the log.
fn answered(config: &RunConfig, phase: &str) -> usize {
    let phase = format!("\"phase\":\"{phase}\"");
    let log = bytes(&data_dir(config).join("log.jsonl"));
    log.lines().filter(|line| line.contains(&phase)).count()
}

#[test]
fn the_threshold_moves_without_a_judgement_and_only_changed_messages_are_answered() {
    let bench = Bench::new();
    let settings = ["generate.verify.threshold=-2"];
    let fresh = bench.config("fresh", &settings);
    run(&fresh).unwrap();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let before = outcome(&config);
    let [judged, responses] = ["verify", "respond"].map(|phase| answered(&config, phase));
    let moved = bench.config("out", &settings);
    run(&moved).unwrap();
    assert_ne!(outcome(&moved).0, before.0);
    assert_eq!(outcome(&moved), outcome(&fresh));
    assert_eq!(answered(&moved, "verify"), judged);
    // "all bad", which had no message, and "style is bad", whose message had no style.
    assert_eq!(answered(&moved, "respond"), responses + 2);
    run_until(&config, Some(0)).unwrap();
    assert_eq!(outcome(&config), before, "and back");
}

#[test]
fn settings_of_the_answers_leave_drafts_and_judgements() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let before = outcome(&config);
    let [drafts, judged, responses] =
        ["draft", "verify", "respond"].map(|phase| answered(&config, phase));
    let settings = ["generate.respond.temperature=0.2"];
    let changed = bench.config("out", &settings);
    for dies_after in [Some(2), None] {
        let _ = run_until(&changed, dies_after);
    }
    let fresh = bench.config("fresh", &settings);
    run(&fresh).unwrap();
    assert_eq!(outcome(&changed), outcome(&fresh));
    assert_eq!(
        ["draft", "verify", "respond"].map(|phase| answered(&changed, phase)),
        [drafts, judged, 2 * responses]
    );
    run_until(&config, Some(0)).unwrap();
    assert_eq!(outcome(&config), before, "and back");
}

#[test]
fn a_finished_data_set_is_left_alone() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    let first = run(&config).unwrap();
    let written = |name: &str| {
        let file = fs::metadata(data_dir(&config).join(name)).unwrap();
        file.modified().unwrap()
    };
    let files = ["dataset.jsonl", "manifest.json", "README.md"];
    let before = files.map(written);
    fs::remove_file(data_dir(&config).join("log.jsonl")).unwrap();
    let again = run_until(&config, Some(0)).unwrap();
    assert_eq!(files.map(written), before);
    assert_eq!(
        (&again.funnel, &again.tags, &again.samples),
        (&first.funnel, &first.tags, &first.samples)
    );
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
