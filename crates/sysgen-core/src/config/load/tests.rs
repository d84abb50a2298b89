//! What a config may say, and what its errors say: a line with the place, the key and the way out.
//! Here reading and types; in `rules` what values must fulfil.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use super::super::{DeviceChoice, LrScheduler, RunConfig, VerifyMethod};

mod rules;

/// The part of a config that every test has; line 6 is free.
const START: &str = "output_dir = \"runs/a\"\n[model]\npath = \"FOLDER/model\"\n[data]\npath = \"FOLDER/rows.jsonl\"\n";

/// A folder with a model and a data file, and the config's text in it. `FOLDER` stands for the folder.
fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    fs::create_dir(folder.path().join("model")).unwrap();
    fs::write(folder.path().join("model/config.json"), "{}").unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::write(folder.path().join("rows.jsonl"), "").unwrap();
    let path = folder.path().join("x.toml");
    fs::write(&path, text.replace("FOLDER", &root)).unwrap();
    let overrides: Vec<String> = overrides
        .iter()
        .map(|set| set.replace("FOLDER", &root))
        .collect();
    RunConfig::load(&path, &overrides).map_err(|error| {
        let error = format!("{error:#}");
        error.replace(&format!("{root}/"), "")
    })
}

/// `START` with more lines, from line 6 on.
fn with(lines: &str, overrides: &[&str]) -> Result<RunConfig, String> {
    load(&format!("{START}{lines}"), overrides)
}

#[track_caller]
fn refused(result: Result<RunConfig, String>, expected: &str) {
    assert_eq!(result.unwrap_err(), expected);
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = with("[train]", &[]).unwrap();
    assert_eq!(config.output_dir, PathBuf::from("runs/a"));
    assert_eq!(config.device, DeviceChoice::Auto);
    assert_eq!(config.data.path.len(), 1);
    let train = config.train.unwrap();
    assert_eq!(train.learning_rate, 1e-6);
    assert_eq!(train.max_length, 4096);
    assert_eq!(train.lr_scheduler_type, LrScheduler::Cosine);
    assert!(config.generate.is_none() && config.export.is_none());
}

#[test]
fn the_effective_config_names_every_key_and_loads_as_itself() {
    let text = with(
        "[generate]\n[train]\nlearning_rate = 5\n[export]",
        &["device=cuda:1"],
    );
    let mut config = text.unwrap();
    let folder = tempfile::tempdir().unwrap();
    config.model.path = folder.path().to_path_buf();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    config.data.path = vec![folder.path().join("config.json"); 2];
    let printed = config.to_toml();
    for key in [
        "seed = 0",
        "top_p = 1.0",
        "adam_epsilon = 0.00000001",
        "[generate.verify]",
        "\"cuda:1\"",
    ] {
        assert!(printed.contains(key), "{key} is missing in\n{printed}");
    }
    let path = folder.path().join("x.toml");
    fs::write(&path, &printed).unwrap();
    let again = RunConfig::load(&path, &[]).unwrap();
    assert_eq!(again, config);
    assert_eq!(again.to_toml(), printed);
}

#[test]
fn one_path_or_a_list_of_paths_is_read() {
    let list = START.replace(
        "\"FOLDER/rows.jsonl\"",
        "[\"FOLDER/rows.jsonl\", \"FOLDER/x.toml\"]",
    );
    assert_eq!(
        load(&format!("{list}[train]"), &[])
            .unwrap()
            .data
            .path
            .len(),
        2
    );
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_what_was_meant() {
    refused(
        with("[train]\nlerning_rate = 1e-5", &[]),
        "x.toml:7: unknown key `lerning_rate` in [train]; did you mean `learning_rate`?",
    );
    refused(
        with("[trian]", &[]),
        "x.toml:6: unknown key `trian` at the top of the file; did you mean `train`?",
    );
    refused(
        with("[generate.draft]\nzzz = 1", &[]),
        "x.toml:7: unknown key `zzz` in [generate.draft]; its keys are `max_tokens`, `min_p`, `repetition_penalty`, `retries`, `temperature`, `top_k`, `top_p`",
    );
    refused(
        load(&format!("learning_rate = 1\n{START}[train]"), &[]),
        "x.toml:1: unknown key `learning_rate` at the top of the file; it belongs to [train]",
    );
    refused(
        with("[train]\n", &["train.lerning_rate=1"]),
        "--set train.lerning_rate=1: unknown key `lerning_rate` in [train]; did you mean `learning_rate`?",
    );
}

#[test]
fn a_wrong_type_or_word_is_named_with_what_is_allowed() {
    for (lines, expected) in [
        (
            "[train]\nlearning_rate = \"fast\"",
            "x.toml:7: learning_rate = \"fast\" in [train] is not allowed; expected a number",
        ),
        (
            "[train]\nmax_steps = -1",
            "x.toml:7: max_steps = -1 in [train] is not allowed; expected a whole number, 0 or more",
        ),
        (
            "[train]\nmax_steps = 1.5",
            "x.toml:7: max_steps = 1.5 in [train] is not allowed; expected a whole number, 0 or more",
        ),
        (
            "[train]\npacking = 1",
            "x.toml:7: packing = 1 in [train] is not allowed; expected true or false",
        ),
        (
            "[train]\nlr_scheduler_type = \"cosin\"",
            "x.toml:7: lr_scheduler_type = \"cosin\" in [train] is not allowed; expected `cosine`, `linear`, `constant`",
        ),
        (
            "[train]\nlr_scheduler_type = 3",
            "x.toml:7: lr_scheduler_type = 3 in [train] is not allowed; expected `cosine`, `linear`, `constant`",
        ),
        (
            "[train]\nmethod = \"reft\"",
            "x.toml:7: method = \"reft\" in [train] is not allowed; expected `full`, `lora`, `qlora`",
        ),
        (
            "[generate]\nengine = \"vllm\"",
            "x.toml:7: engine = \"vllm\" in [generate] is not allowed; expected `local` or `openai`",
        ),
        (
            "weights = \"twice\"",
            "x.toml:6: weights = \"twice\" in [data] is not allowed; expected a list of numbers, one for each file",
        ),
        (
            "[train]\nlora_target_modules = 5",
            "x.toml:7: lora_target_modules = 5 in [train] is not allowed; expected a module in quotes, or a list of modules",
        ),
        (
            "[export]\npath = 3",
            "x.toml:7: path = 3 in [export] is not allowed; expected text in quotes",
        ),
        (
            "[[train]]",
            "x.toml:6: `train` is a section; write [train] and its keys below it",
        ),
    ] {
        refused(with(lines, &[]), expected);
    }
    refused(
        load(&format!("device = \"gpu\"\n{START}[train]"), &[]),
        "x.toml:1: device = \"gpu\" is not allowed; expected `auto`, `cpu`, `cuda` or `cuda:<index>`",
    );
    refused(
        with("[train]", &["data.path=3"]),
        "--set data.path=3: path = \"3\" in [data] does not exist; give a file, relative to the current directory",
    );
    refused(
        with("[train]", &["train.packing=perhaps"]),
        "--set train.packing=perhaps: packing = \"perhaps\" in [train] is not allowed; expected true or false",
    );
}

#[test]
fn a_section_written_as_a_value_is_said_whatever_is_set_below_it() {
    let value = START.replace("[data]\npath", "data");
    let value = value.replace("[model]\npath", "model.path");
    refused(
        load(&format!("{value}[train]"), &["data.limit=10"]),
        "x.toml:3: `data` is a section; write [data] and its keys below it",
    );
    refused(
        with("[[train]]", &["train.max_steps=3"]),
        "x.toml:6: `train` is a section; write [train] and its keys below it",
    );
    refused(
        with("columns = \"a\"\n[train]", &["data.columns.question=q"]),
        "x.toml:6: `data.columns` is a section; write [data.columns] and its keys below it",
    );
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = with("[train]\nlearning_rate = \n", &[]).unwrap_err();
    assert!(error.starts_with("x.toml:7: "), "{error}");
    let error = with("[train]\nseed = 1\nseed = 2\n", &[]).unwrap_err();
    assert!(
        error.starts_with("x.toml:8: ") && error.contains("duplicate key"),
        "{error}"
    );
    let error = with("[train]\nmax_steps = 99999999999999999999\n", &[]).unwrap_err();
    assert!(error.starts_with("x.toml:7: "), "{error}");
}

#[test]
fn set_wins_over_the_file_and_the_last_set_wins() {
    let config = with(
        "[train]\nlearning_rate = 1e-3",
        &[
            "train.learning_rate=2e-4",
            "train.learning_rate = 3e-4",
            "output_dir=2026",
            "device=cuda:2",
            "train.lr_scheduler_type=linear",
            "generate.verify.method=generate",
            "export={dtype=\"bf16\"}",
        ],
    )
    .unwrap();
    assert_eq!(config.output_dir, PathBuf::from("2026"));
    assert_eq!(config.device, DeviceChoice::Cuda(2));
    let train = config.train.as_ref().unwrap();
    assert_eq!(train.learning_rate, 3e-4);
    assert_eq!(train.lr_scheduler_type, LrScheduler::Linear);
    assert_eq!(
        config.generate.as_ref().unwrap().verify.method,
        VerifyMethod::Generate
    );
    assert_eq!(
        config.export.as_ref().unwrap().dtype,
        super::super::ExportDtype::Bf16
    );
}

#[test]
fn set_puts_a_stage_in_and_takes_it_out() {
    let config = with(
        "[train]\nlearning_rate = 1",
        &["train=false", "export=true"],
    )
    .unwrap();
    assert!(config.train.is_none() && config.export.is_some());
    refused(
        with("[train]", &["train=off"]),
        "--set train=off: `train` is a section; set its keys, as in train.adam_beta1=…, or train=true or train=false to put the section in or take it out",
    );
    refused(
        with("[train]", &["model=x"]),
        "--set model=x: `model` is a section; set its keys, as in model.default_system=…",
    );
    refused(
        with("[train]", &["seed"]),
        "--set seed: write section.key=value",
    );
    refused(
        with("[train]", &["seed.x=1"]),
        "--set seed.x=1: `seed` is a key, not a section",
    );
    refused(
        with("[train]", &["train=false"]),
        "x.toml: nothing to do; add a [generate], [train] or [export] section",
    );
}

#[test]
fn a_key_is_found_by_a_word_of_it_or_its_initials() {
    for (given, meant) in [
        ("lr", "`learning_rate` or `lora_r` or `lr_scheduler_type`"),
        ("epochs", "`num_train_epochs`"),
        ("batch_size", "`per_device_train_batch_size`"),
    ] {
        refused(
            with(&format!("[train]\n{given} = 1"), &[]),
            &format!("x.toml:7: unknown key `{given}` in [train]; did you mean {meant}?"),
        );
    }
}

#[test]
fn all_mistakes_are_named_at_once_in_the_order_of_the_file() {
    refused(
        load(
            &format!("seeed = 1\n{START}packing = 2\n[train]\nepochs = 3\nmax_steps = -1"),
            &["train.packing=perhaps", "zzz"],
        ),
        "6 mistakes:
  x.toml:1: unknown key `seeed` at the top of the file; did you mean `seed`?
  x.toml:7: unknown key `packing` in [data]; it belongs to [train]
  x.toml:9: unknown key `epochs` in [train]; did you mean `num_train_epochs`?
  x.toml:10: max_steps = -1 in [train] is not allowed; expected a whole number, 0 or more
  --set train.packing=perhaps: packing = \"perhaps\" in [train] is not allowed; expected true or false
  --set zzz: write section.key=value",
    );
    refused(
        with("limit = 3\n[train]\nlearning_rate = -1.0\nmax_length = 1\n[generate]\nbatch_size = 0", &["model.path=gone"]),
        "4 mistakes:
  x.toml:8: learning_rate = -1 in [train] must be above 0 and finite
  x.toml:9: max_length = 1 in [train] must be at least 2
  x.toml:11: batch_size = 0 in [generate] must be at least 1
  --set model.path=gone: path = \"gone\" in [model] does not exist; give the folder of a Hugging Face model, relative to the current directory (`hf download ORG/NAME --local-dir DIR` makes one)",
    );
}
