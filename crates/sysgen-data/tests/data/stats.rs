//! The tables, held against what a script counts in the same file.

use serde_json::Value;
use sysgen_core::RunConfig;
use sysgen_data::open::DataSet;
use sysgen_data::stats::{Options, statistics};
use sysgen_data::tag::Tag;

use crate::scripted::{Bench, data_dir, lines, run};

fn with(config: &RunConfig) -> Options<'_> {
    Options {
        config: Some(config),
        ..Options::default()
    }
}

#[test]
fn the_tables_count_what_the_files_hold() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.verify.method=score"]);
    run(&config).unwrap();
    let data_set = DataSet::of_config(&config).unwrap();
    let lines = lines(&config);
    let tables = statistics(&data_set, with(&config)).unwrap();
    assert_eq!(tables.rows, lines.len());

    // Table 2.
    let funnel = tables.funnel.as_ref().unwrap();
    assert_eq!(
        (
            funnel.read.rows,
            funnel.draft.left,
            funnel.verify.left,
            funnel.respond.left
        ),
        (8, 6, 5, 3)
    );

    // Table 6, and 9: one row of three has its Style judged Bad.
    let style = &tables.tags[&Tag::Style];
    assert_eq!((style.drafted, style.kept), (3, 2));
    assert_eq!(tables.tags[&Tag::Tool].drafted, 0);
    let removed = tables.removed["rows.jsonl"][&Tag::Style];
    assert_eq!(
        (removed.drafted, removed.bad_percent, removed.none_percent),
        (3, 33.33, 0.0)
    );

    // Table 8: all eight source rows with the config, the kept three without.
    let source = tables.sources.by_source["rows.jsonl"];
    let questions: usize = crate::scripted::ROWS
        .iter()
        .map(|(_, question)| question.chars().count())
        .sum();
    assert_eq!((source.instances, source.with_system), (8, 0));
    assert_eq!(source.question_characters, questions as f64 / 8.0);
    let kept = statistics(&data_set, Options::default()).unwrap();
    assert_eq!(kept.sources.by_source["rows.jsonl"].instances, 3);

    // Table 1: lengths by hand; the scores are held against Python in `golden`.
    let answers = tables.answers.unwrap();
    let length = |row: &Value, key: &str| row["sysgen"][key].as_str().unwrap().chars().count();
    let original: usize = lines.iter().map(|row| length(row, "original_answer")).sum();
    let new: usize = lines
        .iter()
        .map(|row| {
            row["messages"].as_array().unwrap().last().unwrap()["content"]
                .as_str()
                .unwrap()
                .chars()
                .count()
        })
        .sum();
    assert_eq!(answers.pairs, 3);
    assert!((answers.length_ratio - new as f64 / original as f64).abs() < 1e-12);
    // The script's answers share characters with the original ones, and no word.
    assert_eq!(answers.rouge1.f, 0.0);
    assert!(answers.gleu_characters.mean > 0.0);
}

#[test]
fn a_system_message_before_the_question_is_no_part_of_it() {
    let bench = Bench::new();
    // One row has a system message of its own, which its line does not tell apart.
    let own = r#"{"messages":[{"role":"system","content":"Be old."},{"role":"user","content":"How?"},{"role":"assistant","content":"So."}]}"#;
    let path = bench.folder.path().join("rows.jsonl");
    let rows = std::fs::read_to_string(&path).unwrap();
    for (rows, joined) in [(rows.clone(), 0), (format!("{rows}\n{own}"), 1)] {
        std::fs::write(&path, rows).unwrap();
        let tables = |variant: &str| {
            let variant = format!("generate.variant={variant}");
            let keep = "data.existing_system=keep";
            let config = bench.config(&format!("out{joined}"), &[&variant, keep]);
            run(&config).unwrap();
            let data_set = DataSet::open(&data_dir(&config)).unwrap();
            statistics(&data_set, Options::default()).unwrap()
        };
        let (plain, in_user) = (tables("sysgen"), tables("system_in_user"));
        let (was, is) = (
            plain.sources.by_source["rows.jsonl"],
            in_user.sources.by_source["rows.jsonl"],
        );
        assert_eq!((was.joined_questions, was.with_system), (0, joined));
        assert_eq!((is.joined_questions, is.with_system), (joined, joined));
        assert_eq!(is.instances, was.instances);
        let more = is.question_characters - was.question_characters;
        let own = "Be old.\n\n".len() * joined;
        assert!(
            (more - own as f64 / is.instances as f64).abs() < 1e-9,
            "{more}"
        );
        let said = in_user.to_string();
        assert_eq!(
            said.contains("1 question(s) are counted with"),
            joined == 1,
            "{said}"
        );
    }
}

#[test]
fn answers_that_stayed_are_not_compared_with_themselves() {
    let bench = Bench::new();
    let config = bench.config("out", &["generate.variant=original_answer"]);
    run(&config).unwrap();
    let tables = statistics(
        &DataSet::open(&data_dir(&config)).unwrap(),
        Options::default(),
    )
    .unwrap();
    assert_eq!(tables.answers, None);
    assert!(tables.to_string().contains("no answer was written anew"));
}

#[test]
fn a_manifest_of_another_file_is_not_believed() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let path = data_dir(&config).join("dataset.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.lines().next().unwrap()).unwrap();
    let tables = statistics(&DataSet::open(&path).unwrap(), Options::default()).unwrap();
    assert_eq!((tables.rows, tables.funnel), (1, None));
}
