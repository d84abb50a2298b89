//! `[train]` alone, on rows in every format: what is learnt does not depend on how the rows are written, nor on where they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::command::{Folder, succeeds, text};
use crate::hub_server::hub;

const TRAIN: &str = "max_steps = 3\neval_fraction = 0.0";

/// The losses of the rows of every step.
fn losses(folder: &Folder) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.path("row_losses.jsonl")).unwrap();
    let step = |line: &str| -> Value {
        let line: Value = serde_json::from_str(line).unwrap();
        line["losses"].clone()
    };
    text.lines().map(step).collect()
}

/// A file that pyarrow wrote (`make.py` beside it).
fn parquet(name: &str) -> PathBuf {
    let folder = "../sysgen-data/tests/data/files";
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join(name)
}

/// The rows of `pairs-*.parquet` as lines, without the one that has no answer.
fn pairs() -> String {
    let rows = [(0, "A"), (1, "B"), (3, "D"), (4, "E")].map(|(n, answer)| {
        json!({"question": format!("Question {n}, ünïcode?"), "answer": answer}).to_string()
    });
    rows.join("\n")
}

/// Trains on `data.path = path`; the row losses, and what was said.
fn trained(folder: &Folder, path: &str, further: impl Fn(&mut Command)) -> (Vec<Value>, String) {
    let mut command = folder.command(&["--set", &format!("data.path={path}")]);
    command.args(["--set", "export=false"]);
    further(&mut command);
    let output = command.output().unwrap();
    succeeds(&output);
    (losses(folder), text(&output).1)
}

/// The losses of training on these lines.
fn of_lines(lines: &str) -> Vec<Value> {
    let folder = Folder::new(TRAIN);
    std::fs::write(folder.dir.path().join("rows.jsonl"), lines).unwrap();
    trained(&folder, "rows.jsonl", |_| ()).0
}

#[test]
fn a_parquet_file_is_trained_on_as_its_rows_would_be() {
    let folder = Folder::new(TRAIN);
    let file = parquet("pairs-zstd.parquet");
    let (losses, said) = trained(&folder, &file.display().to_string(), |_| ());
    assert_eq!(losses, of_lines(&pairs()));
    assert!(said.contains("pairs-zstd.parquet:3 is left out"), "{said}");

    let folder = Folder::new(TRAIN);
    let file = parquet("messages.parquet");
    let (losses, said) = trained(&folder, &file.display().to_string(), |_| ());
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let rows = [
        json!({"messages": [message("system", "S"), message("user", "Q"), message("assistant", "A")]}),
        json!({"messages": [message("user", "R"), message("assistant", "B")]}),
    ];
    assert_eq!(
        losses,
        of_lines(&rows.map(|row| row.to_string()).join("\n"))
    );
    assert!(said.contains("messages.parquet:3 is left out"), "{said}");
}

#[test]
fn a_data_set_of_the_hub_is_downloaded_once_and_trained_on() {
    let downloads = Arc::new(AtomicUsize::new(0));
    let content = std::fs::read(parquet("pairs-snappy.parquet")).unwrap();
    let files = BTreeMap::from([("main/train-00000-of-00001.parquet", content)]);
    let server = hub(files, Arc::clone(&downloads));
    let cache = tempfile::tempdir().unwrap();
    let of_hub = |token: &'static str, offline: &'static str| {
        let (url, cache) = (server.url.clone(), cache.path().to_path_buf());
        move |command: &mut Command| {
            command.args(["--set", "data.subset=main"]);
            command.env("HF_ENDPOINT", &url).env("HF_TOKEN", token);
            command
                .env("HF_HUB_CACHE", &cache)
                .env("HF_HUB_OFFLINE", offline);
        }
    };
    let expected = of_lines(&pairs());
    let folder = Folder::new(TRAIN);
    let (losses, said) = trained(&folder, "openai/gsm8k", of_hub("hf_token", ""));
    assert_eq!(losses, expected);
    assert!(said.contains(":3 is left out"), "{said}");
    // The first download breaks off, and its rest is fetched.
    assert_eq!(downloads.load(Ordering::SeqCst), 2);
    let folder = Folder::new(TRAIN);
    assert_eq!(
        trained(&folder, "openai/gsm8k", of_hub("hf_token", "1")).0,
        expected
    );
    assert_eq!(downloads.load(Ordering::SeqCst), 2);

    let mut refused = Folder::new(TRAIN);
    let mut command = refused.command(&["--set", "data.path=openai/gsm8k"]);
    of_hub("hf_other", "")(&mut command);
    let output = command.output().unwrap();
    let (_, said) = text(&output);
    assert!(
        !output.status.success() && said.contains("HF_TOKEN"),
        "{said}"
    );
    assert!(!refused.path("row_losses.jsonl").exists());
    refused = Folder::new(TRAIN);
    let mut command = refused.command(&["--set", "data.path=openai/nothing"]);
    of_hub("hf_token", "")(&mut command);
    let (_, said) = text(&command.output().unwrap());
    assert!(said.contains("the Hub knows no such data set"), "{said}");
}

/// One conversation in every format there is: nothing but the reader differs, so what is learnt must not.
#[test]
fn rows_of_every_format_are_trained_on_alike() {
    let pairs: Vec<(String, String)> = (0..12)
        .map(|n| (format!("Say {n} please"), format!("{n}, gladly")))
        .collect();
    let lines = |row: &dyn Fn(&(String, String)) -> Value| {
        let rows: Vec<String> = pairs.iter().map(|pair| row(pair).to_string()).collect();
        rows.join("\n")
    };
    let messages = |(q, a): &(String, String)| json!({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]});
    let sharegpt = |(q, a): &(String, String)| json!({"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]});
    let alpaca = |(q, a): &(String, String)| json!({"instruction": q, "input": "", "output": a});
    let csv = pairs
        .iter()
        .map(|(q, a)| format!("{q},\"{a}\""))
        .collect::<Vec<_>>();
    let array: Vec<Value> = pairs.iter().map(messages).collect();
    let mixed = lines(&|pair| match pair.0.len() % 2 {
        0 => messages(pair),
        _ => sharegpt(pair),
    });
    let mut expected = None;
    for (name, content) in [
        ("rows.jsonl", lines(&messages)),
        ("rows.jsonl", lines(&sharegpt)),
        ("rows.jsonl", lines(&alpaca)),
        ("rows.jsonl", mixed),
        ("rows.csv", format!("question,answer\n{}", csv.join("\n"))),
        ("rows.json", serde_json::to_string(&array).unwrap()),
    ] {
        let folder = Folder::new(TRAIN);
        std::fs::write(folder.dir.path().join(name), &content).unwrap();
        let path = format!("data.path={name}");
        succeeds(&folder.run(&["-q", "--set", &path, "--set", "export=false"]));
        let losses = losses(&folder);
        assert_eq!(losses.len(), 3);
        let first = expected.get_or_insert_with(|| losses.clone());
        assert_eq!(*first, losses, "{name}: {content}");
    }
    let folder = Folder::new(TRAIN);
    let bad = lines(&messages) + "\n{\"question\": \"no answer\"}\nnot json";
    std::fs::write(folder.dir.path().join("rows.jsonl"), bad).unwrap();
    let (_, stderr) = text(&folder.run(&["check"]));
    assert!(
        stderr.contains("rows.jsonl:13 is left out: a question without an answer")
            && stderr.contains("rows.jsonl:14 is left out"),
        "{stderr}"
    );
}

/// An answer that is context is not learnt, whichever way a format says so.
#[test]
fn context_is_not_learnt_in_any_format() {
    let said = |n: usize| {
        [
            format!("Say {n}"),
            format!("{n} it is"),
            "Why?".into(),
            format!("{n}!"),
        ]
    };
    let lines = |row: &dyn Fn([String; 4]) -> Value| {
        let rows: Vec<String> = (0..12).map(|n| row(said(n)).to_string()).collect();
        rows.join("\n")
    };
    let turn = |role: &str, text: &String| json!({"role": role, "content": text});
    let context = |text: &String| json!({"role": "assistant", "content": text, "weight": 0});
    let expected = of_lines(&lines(
        &|[a, b, c, d]| json!({"messages": [turn("user", &a), context(&b), turn("user", &c), turn("assistant", &d)]}),
    ));
    let completion = of_lines(&lines(&|[a, b, c, d]| {
        let prompt = [turn("user", &a), turn("assistant", &b), turn("user", &c)];
        json!({"prompt": prompt, "completion": [turn("assistant", &d)]})
    }));
    assert_eq!(completion, expected, "prompt/completion");
    let shared = of_lines(&lines(&|[a, b, c, d]| {
        let said = |from: &str, text: &String| json!({"from": from, "value": text});
        let context = json!({"from": "gpt", "value": b, "weight": 0});
        json!({"conversations": [said("human", &a), context, said("human", &c), said("gpt", &d)]})
    }));
    assert_eq!(shared, expected, "ShareGPT");
    let all = of_lines(&lines(&|[a, b, c, d]| {
        let turns = [
            turn("user", &a),
            turn("assistant", &b),
            turn("user", &c),
            turn("assistant", &d),
        ];
        json!({"messages": turns})
    }));
    assert_ne!(
        all, expected,
        "the earlier answer is learnt where nothing is said of it"
    );
}

#[test]
fn training_alone_leaves_out_what_benchmarks_know_and_what_repeats() {
    let row = |n: usize| {
        let question = format!("How much are {n} sheep and all the other sheep of the farm");
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": format!("{n}")}]})
    };
    let lines = |rows: &[usize]| {
        let rows: Vec<String> = rows.iter().map(|&n| row(n).to_string()).collect();
        rows.join("\n")
    };
    let expected = of_lines(&lines(&[0, 1, 4, 5, 6, 7]));
    let folder = Folder::new(TRAIN);
    let write =
        |name: &str, text: &str| std::fs::write(folder.dir.path().join(name), text).unwrap();
    write("rows.jsonl", &lines(&[0, 1, 2, 1, 4]));
    write("more.jsonl", &lines(&[5, 0, 3, 6, 7]));
    write(
        "benchmark.txt",
        "How much are 2 sheep and all the other sheep of the farm?\nHow much are 3 sheep and all the other sheep of the farm?",
    );
    let (losses, said) = trained(&folder, "[\"rows.jsonl\", \"more.jsonl\"]", |command| {
        command.args(["--set", "data.deduplicate=exact"]);
        command.args(["--set", "data.decontaminate=benchmark.txt"]);
    });
    assert_eq!(losses, expected);
    assert!(
        said.contains("2 row(s) share text with the benchmarks of data.decontaminate and are left out: rows.jsonl:3, more.jsonl:3")
            && said.contains("2 row(s) repeat an earlier row (data.deduplicate) and are left out: rows.jsonl:4, more.jsonl:2"),
        "{said}"
    );
    write("all.txt", &lines(&(0..10).collect::<Vec<_>>()));
    let output = folder.run(&[
        "check",
        "--set",
        "data.decontaminate=all.txt",
        "--set",
        "data.decontaminate_ngram=3",
    ]);
    let (_, said) = text(&output);
    assert!(
        !output.status.success() && said.contains("no row of data.path is left"),
        "{said}"
    );
}
