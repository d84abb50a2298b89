//! The BERTScore column of a data set, and encoders that cannot give one. The numbers are in `golden`.

use std::path::{Path, PathBuf};

use sysgen_data::open::DataSet;
use sysgen_data::stats::bert_score::BertScorer;
use sysgen_data::stats::{Options, statistics};
use sysgen_model::Device;

use crate::scripted::{Bench, lines, run};

fn encoder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/encoder")
        .join(name)
}

#[test]
fn the_column_is_the_mean_over_new_answers_against_original_ones() {
    let bench = Bench::new();
    let config = bench.config("out", &[]);
    run(&config).unwrap();
    let data_set = DataSet::of_config(&config).unwrap();
    let lines = lines(&config);
    let pairs: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| {
            let new = line["messages"].as_array().unwrap().last().unwrap();
            (
                new["content"].as_str().unwrap(),
                line["sysgen"]["original_answer"].as_str().unwrap(),
            )
        })
        .collect();
    let scorer = BertScorer::load(&encoder("roberta"), Some(2), &Device::flex()).unwrap();
    let each = scorer.scores(&pairs).scores;
    assert!(each.len() > 2 && each[0] != each[1]);
    for limit in [None, Some(2), Some(1), Some(99)] {
        let options = Options {
            bert_scorer: Some(&scorer),
            bert_score_pairs: limit,
            ..Options::default()
        };
        let tables = statistics(&data_set, options).unwrap();
        let answers = tables.answers.as_ref().unwrap();
        let column = answers.bert_score.as_ref().unwrap();
        let wanted = limit.unwrap_or(99).min(each.len());
        assert_eq!((column.pairs, column.layer), (wanted, 2));
        let chosen = (0..each.len())
            .filter(|i| i * wanted / each.len() != (i + 1) * wanted / each.len())
            .map(|i| each[i]);
        let recall = chosen.map(|score| score.recall).sum::<f64>() / wanted as f64;
        assert!((column.score.recall - 100.0 * recall).abs() < 1e-9);
        assert!(column.score.precision != column.score.recall);
        let text = tables.to_string();
        assert!(
            text.contains("BERTScore") && text.contains("layer 2"),
            "{text}"
        );
        let of_all = format!("{wanted} of {} pairs", each.len());
        assert_eq!(text.contains(&of_all), wanted < each.len(), "{text}");
    }
    let without = statistics(&data_set, Options::default()).unwrap();
    assert!(!without.to_string().contains("BERTScore"));
}

#[test]
fn answers_beyond_the_encoders_length_are_counted() {
    let scorer = BertScorer::load(&encoder("bert"), Some(1), &Device::flex()).unwrap();
    let long = "the answer ".repeat(40);
    let scores = scorer.scores(&[(&long, "short"), ("short", "short"), (&long, &long)]);
    assert_eq!(scores.cut_texts, 3);
    let same = scores.scores[1];
    assert!((same.f - 1.0).abs() < 1e-6 && (scores.scores[2].f - 1.0).abs() < 1e-6);
}

#[test]
fn a_folder_that_gives_no_score_is_one_clear_line() {
    let load = |dir: &Path, layer: Option<usize>, words: &[&str]| {
        let Err(error) = BertScorer::load(dir, layer, &Device::flex()) else {
            panic!("{} was loaded", dir.display());
        };
        let message = format!("{error:#}");
        for word in words {
            assert!(message.contains(word), "`{word}` is not in: {message}");
        }
        assert!(!message.contains('\n'), "more than one line: {message}");
    };
    let bert = encoder("bert");
    load(&bert, Some(3), &["has no layer 3", "to 2"]);
    load(&bert, None, &["has 2 layers", "choose one"]);
    let nano = bert.join("../../../../checkpoints/sysgen-nano");
    load(&nano, Some(1), &["`model_type` = \"llama\" is a decoder"]);
    load(Path::new("/nowhere"), Some(1), &["/nowhere/config.json"]);

    let copy = tempfile::tempdir().unwrap();
    let path = |name: &str| copy.path().join(name);
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(bert.join(name), path(name)).unwrap();
    }
    load(copy.path(), Some(1), &["tokenizer.json is missing"]);
    std::fs::copy(
        encoder("roberta").join("tokenizer.json"),
        path("tokenizer.json"),
    )
    .unwrap();
    load(copy.path(), Some(1), &["320 words", "only 180"]);
    // A decoder's tokenizer puts nothing, or one token, before a text.
    std::fs::copy(nano.join("tokenizer.json"), path("tokenizer.json")).unwrap();
    load(copy.path(), Some(1), &["special tokens around a text"]);
}
