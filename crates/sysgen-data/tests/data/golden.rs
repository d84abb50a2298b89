//! ROUGE, GLEU and stems against Python's `rouge_score` and `nltk` (`tests/golden/make/gen_metrics.py`), BERTScore against
//! `bert-score` (`gen_encoder.py`).

use std::path::{Path, PathBuf};

use serde_json::Value;
use sysgen_data::stats::bert_score::BertScorer;
use sysgen_data::stats::gleu::{Gleu, gleu_characters, gleu_words};
use sysgen_data::stats::porter::stem;
use sysgen_data::stats::rouge::{Rouge, Score, rouge, tokens};
use sysgen_model::Device;

/// Largest absolute difference of a score.
const SCORE: f64 = 1e-9;

fn golden(name: &str) -> Value {
    let root = std::env::var_os("SYSGEN_GOLDEN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
        PathBuf::from,
    );
    let path = root.join("metrics").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

struct Pair {
    json: Value,
    reference: String,
    candidate: String,
}

fn pairs(metrics: &Value) -> Vec<Pair> {
    let pairs = metrics["pairs"].as_array().unwrap();
    assert!(!pairs.is_empty());
    pairs
        .iter()
        .map(|pair| Pair {
            json: pair.clone(),
            reference: pair["reference"].as_str().unwrap().to_string(),
            candidate: pair["candidate"].as_str().unwrap().to_string(),
        })
        .collect()
}

fn check(ours: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (ours - expected).abs() <= SCORE,
        "{what}: {ours}, expected {expected}"
    );
}

fn by_name(rouge: Rouge) -> [(&'static str, Score); 4] {
    let Rouge {
        rouge1,
        rouge2,
        rouge_l,
        rouge_lsum,
    } = rouge;
    [
        ("rouge1", rouge1),
        ("rouge2", rouge2),
        ("rougeL", rouge_l),
        ("rougeLsum", rouge_lsum),
    ]
}

#[test]
fn golden_rouge_is_that_of_rouge_score() {
    let metrics = golden("metrics.json");
    for (key, mean_key, stemmer) in [
        ("rouge", "mean_rouge_f", false),
        ("rouge_stemmed", "mean_rouge_f_stemmed", true),
    ] {
        let mut means = [0.0; 4];
        let pairs = pairs(&metrics);
        for Pair {
            json,
            reference,
            candidate,
        } in &pairs
        {
            let scores = by_name(rouge(reference, candidate, stemmer));
            for ((name, score), mean) in scores.into_iter().zip(&mut means) {
                let what = format!("{key} {name} of {candidate:?} against {reference:?}");
                check(score.precision, &json[key][name]["precision"], &what);
                check(score.recall, &json[key][name]["recall"], &what);
                check(score.f, &json[key][name]["fmeasure"], &what);
                *mean += score.f / pairs.len() as f64;
            }
        }
        for ((name, _), mean) in by_name(Rouge::default()).into_iter().zip(means) {
            check(
                mean,
                &metrics["corpus"][mean_key][name],
                &format!("{mean_key} {name}"),
            );
        }
    }
}

#[test]
fn golden_rouge_tokens_are_those_of_rouge_score() {
    for Pair {
        json,
        reference,
        candidate,
    } in pairs(&golden("metrics.json"))
    {
        for (name, text, stemmer) in [
            ("reference", &reference, false),
            ("candidate", &candidate, false),
            ("reference_stemmed", &reference, true),
            ("candidate_stemmed", &candidate, true),
        ] {
            assert_eq!(
                serde_json::json!(tokens(text, stemmer)),
                json["rouge_tokens"][name],
                "{text:?}"
            );
        }
    }
}

#[test]
fn golden_gleu_is_that_of_nltk() {
    let metrics = golden("metrics.json");
    let pairs = pairs(&metrics);
    let of = |pair: &Pair| gleu_words(&pair.reference, &pair.candidate);
    for pair in &pairs {
        check(
            of(pair).score(),
            &pair.json["sentence_gleu"],
            &format!("GLEU of {:?}", pair.candidate),
        );
        if let Some(expected) = pair.json.get("sentence_gleu_characters") {
            let ours = gleu_characters(&pair.reference, &pair.candidate).score();
            check(
                ours,
                expected,
                &format!("GLEU of the characters of {:?}", pair.candidate),
            );
        }
    }
    let corpus: Gleu = pairs.iter().map(of).sum();
    check(
        corpus.score(),
        &metrics["corpus"]["corpus_gleu_all"],
        "corpus GLEU",
    );
    if let Some(expected) = metrics["corpus"].get("corpus_gleu_characters") {
        let of = |pair: &Pair| gleu_characters(&pair.reference, &pair.candidate);
        check(
            pairs.iter().map(of).sum::<Gleu>().score(),
            expected,
            "corpus GLEU of characters",
        );
    }
}

#[test]
fn golden_stems_are_those_of_nltk() {
    let stems = golden("stems.json");
    let stems = stems["stems"].as_object().unwrap();
    assert!(!stems.is_empty());
    let wrong: Vec<String> = stems
        .iter()
        .filter(|(word, expected)| stem(word) != expected.as_str().unwrap())
        .map(|(word, expected)| format!("{word}: {}, expected {expected}", stem(word)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

/// P, R and F of BERTScore, largest absolute difference.
const BERT_SCORE: f64 = 1e-6;

fn encoders() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let root = std::env::var_os("SYSGEN_GOLDEN").map_or(repository.clone(), PathBuf::from);
    // Reference folders made before there were encoders have none.
    let folder = [root, repository]
        .map(|root| root.join("encoder"))
        .into_iter()
        .find(|folder| folder.is_dir())
        .unwrap();
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn golden_bert_score_is_that_of_the_bert_score_package_at_every_layer() {
    for folder in encoders() {
        let text = std::fs::read_to_string(folder.join("reference.json")).unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        let pairs: Vec<(String, String)> =
            serde_json::from_value(reference["pairs"].clone()).unwrap();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
        for (layer, expected) in reference["scores"].as_object().unwrap() {
            let layer: usize = layer.parse().unwrap();
            let scorer = BertScorer::load(&folder, Some(layer), &Device::flex()).unwrap();
            let ours = scorer.scores(&pairs);
            assert_eq!(
                ours.cut_texts as u64,
                reference["cut_texts"].as_u64().unwrap()
            );
            for (pair, (score, expected)) in ours
                .scores
                .iter()
                .zip(expected.as_array().unwrap())
                .enumerate()
            {
                let ours = [score.precision, score.recall, score.f];
                for (ours, expected) in ours.iter().zip(expected.as_array().unwrap()) {
                    let expected = expected.as_f64().unwrap();
                    assert!(
                        (ours - expected).abs() <= BERT_SCORE,
                        "{}, layer {layer}, pair {pair}: {ours}, expected {expected}",
                        folder.display()
                    );
                }
            }
        }
    }
}
