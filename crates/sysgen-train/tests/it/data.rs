//! From files to packed rows: what is kept between starts, several files with weights, the variants, and how full rows get.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::config::{DataSection, TrainSection, Variant};
use sysgen_core::{Message, RunConfig};
use sysgen_train::example::{Examples, Fit, render_rows};
use sysgen_train::order::{DataOrder, OrderSettings};
use sysgen_train::render_cache;
use sysgen_train::rows::{Row, read_rows, training_rows};

use crate::fixture;

/// Tokens of a packed row in the measurement of how full rows are.
const CAPACITY: usize = 2048;

/// The rows through the cache of `folder`, and how many had to be rendered.
fn through(folder: &Path, chat: &Chat, rows: &[Row], max_length: usize) -> (Vec<Fit>, usize) {
    let rendered = AtomicUsize::new(0);
    let rows: Vec<&Row> = rows.iter().collect();
    let fits = render_cache::through(folder, chat, &rows, max_length, |row| {
        rendered.fetch_add(1, Ordering::Relaxed);
        render_rows(chat, &[row], max_length, None).remove(0)
    });
    (fits, rendered.into_inner())
}

fn cache_file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn a_second_start_renders_only_what_is_new_and_gets_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, folder) = (fixture::chat(dir.path()), dir.path().join("cache"));
    let mut rows = fixture::rows(20);
    rows.push(Row::new(
        "too long",
        vec![Message::user("?"), Message::assistant("x".repeat(400))],
    ));
    let plain = render_rows(&chat, &rows.iter().collect::<Vec<_>>(), 300, None);
    assert!(matches!(plain[20], Fit::Dropped(..)));

    assert_eq!(through(&folder, &chat, &rows, 300), (plain.clone(), 21));
    assert_eq!(through(&folder, &chat, &rows, 300), (plain.clone(), 0));
    // Another order and name, one changed answer: only that one is rendered.
    rows.reverse();
    rows[0].id = "renamed".into();
    rows[3].messages[2].content += "!";
    let (fits, rendered) = through(&folder, &chat, &rows, 300);
    assert_eq!(rendered, 1);
    assert!(matches!(&fits[0], Fit::Dropped(id, _) if id == "renamed"));
    assert_eq!(fits[5], plain[15]);
}

#[test]
fn another_template_tokenizer_or_length_never_meets_old_tokens() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, folder) = (fixture::chat(dir.path()), dir.path().join("cache"));
    let rows = fixture::rows(5);
    through(&folder, &chat, &rows, 300);
    assert_eq!(through(&folder, &chat, &rows, 299).1, 5);

    let other = fixture::TEMPLATE.replace("<|role|>assistant", "<|role|>helper");
    fixture::model_folder_with(dir.path(), &other, fixture::VOCAB);
    let (fits, rendered) = through(&folder, &fixture::chat(dir.path()), &rows, 299);
    assert_eq!(rendered, 5);
    let fresh = render_rows(
        &fixture::chat(dir.path()),
        &rows.iter().collect::<Vec<_>>(),
        299,
        None,
    );
    assert_eq!(fits, fresh);
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, folder) = (fixture::chat(dir.path()), dir.path().join("cache"));
    let rows = fixture::rows(5);
    let (sound, _) = through(&folder, &chat, &rows, 300);
    let path = cache_file(&folder);
    let bytes = std::fs::read(&path).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for broken in [flipped, bytes[..bytes.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&path, broken).unwrap();
        assert_eq!(through(&folder, &chat, &rows, 300), (sound.clone(), 5));
    }
    assert_eq!(through(&folder, &chat, &rows, 300), (sound, 0));
}

/// Two files of rows with a system message and the answer they had before.
fn two_files(dir: &Path) -> Vec<PathBuf> {
    ["a", "b"]
        .into_iter()
        .map(|name| {
            let rows: Vec<String> = (0..6)
                .map(|n| {
                    serde_json::json!({
                        "id": format!("{name}{n}"),
                        "messages": [{"role": "system", "content": "Be brief."},
                                     {"role": "user", "content": format!("{name} {n}?")},
                                     {"role": "assistant", "content": "new"}],
                        "sysgen": {"original_answer": "old"}
                    })
                    .to_string()
                })
                .collect();
            let path = dir.join(format!("{name}.jsonl"));
            std::fs::write(&path, rows.join("\n")).unwrap();
            path
        })
        .collect()
}

#[test]
fn rows_know_their_file_and_take_the_variant_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = RunConfig {
        data: DataSection {
            path: two_files(dir.path()),
            ..DataSection::default()
        },
        train: Some(TrainSection {
            variant: Variant::NoSystem,
            ..TrainSection::default()
        }),
        ..RunConfig::default()
    };
    let found = training_rows(&config, &|paths| {
        paths.iter().map(|path| read_rows(path)).collect()
    })
    .unwrap();
    let sets: Vec<usize> = found.rows.iter().map(|row| row.set).collect();
    assert_eq!(sets, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    let expected = [Message::user("b 5?"), Message::assistant("old")];
    assert_eq!(found.rows[11].messages, expected);
}

#[test]
fn gsm8k_packs_to_more_than_97_percent_at_2048_tokens() {
    let Some(folder) = std::env::var_os("SYSGEN_EXTERNAL_DATA").map(PathBuf::from) else {
        eprintln!("skipped: SYSGEN_EXTERNAL_DATA names no folder with data/");
        return;
    };
    let text = std::fs::read_to_string(folder.join("data/gsm8k/train.jsonl")).unwrap();
    let rows: Vec<Row> = text
        .lines()
        .enumerate()
        .map(|(n, line)| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let said = |key: &str| row[key].as_str().unwrap().to_string();
            let messages = vec![
                Message::system("You are a patient tutor."),
                Message::user(said("question")),
                Message::assistant(said("answer")),
            ];
            Row::new(n.to_string(), messages)
        })
        .collect();
    assert_eq!(rows.len(), 7473);
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/sysgen-nano");
    let chat = Chat::load(&nano, ChatOptions::default()).unwrap();
    let rows: Vec<&Row> = rows.iter().collect();
    let found = Examples::of(render_rows(&chat, &rows, CAPACITY, None), true);
    assert_eq!(found.examples.len(), 7473, "{:?}", found.refused.first());
    let order = DataOrder::new(
        &found.examples,
        OrderSettings {
            capacity: CAPACITY,
            packing: true,
            rows_per_batch: 1,
            batches_per_step: 1,
            epochs: 1.0,
            max_steps: 0,
            weights: Vec::new(),
            seed: 0,
        },
    );
    let utilisation = order.utilisation();
    eprintln!("{utilisation:?}");
    assert!(utilisation.share >= 0.97, "{utilisation:?}");
}
