//! Published data sets, read from the folder that `SYSGEN_EXTERNAL_DATA` names.

use std::path::PathBuf;

use sysgen_core::config::DataSection;
use sysgen_data::input::read_records;

/// File, rows in it, usable rows, and why the others are not.
const FILES: [(&str, usize, usize, &str); 11] = [
    ("gsm8k/train.jsonl", 7473, 7473, ""),
    ("gpteacher/roleplay-instruct.json", 1923, 1923, ""),
    ("gpteacher/codegen-instruct.json", 4535, 4535, ""),
    ("llama-factory/alpaca_en_demo.json", 999, 999, ""),
    ("llama-factory/v1_sft_demo.jsonl", 500, 500, ""),
    (
        "self-instruct/user_oriented_instructions.jsonl",
        252,
        252,
        "",
    ),
    ("self-instruct/seed_tasks.jsonl", 175, 175, ""),
    (
        "fastchat/mt_bench_question.jsonl",
        80,
        0,
        "a question without an answer",
    ),
    (
        "fastchat/mt_bench_reference_gpt-4.jsonl",
        30,
        0,
        "unknown format",
    ),
    ("fastchat/judge_prompts.jsonl", 8, 0, "unknown format"),
    (
        "multifaceted-bench/readme_examples.json",
        2,
        0,
        "a question without an answer",
    ),
];

#[test]
fn every_row_of_published_data_is_read_or_counted() {
    let Some(folder) = std::env::var_os("SYSGEN_EXTERNAL_DATA").map(PathBuf::from) else {
        eprintln!("skipped: SYSGEN_EXTERNAL_DATA names no folder with data/");
        return;
    };
    for (file, found, usable, reason) in FILES {
        let path = folder.join("data").join(file);
        let data = DataSection {
            path: vec![path],
            ..DataSection::default()
        };
        let (records, counts) = read_records(&data).unwrap();
        assert_eq!(
            (counts.found, records.len()),
            (found, usable),
            "{file}: {:?}",
            counts.unreadable
        );
        let left_out: usize = counts.unreadable.values().map(|places| places.count).sum();
        assert_eq!(left_out, found - usable, "{file}");
        if !reason.is_empty() {
            assert_eq!(
                counts.unreadable.keys().collect::<Vec<_>>(),
                [reason],
                "{file}"
            );
        }
    }
}
