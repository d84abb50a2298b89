//! What the values of a config must fulfil, each rule with the line it is refused with.

use super::{START, load, refused, with};

#[test]
fn what_is_missing_is_named_with_what_to_add() {
    refused(
        load("[train]", &[]),
        "3 mistakes:
  x.toml: output_dir is missing; add output_dir = \"runs/<name>\"
  x.toml: path in [model] is missing; add the model's folder, path = \"…\"
  x.toml: path in [data] is missing; add the source rows, path = \"….jsonl\"",
    );
    refused(
        load("output_dir = \"a\"\n[model]\n[export]", &[]),
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
            "path = \"none\" in [model] does not exist; give the folder of a Hugging Face model, relative to the current directory (`hf download ORG/NAME --local-dir DIR` makes one)",
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
        (
            "export.path=runs/a",
            "path = runs/a in [export] must not be output_dir, which it would replace",
        ),
        (
            "export.path=runs/b/../../runs",
            "path = runs/b/../../runs in [export] must not hold output_dir, which it would replace with the rest of the folder",
        ),
        (
            "export.path=runs/a/data",
            "path = runs/a/data in [export] must not be the run's data, which it would replace",
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
fn a_teacher_of_another_tokenizer_is_compared_over_answers_alone() {
    let teacher = "teacher = \"FOLDER/model\"\n";
    refused(
        with(
            &format!(
                "[train]\nassistant_only_loss = false\n[distill]\n{teacher}cross_tokenizer = \"uld\""
            ),
            &[],
        ),
        "x.toml:10: cross_tokenizer = \"uld\" in [distill] needs train.assistant_only_loss = true: the answers are compared, and the templates around them are different texts",
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
    assert!(endpoint("[generate.openai]\nmodel = \"m\"", &["model.path=gone"]).is_ok());
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

#[test]
fn what_training_alone_would_pass_over_is_refused() {
    refused(
        load(
            &format!("{START}multi_turn = \"first\"\nexisting_system = \"skip\"\n[train]"),
            &[],
        ),
        "2 mistakes:
  x.toml:6: multi_turn = \"first\" in [data] needs [generate]: [train] alone learns every answer of a conversation; leave it out
  x.toml:7: existing_system = \"skip\" in [data] needs [generate]: [train] alone keeps every system message; leave it out",
    );
    // What says the same as leaving it out may stay.
    let kept = format!("{START}multi_turn = \"whole\"\nexisting_system = \"keep\"\n[train]");
    assert!(load(&kept, &[]).is_ok());
}

#[test]
fn modules_in_one_text_are_told_to_be_a_list() {
    refused(
        with("[train]", &["train.lora_target_modules=q_proj,v_proj"]),
        "--set train.lora_target_modules=q_proj,v_proj: lora_target_modules = [\"q_proj,v_proj\"] in [train] has several \
         modules in one text; write a list, as in [\"q_proj\", \"v_proj\"]",
    );
    let list = with(
        "[train]",
        &["train.lora_target_modules=[\"q_proj\", \"v_proj\"]"],
    );
    assert_eq!(list.unwrap().train.unwrap().lora_target_modules.len(), 2);
}
