//! Several processes on one output folder: the same bytes as one, and no answer twice.

use std::collections::HashMap;
use std::fs;

use sysgen_core::config::RunConfig;
use sysgen_core::hash::FileHashes;
use sysgen_data::{Shard, Summary, merge_with, run_shard_with};

use crate::scripted::{Bench, Script, bytes, data_dir, model, outcome, run, run_until};

fn run_shard(
    config: &RunConfig,
    shard: &str,
    dies_after: Option<usize>,
) -> anyhow::Result<Summary> {
    let at_once = config.generate.as_ref().unwrap().batch_size;
    let (shard, files) = (shard.parse::<Shard>().unwrap(), FileHashes::default());
    run_shard_with(config, &model(), shard, &files, || {
        Ok(Box::new(Script {
            at_once,
            dies_after,
            requests: 0,
        }))
    })
}

/// How often each request stands in a log.
fn asked(config: &RunConfig) -> HashMap<String, usize> {
    let mut asked = HashMap::new();
    for entry in fs::read_dir(data_dir(config)).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("log")
        {
            for line in bytes(&path).lines().skip(1) {
                let (place, _) = line.split_once(",\"answer\"").unwrap();
                *asked.entry(place.to_string()).or_default() += 1;
            }
        }
    }
    asked
}

fn undisturbed(bench: &Bench) -> ((String, String), usize) {
    let config = bench.config("undisturbed", &[]);
    run(&config).unwrap();
    (outcome(&config), asked(&config).len())
}

#[track_caller]
fn same(config: &RunConfig, (expected, requests): &((String, String), usize)) {
    assert_eq!(&outcome(config), expected);
    let asked = asked(config);
    assert!(
        asked.values().all(|times| *times == 1),
        "asked twice: {asked:?}"
    );
    assert_eq!(asked.len(), *requests);
}

#[test]
fn the_last_shard_writes_the_bytes_of_one_run() {
    let bench = Bench::new();
    let expected = undisturbed(&bench);
    for count in [2, 3, 9] {
        let config = bench.config(&format!("of{count}"), &[]);
        for index in (1..=count).rev() {
            assert!(!data_dir(&config).join("dataset.jsonl").exists());
            let summary = run_shard(&config, &format!("{index}/{count}"), None).unwrap();
            assert_eq!(summary.other_shards, index > 1, "{index}/{count}");
        }
        same(&config, &expected);
        // Nothing is left to do for anybody.
        run_shard(&config, "1/2", Some(0)).unwrap();
        run_until(&config, Some(0)).unwrap();
        same(&config, &expected);
    }
}

#[test]
fn shards_of_any_count_go_on_with_what_others_logged() {
    let bench = Bench::new();
    let expected = undisturbed(&bench);
    for dies_after in 0..expected.1 {
        let config = bench.config(&format!("dies{dies_after}"), &["generate.batch_size=2"]);
        for shard in ["2/3", "1/1", "1/2", "4/4"] {
            // Some shards have fewer rows than it takes to die.
            let _ = run_shard(&config, shard, Some(dies_after / 4));
        }
        let config = bench.config(&format!("dies{dies_after}"), &["generate.batch_size=5"]);
        run_shard(&config, "1/2", None).unwrap();
        let merged = merge_with(&config, &model());
        match run_shard(&config, "2/2", None) {
            Ok(summary) => assert!(!summary.other_shards),
            Err(error) => panic!("{error:#}"),
        }
        if let Err(error) = merged {
            let error = error.to_string();
            assert!(error.contains("rows have no answers yet"), "{error}");
        }
        merge_with(&config, &model()).unwrap();
        same(&config, &expected);
    }
}

#[test]
fn shards_at_the_same_time_write_one_data_set() {
    let bench = Bench::new();
    let expected = undisturbed(&bench);
    for round in 0..10 {
        let config = bench.config(&format!("round{round}"), &[]);
        std::thread::scope(|scope| {
            for shard in ["1/3", "2/3", "3/3"] {
                let config = &config;
                scope.spawn(move || run_shard(config, shard, None).unwrap());
            }
        });
        same(&config, &expected);
    }
}

#[test]
fn a_shard_of_another_config_and_a_shard_twice_are_refused() {
    let bench = Bench::new();
    run_shard(&bench.config("out", &[]), "1/2", None).unwrap();
    let other = bench.config("out", &["generate.draft.temperature=0.8"]);
    let error = run_shard(&other, "2/2", None).unwrap_err().to_string();
    assert!(
        error.contains("log-00001-of-00002.jsonl was written with other settings: generate.draft.temperature was 0.7 and is 0.8"),
        "{error}"
    );
    let config = bench.config("out", &[]);
    let _lock = sysgen_core::lock_part(&data_dir(&config), "00002-of-00002", |_| false).unwrap();
    for shard in ["2/2", "3/4", "1/1"] {
        let error = run_shard(&config, shard, None).unwrap_err().to_string();
        assert!(error.contains("is in use by"), "{shard}: {error}");
    }
}
