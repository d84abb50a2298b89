//! What lies beside a finished data set.

use sysgen_core::RunConfig;
use sysgen_core::hash::hash_bytes;

use crate::scripted::{Bench, bytes, data_dir, run, run_until};

#[test]
fn the_card_counts_what_the_manifest_counts_and_claims_no_licence() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.respond.top_p=0.9"]);
    run(&config).unwrap();
    let card = bytes(&data_dir(&config).join("README.md"));
    let front_matter = card
        .strip_prefix("---\n")
        .unwrap()
        .split_once("\n---\n")
        .unwrap()
        .0;
    assert!(front_matter.contains("data_files: dataset.jsonl"));
    assert!(front_matter.contains("- n<1K"));
    let claims = |line: &&str| line.starts_with("license:") || line.starts_with("language:");
    assert_eq!(front_matter.lines().find(claims), None);
    for line in [
        "| in the source files | 8 |",
        "| – draft, filter: longer than the context | 1 |",
        "| – respond: empty answer | 1 |",
        "| **kept** (37.50 %) | 3 |",
        "| Style | 3 | 2 | 1 | 0 | 0 | 2 |",
        "in one of eight tags; temperature 0.7, at most 512 tokens, and once more where nothing usable came out.",
        "under the system message; temperature 0.7, top p 0.9, at most 1024 tokens.",
    ] {
        assert!(card.contains(line), "{line} is not in\n{card}");
    }
    assert!(card.contains(&hash_bytes(
        bytes(&data_dir(&config).join("dataset.jsonl")).as_bytes()
    )));
    let folder = bench.folder.path().display().to_string();
    assert!(
        !card.contains(&format!("{folder}/rows")),
        "the card names no folder of the data"
    );
}

#[test]
fn the_prompts_beside_the_data_are_those_of_the_key_and_the_config_is_whole() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.batch_size=3"]);
    run(&config).unwrap();
    let manifest: serde_json::Value =
        serde_json::from_str(&bytes(&data_dir(&config).join("manifest.json"))).unwrap();
    for name in ["draft", "verify"] {
        let prompt = bytes(&data_dir(&config).join(format!("prompts/{name}.txt")));
        let key = format!("generate.{name}_prompt");
        assert_eq!(
            manifest["key"][&key],
            hash_bytes(prompt.as_bytes()),
            "{name}"
        );
    }
    let written = RunConfig::load(&data_dir(&config).join("config.toml"), &[]).unwrap();
    assert_eq!(written, config);
}

#[test]
fn an_interrupted_run_ends_with_the_same_card() {
    let bench = Bench::new();
    let undisturbed = bench.config("one", &[]);
    run(&undisturbed).unwrap();
    let disturbed = bench.config("two", &["generate.batch_size=2"]);
    run_until(&disturbed, Some(7)).unwrap_err();
    assert!(
        !data_dir(&disturbed).join("README.md").exists(),
        "a card means a finished data set"
    );
    run(&disturbed).unwrap();
    let card = |config| bytes(&data_dir(config).join("README.md"));
    assert_eq!(card(&disturbed), card(&undisturbed));
}
