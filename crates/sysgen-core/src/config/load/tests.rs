//! What a config may say, and what its errors say: one line with the place, the key and the way out.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use super::super::{DeviceChoice, LrScheduler, RunConfig, VerifyMethod};

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
        assert!(!error.contains('\n'), "more than one line: {error}");
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
fn what_is_missing_is_named_with_what_to_add() {
    refused(
        load("[train]", &[]),
        "x.toml: output_dir is missing; add output_dir = \"runs/<name>\"",
    );
    refused(
        load("output_dir = \"a\"\n[model]\n[train]", &[]),
        "x.toml:2: path in [model] is missing; add the model's folder, path = \"…\"",
    );
    refused(
        load(
            "output_dir = \"a\"\n[model]\npath = \"FOLDER/model\"\n[train]",
            &[],
        ),
        "x.toml: path in [data] is missing; add the source rows, path = \"….jsonl\"",
    );
    assert!(
        load(
            "output_dir = \"a\"\n[model]\npath = \"FOLDER/model\"\n[export]",
            &[]
        )
        .is_ok()
    );
}

#[test]
fn paths_that_do_not_fit_are_named() {
    for (set, expected) in [
        (
            "model.path=none",
            "path = \"none\" in [model] does not exist; give the folder of a Hugging Face model, relative to the current directory",
        ),
        (
            "model.path=FOLDER/rows.jsonl",
            "path = \"rows.jsonl\" in [model] is not a folder; give the folder of a Hugging Face model",
        ),
        (
            "model.path=FOLDER/empty",
            "path = \"empty\" in [model] has no config.json; give the folder of a Hugging Face model",
        ),
        (
            "data.path=FOLDER/empty",
            "path = \"empty\" in [data] is a folder; give a file in it",
        ),
        (
            "generate.draft_prompt=none",
            "draft_prompt = \"none\" in [generate] does not exist; give a file, relative to the current directory",
        ),
        (
            "export.path=FOLDER/model",
            "path = model in [export] must not be model.path, which it would replace",
        ),
    ] {
        let shown = set.replace("FOLDER/", "");
        refused(
            with("[train]", &[set]),
            &format!("--set {shown}: {expected}"),
        );
    }
}

#[test]
fn numbers_out_of_range_are_named_with_the_range() {
    for (set, expected) in [
        (
            "train.learning_rate=0",
            "learning_rate = 0 in [train] must be above 0 and finite",
        ),
        (
            "train.learning_rate=nan",
            "learning_rate = NaN in [train] must be above 0 and finite",
        ),
        (
            "train.adam_epsilon=inf",
            "adam_epsilon = inf in [train] must be above 0 and finite",
        ),
        (
            "train.weight_decay=-0.1",
            "weight_decay = -0.1 in [train] must be 0 or more and finite",
        ),
        (
            "train.eval_fraction=1",
            "eval_fraction = 1 in [train] must be from 0 to below 1",
        ),
        (
            "train.adam_beta2=1.0",
            "adam_beta2 = 1 in [train] must be from 0 to below 1",
        ),
        (
            "train.per_device_train_batch_size=0",
            "per_device_train_batch_size = 0 in [train] must be at least 1",
        ),
        (
            "generate.batch_size=0",
            "batch_size = 0 in [generate] must be at least 1",
        ),
        (
            "generate.draft.temperature=-1",
            "temperature = -1 in [generate.draft] must be 0 (greedy) or more, and finite",
        ),
        (
            "generate.respond.top_p=0",
            "top_p = 0 in [generate.respond] must be above 0 and at most 1",
        ),
        (
            "generate.draft.max_tokens=4096",
            "max_tokens = 4096 in [generate.draft] must be below generate.max_length (4096), which holds prompt and answer",
        ),
        (
            "generate.verify.threshold=nan",
            "threshold = NaN in [generate.verify] must be finite",
        ),
    ] {
        refused(with("[train]", &[set]), &format!("--set {set}: {expected}"));
    }
    refused(
        with("[train]\n\nwarmup_steps = 3\nlearning_rate = -1", &[]),
        "x.toml:9: learning_rate = -1 in [train] must be above 0 and finite",
    );
}

#[test]
fn an_update_on_the_way_back_needs_one_micro_batch_and_no_clip() {
    let start = "[train]\noptimizer_in_backward = true\n";
    let lines = |more: &str| format!("{start}{more}");
    refused(
        with(&lines("max_grad_norm = 0"), &[]),
        "x.toml:7: optimizer_in_backward = true in [train] cannot go with 2 micro-batches a step: a gradient is used and \
         gone before the next micro-batch could be added to it; set gradient_accumulation_steps = 1 and at most one device",
    );
    refused(
        with(&lines("gradient_accumulation_steps = 1"), &[]),
        "x.toml:7: optimizer_in_backward = true in [train] cannot go with max_grad_norm = 1: the norm of all gradients is known \
         only when the first have been used; set max_grad_norm = 0",
    );
    let both = lines("gradient_accumulation_steps = 1\nmax_grad_norm = 0");
    assert!(
        with(&both, &[])
            .unwrap()
            .train
            .unwrap()
            .optimizer_in_backward
    );
}

#[test]
fn devices_are_gpus_or_the_cpu_each_gpu_once() {
    let with = |devices: &str| with(&format!("[train]\ndevices = {devices}\n"), &[]);
    let count = |devices: &str| with(devices).unwrap().train.unwrap().devices.len();
    assert_eq!(count("[\"cuda:0\", \"cuda:3\"]"), 2);
    assert_eq!(count("[\"cpu\", \"cpu\"]"), 2);
    assert_eq!(count("\"cpu\""), 1);
    for (devices, expected) in [
        (
            "[\"cuda:0\", \"auto\"]",
            "[\"cuda:0\", \"auto\"] in [train] must name each device, as in [\"cuda:0\", \"cuda:1\"]",
        ),
        (
            "[\"cuda:0\", \"cpu\"]",
            "[\"cuda:0\", \"cpu\"] in [train] must be GPUs only, or \"cpu\" only: they do not round alike",
        ),
        (
            "[\"cuda\", \"cuda:0\"]",
            "[\"cuda:0\", \"cuda:0\"] in [train] must name a GPU once",
        ),
        (
            "[\"gpu\"]",
            "[\"gpu\"] in [train] is not allowed; expected `cpu`, `cuda` or `cuda:<index>`, or a list of them",
        ),
    ] {
        refused(with(devices), &format!("x.toml:7: devices = {expected}"));
    }
}

#[test]
fn a_student_that_writes_needs_a_teacher_that_is_run() {
    let distill = "[train]\n[distill]\n";
    let lines = |more: &str| with(&format!("{distill}{more}"), &[]);
    let teacher = "teacher = \"FOLDER/model\"\n";
    assert!(lines(&format!("{teacher}on_policy = 0.5")).is_ok());
    for (more, expected) in [
        (
            "on_policy = 0.5",
            "x.toml:8: on_policy = 0.5 in [distill] needs distill.teacher: stored probabilities are those of the data's answers, not of what the student writes",
        ),
        (
            "on_policy = 1.5",
            "x.toml:8: on_policy = 1.5 in [distill] must be from 0 to 1",
        ),
        (
            "max_new_tokens = 0",
            "x.toml:8: max_new_tokens = 0 in [distill] must be at least 1",
        ),
        (
            "on_policy_temperature = -1.0",
            "x.toml:8: on_policy_temperature = -1 in [distill] must be 0 (greedy) or more, and finite",
        ),
    ] {
        refused(lines(more), expected);
    }
    refused(
        lines(&format!(
            "{teacher}on_policy = 0.5\ncross_tokenizer = \"uld\""
        )),
        "x.toml:9: on_policy = 0.5 in [distill] cannot go with cross_tokenizer = \"uld\": what the student writes is laid before the teacher token by token",
    );
    refused(
        with(
            &format!("[train]\nassistant_only_loss = false\n[distill]\n{teacher}on_policy = 1"),
            &[],
        ),
        "x.toml:10: on_policy = 1 in [distill] needs train.assistant_only_loss = true: where everything is learnt, no answer can be told from its question",
    );
}

#[test]
fn what_a_data_section_asks_for_must_fit_together() {
    let data = |lines: &str| {
        let with = START.replace("rows.jsonl\"\n", &format!("rows.jsonl\"\n{lines}\n"));
        load(&format!("{with}[train]"), &[])
    };
    refused(
        data("deduplicate = \"fuzzy\""),
        "x.toml:6: deduplicate = \"fuzzy\" in [data] is not allowed; expected `none`, `exact`, `minhash`",
    );
    refused(
        data("minhash_threshold = 1.5"),
        "x.toml:6: minhash_threshold = 1.5 in [data] must be above 0 and at most 1",
    );
    refused(
        data("decontaminate = [\"FOLDER/gone.jsonl\"]"),
        "x.toml:6: decontaminate = \"gone.jsonl\" in [data] does not exist; give a file, relative to the current directory",
    );
    refused(
        data("[data.columns]\nquestion = \"q\""),
        "x.toml:7: question = \"q\" in [data.columns] needs answer = \"…\" beside it",
    );
    refused(
        data("[data.columns]\nmessages = \"m\"\nquestion = \"q\"\nanswer = \"a\""),
        "x.toml:7: messages = \"m\" in [data.columns] cannot stand beside question and answer; leave one of both out",
    );
    refused(
        data("[data.columns]\nanser = \"a\""),
        "x.toml:7: unknown key `anser` in [data.columns]; did you mean `answer`?",
    );
}

#[test]
fn an_endpoint_needs_a_name_and_no_model_folder() {
    let endpoint = |lines: &str, overrides: &[&str]| {
        let start = START.replace("[model]\npath = \"FOLDER/model\"\n", "");
        load(
            &format!(
                "{start}[generate]\nengine = \"openai\"\n[generate.verify]\nmethod = \"generate\"\n{lines}"
            ),
            overrides,
        )
    };
    assert!(endpoint("[generate.openai]\nmodel = \"m\"", &[]).is_ok());
    refused(
        endpoint("", &[]),
        "x.toml:4: model in [generate.openai] is missing; add the name the endpoint knows the model by, model = \"…\"",
    );
    refused(
        endpoint(
            "[generate.openai]\nmodel = \"m\"\nbase_url = \"localhost:8000\"",
            &[],
        ),
        "x.toml:10: base_url = \"localhost:8000\" in [generate.openai] must begin with http:// or https://",
    );
    refused(
        endpoint(
            "[generate.openai]\nmodel = \"m\"",
            &["generate.openai.max_failures=0"],
        ),
        "--set generate.openai.max_failures=0: max_failures = 0 in [generate.openai] must be at least 1",
    );
    let trained = endpoint("[generate.openai]\nmodel = \"m\"\n[train]", &[]);
    assert!(trained.unwrap_err().contains("path in [model] is missing"));
}

#[test]
fn data_sets_of_the_hub_are_no_missing_files() {
    let hub = START.replace("FOLDER/rows.jsonl", "openai/gsm8k");
    assert!(load(&format!("{hub}[generate]"), &[]).is_ok());
    assert!(load(&format!("{hub}[train]"), &[]).is_ok());
    let missing = START.replace("FOLDER/rows.jsonl", "data/gone.jsonl");
    let error = load(&format!("{missing}[generate]"), &[]).unwrap_err();
    assert!(error.contains("does not exist"), "{error}");
}
