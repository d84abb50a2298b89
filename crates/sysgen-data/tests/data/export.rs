//! Every export is read back by the project's own readers into the same conversations.

use std::path::Path;

use serde_json::Value;
use sysgen_core::config::DataSection;
use sysgen_core::message::{Message, Role};
use sysgen_data::export::{Format, export};
use sysgen_data::input::read_records;
use sysgen_data::open::DataSet;

use crate::scripted::{Bench, data_dir, run};

/// Rows with a system message of their own, several turns, and characters that want escaping.
const SOURCE: &str = r#"{"id":"one","question":"What is 1+1?","answer":"old"}
{"id":"many","messages":[{"role":"user","content":"Hi \"you\"\n<b>"},{"role":"assistant","content":" Hello. "},{"role":"user","content":"안녕?"},{"role":"assistant","content":"네."}]}
{"id":"own","messages":[{"role":"system","content":"Be a pirate."},{"role":"user","content":"Hello?"},{"role":"assistant","content":"Ahoy."}]}
"#;

const FORMATS: [Format; 4] = [
    Format::Messages,
    Format::PromptCompletion,
    Format::ShareGpt,
    Format::Alpaca,
];

fn generated(bench: &Bench, output: &str, settings: &[&str]) -> DataSet {
    std::fs::write(bench.folder.path().join("rows.jsonl"), SOURCE).unwrap();
    let config = bench.config(output, settings);
    run(&config).unwrap();
    DataSet::open(&data_dir(&config)).unwrap()
}

/// A row's id, its conversation, and which of its answers are to be learnt.
type Conversation = (String, Vec<Message>, Vec<bool>);

/// Those of the data set itself.
fn conversations(data_set: &DataSet) -> Vec<Conversation> {
    let text = std::fs::read_to_string(&data_set.path).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.map(|row| {
        let messages = row["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| Message {
                role: serde_json::from_value::<Role>(message["role"].clone()).unwrap(),
                content: message["content"].as_str().unwrap().to_string(),
            });
        let answers = row["messages"].as_array().unwrap().iter();
        let answers = answers.filter(|message| message["role"] == "assistant");
        (
            row["sysgen"]["id"].as_str().unwrap().to_string(),
            messages.collect(),
            answers.map(|answer| answer["weight"] != 0).collect(),
        )
    })
    .collect()
}

fn read_back(path: &Path) -> Vec<Conversation> {
    let data = DataSection {
        path: vec![path.to_path_buf()],
        ..DataSection::default()
    };
    let (records, counts) = read_records(&data).unwrap();
    assert_eq!(counts.found, records.len(), "{:?}", counts.unreadable);
    records
        .into_iter()
        .map(|record| (record.id, record.messages, record.learnt_answers))
        .collect()
}

/// What Alpaca can hold of it: a `history` has no place for weights.
fn without_weights(rows: &[Conversation], format: Format) -> Vec<Conversation> {
    let mut rows = rows.to_vec();
    if format == Format::Alpaca {
        rows.iter_mut().for_each(|row| row.2.fill(true));
    }
    rows
}

#[test]
fn every_format_is_read_back_as_the_same_rows() {
    let bench = Bench::new();
    for (output, settings) in [
        ("unroll", &["data.existing_system=keep"][..]),
        ("first", &["data.multi_turn=first"]),
        ("no system", &["generate.variant=no_system"]),
        ("in user", &["generate.variant=system_in_user"]),
    ] {
        let data_set = generated(&bench, output, settings);
        let rows = conversations(&data_set);
        assert!(rows.len() >= 3);
        for format in FORMATS {
            let path = bench.folder.path().join("exported.jsonl");
            let exported = export(&data_set, format, &path).unwrap();
            let expected = without_weights(&rows, format);
            assert_eq!(read_back(&path), expected, "{output} {format:?}");
            assert_eq!((exported.rows, exported.left_out.len()), (rows.len(), 0));
            assert_eq!(
                exported.with_context,
                usize::from(output == "unroll" || output == "no system" || output == "in user")
            );
        }
        let path = bench.folder.path().join("exported.parquet");
        export(&data_set, Format::Parquet, &path).unwrap();
        assert_eq!(read_back(&path), rows, "{output} parquet");
    }
}

#[test]
fn a_row_with_several_answers_to_learn_has_no_completion_and_is_named() {
    let bench = Bench::new();
    let data_set = generated(&bench, "whole", &["data.multi_turn=whole"]);
    let rows = conversations(&data_set);
    assert_eq!(rows[1].1.len(), 5);
    let path = bench.folder.path().join("exported.jsonl");
    let exported = export(&data_set, Format::PromptCompletion, &path).unwrap();
    let places = &exported.left_out["several answers to learn, and one completion"];
    assert_eq!(
        (exported.rows, places.count, places.first.as_slice()),
        (2, 1, &["many".to_string()][..])
    );
    let left: Vec<_> = [&rows[0], &rows[2]].into_iter().cloned().collect();
    assert_eq!(read_back(&path), left);
    for format in [Format::Messages, Format::ShareGpt, Format::Alpaca] {
        export(&data_set, format, &path).unwrap();
        assert_eq!(read_back(&path), rows, "{format:?}");
    }
}

#[test]
fn the_data_set_itself_and_a_folder_are_no_outputs() {
    let bench = Bench::new();
    let data_set = generated(&bench, "out", &[]);
    let before = std::fs::read(&data_set.path).unwrap();
    let error = export(&data_set, Format::Messages, &data_set.path)
        .unwrap_err()
        .to_string();
    assert!(error.contains("name another file"), "{error}");
    let error = export(&data_set, Format::Messages, bench.folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is a folder"), "{error}");
    assert_eq!(std::fs::read(&data_set.path).unwrap(), before);
}

#[test]
fn a_damaged_line_is_left_out_and_counted() {
    let bench = Bench::new();
    let data_set = generated(&bench, "out", &[]);
    let text = std::fs::read_to_string(&data_set.path).unwrap();
    let damaged = bench.folder.path().join("dataset.jsonl");
    std::fs::write(&damaged, text.replacen("\"messages\"", "\"massages\"", 1)).unwrap();
    let path = bench.folder.path().join("exported.jsonl");
    let exported = export(&DataSet::open(&damaged).unwrap(), Format::Messages, &path).unwrap();
    assert_eq!(
        (exported.rows, exported.damaged.count),
        (text.lines().count() - 1, 1)
    );
    assert!(
        exported.damaged.first[0].starts_with("line 1: "),
        "{:?}",
        exported.damaged
    );
}
