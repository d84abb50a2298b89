//! What a config must fulfil beyond its types, checked before anything is loaded. Each error names the
//! place, the key, and what to write instead.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::origin::{Origins, key_and_section};
use super::{
    ALL_LINEAR, AdapterExport, BestMetric, CrossTokenizer, DataSection, DeviceChoice,
    DistillSection, Engine, GenerateSection, HubDataset, RunConfig, SaveStrategy, TrainSection,
    Variant, VerifyMethod,
};

/// A file repeated more often than this in one epoch is a slip of the pen.
const MOST_REPEATS: f64 = 100.0;

pub(super) fn check(config: &RunConfig, origins: &Origins) -> Result<()> {
    let given = Given { origins };
    given.required(
        &config.output_dir,
        "output_dir",
        "output_dir = \"runs/<name>\"",
    )?;
    given.check(
        !config.output_dir.is_file(),
        "output_dir",
        config.output_dir.display(),
        "must be a folder, and this is a file",
    )?;
    // An endpoint has its model; a run that only generates by it needs none here.
    let by_endpoint = config
        .generate
        .as_ref()
        .is_some_and(|generate| generate.engine == Engine::Openai);
    let only_generates = config.train.is_none() && config.export.is_none();
    if !(by_endpoint && only_generates && config.model.path.as_os_str().is_empty()) {
        given.required(
            &config.model.path,
            "model.path",
            "the model's folder, path = \"…\"",
        )?;
        given.model(&config.model.path, "model.path")?;
    }

    if config.generate.is_none() && config.train.is_none() && config.export.is_none() {
        bail!(
            "{}: nothing to do; add a [generate], [train] or [export] section",
            origins.file()
        );
    }
    if config.generate.is_some() || config.train.is_some() {
        if config.data.path.is_empty() {
            given.required(
                Path::new(""),
                "data.path",
                "the source rows, path = \"….jsonl\"",
            )?;
        }
        for path in &config.data.path {
            if HubDataset::named_by(path).is_none() {
                given.file(path, "data.path")?;
            }
        }
        check_data(&config.data, &given)?;
    }
    check_weights(config, &given)?;
    if let Some(generate) = &config.generate {
        check_generate(generate, &given)?;
    }
    if let Some(train) = &config.train {
        check_train(train, &given)?;
    }
    if let Some(distill) = &config.distill {
        check_distill(distill, config.train.as_ref(), &given)?;
    }
    if config.export.is_some() {
        let path = config.export_path();
        let same = matches!(
            (fs::canonicalize(&path), fs::canonicalize(&config.model.path)),
            (Ok(export), Ok(model)) if export == model
        );
        given.check(
            !same,
            "export.path",
            path.display(),
            "must not be model.path, which it would replace",
        )?;
        given.check(
            !path.is_file(),
            "export.path",
            path.display(),
            "must be a folder, and this is a file",
        )?;
    }
    if let Some(export) = &config.export
        && !export.checkpoint.as_os_str().is_empty()
    {
        given.check(
            export.checkpoint.join("trainer_state.json").is_file(),
            "export.checkpoint",
            quoted(&export.checkpoint),
            "is not a complete checkpoint; give a folder checkpoint-N of a run",
        )?;
    }
    if let (Some(export), Some(train)) = (&config.export, &config.train) {
        given.check(
            export.adapter == AdapterExport::Merge || train.method.has_adapter(),
            "export.adapter",
            "\"keep\"",
            "needs train.method = \"lora\" or \"qlora\": without an adapter there is none to keep",
        )?;
    }
    Ok(())
}

fn check_data(data: &DataSection, given: &Given) -> Result<()> {
    for path in &data.decontaminate {
        given.file(path, "data.decontaminate")?;
    }
    given.at_least(data.decontaminate_ngram, 2, "data.decontaminate_ngram")?;
    given.check(
        data.minhash_threshold > 0.0 && data.minhash_threshold <= 1.0,
        "data.minhash_threshold",
        data.minhash_threshold,
        "must be above 0 and at most 1",
    )?;
    let columns = &data.columns;
    for (column, key, needs, other) in [
        (&columns.question, "question", "answer", &columns.answer),
        (&columns.answer, "answer", "question", &columns.question),
        (&columns.input, "input", "question", &columns.question),
    ] {
        given.check(
            column.is_empty() || !other.is_empty(),
            &format!("data.columns.{key}"),
            format_args!("{column:?}"),
            format_args!("needs {needs} = \"…\" beside it"),
        )?;
    }
    given.check(
        columns.messages.is_empty() || columns.question.is_empty(),
        "data.columns.messages",
        format_args!("{:?}", columns.messages),
        "cannot stand beside question and answer; leave one of both out",
    )
}

fn check_weights(config: &RunConfig, given: &Given) -> Result<()> {
    let (weights, files) = (&config.data.weights, config.data.path.len());
    if weights.is_empty() {
        return Ok(());
    }
    let said = format!("{weights:?}");
    given.check(
        weights.len() == files,
        "data.weights",
        &said,
        format!("must have one number for each file of data.path, which names {files}"),
    )?;
    given.check(
        weights.iter().all(|w| w.is_finite() && *w > 0.0 && *w <= MOST_REPEATS),
        "data.weights",
        &said,
        format!("must hold numbers above 0 and at most {MOST_REPEATS}; leave a file that is not wanted out of data.path"),
    )?;
    given.check(
        config.generate.is_none(),
        "data.weights",
        &said,
        "mixes the rows of [train], which with [generate] come from one file; leave it out, or train in a run of its own",
    )
}

fn check_generate(generate: &GenerateSection, given: &Given) -> Result<()> {
    match generate.engine {
        Engine::Local if generate.model.as_os_str().is_empty() => {}
        Engine::Local => given.model(&generate.model, "generate.model")?,
        Engine::Openai => check_endpoint(generate, given)?,
    }
    given.at_least(generate.batch_size, 1, "generate.batch_size")?;
    given.at_least(generate.max_length, 2, "generate.max_length")?;
    for (path, key) in [
        (&generate.draft_prompt, "generate.draft_prompt"),
        (&generate.verify_prompt, "generate.verify_prompt"),
    ] {
        if !path.as_os_str().is_empty() {
            given.file(path, key)?;
        }
    }
    if generate.variant == Variant::CommonSystem {
        given.check(
            !generate.common_system_message.trim().is_empty(),
            "generate.common_system_message",
            "\"\"",
            "must have a text when variant = \"common_system\"",
        )?;
    }
    let (draft, verify, respond) = (&generate.draft, &generate.verify, &generate.respond);
    given.sampling(draft.temperature, draft.top_p, "generate.draft")?;
    given.sampling(verify.temperature, verify.top_p, "generate.verify")?;
    given.sampling(respond.temperature, respond.top_p, "generate.respond")?;
    for (min_p, repetition_penalty, section) in [
        (draft.min_p, draft.repetition_penalty, "generate.draft"),
        (verify.min_p, verify.repetition_penalty, "generate.verify"),
        (
            respond.min_p,
            respond.repetition_penalty,
            "generate.respond",
        ),
    ] {
        given.check(
            (0.0..=1.0).contains(&min_p),
            &format!("{section}.min_p"),
            min_p,
            "must be from 0 to 1",
        )?;
        given.check(
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            &format!("{section}.repetition_penalty"),
            repetition_penalty,
            "must be above 0, 1 for none",
        )?;
    }
    given.check(
        verify.threshold.is_finite(),
        "generate.verify.threshold",
        verify.threshold,
        "must be finite",
    )?;
    for (max_tokens, section, runs) in [
        (draft.max_tokens, "generate.draft", true),
        (
            verify.max_tokens,
            "generate.verify",
            verify.method == VerifyMethod::Generate,
        ),
        (respond.max_tokens, "generate.respond", true),
    ] {
        let key = format!("{section}.max_tokens");
        given.at_least(max_tokens, 1, &key)?;
        given.check(
            !runs || max_tokens < generate.max_length,
            &key,
            max_tokens,
            format!(
                "must be below generate.max_length ({}), which holds prompt and answer",
                generate.max_length
            ),
        )?;
    }
    Ok(())
}

fn check_distill(
    distill: &DistillSection,
    train: Option<&TrainSection>,
    given: &Given,
) -> Result<()> {
    given.check(
        train.is_some(),
        "distill.divergence",
        "…",
        "needs a [train] section: [distill] says what training learns from",
    )?;
    let stored = distill.teacher.as_os_str().is_empty();
    if !stored {
        given.model(&distill.teacher, "distill.teacher")?;
    }
    given.check(
        distill.beta > 0.0 && distill.beta < 1.0,
        "distill.beta",
        distill.beta,
        "must be above 0 and below 1; its ends are divergence = \"forward_kl\" and \"reverse_kl\"",
    )?;
    given.check(
        distill.temperature.is_finite() && distill.temperature > 0.0,
        "distill.temperature",
        distill.temperature,
        "must be above 0 and finite",
    )?;
    given.check(
        !stored || distill.temperature == 1.0,
        "distill.temperature",
        distill.temperature,
        "must be 1 without a teacher to run: the stored probabilities were taken at 1",
    )?;
    given.check(
        distill.alpha > 0.0 && distill.alpha <= 1.0,
        "distill.alpha",
        distill.alpha,
        "must be above 0 and at most 1",
    )?;
    check_on_policy(distill, train, given)
}

fn check_on_policy(
    distill: &DistillSection,
    train: Option<&TrainSection>,
    given: &Given,
) -> Result<()> {
    given.at_least(distill.max_new_tokens, 1, "distill.max_new_tokens")?;
    given.check(
        distill.on_policy_temperature.is_finite() && distill.on_policy_temperature >= 0.0,
        "distill.on_policy_temperature",
        distill.on_policy_temperature,
        "must be 0 (greedy) or more, and finite",
    )?;
    let rule = |holds: bool, rule: &str| {
        let holds = holds || distill.on_policy == 0.0;
        given.check(holds, "distill.on_policy", distill.on_policy, rule)
    };
    rule(
        (0.0..=1.0).contains(&distill.on_policy),
        "must be from 0 to 1",
    )?;
    rule(
        !distill.teacher.as_os_str().is_empty(),
        "needs distill.teacher: stored probabilities are those of the data's answers, not of what the student writes",
    )?;
    rule(
        distill.cross_tokenizer == CrossTokenizer::Refuse,
        "cannot go with cross_tokenizer = \"uld\": what the student writes is laid before the teacher token by token",
    )?;
    rule(
        train.is_none_or(|train| train.assistant_only_loss),
        "needs train.assistant_only_loss = true: where everything is learnt, no answer can be told from its question",
    )?;
    rule(
        train.is_none_or(|train| !train.optimizer_in_backward),
        "cannot go with train.optimizer_in_backward: what the student writes may need more than one micro-batch",
    )
}

/// The keys of the adapters, whether or not the method uses them.
fn check_adapter(train: &TrainSection, given: &Given) -> Result<()> {
    given.at_least(train.lora_r, 1, "train.lora_r")?;
    given.check(
        train.lora_alpha.is_finite() && train.lora_alpha > 0.0,
        "train.lora_alpha",
        train.lora_alpha,
        "must be above 0 and finite",
    )?;
    given.check(
        (0.0..1.0).contains(&train.lora_dropout),
        "train.lora_dropout",
        train.lora_dropout,
        "must be from 0 to below 1",
    )?;
    let targets = &train.lora_target_modules;
    let named = targets.iter().all(|target| !target.trim().is_empty());
    given.check(
        named && !targets.is_empty(),
        "train.lora_target_modules",
        format!("{targets:?}"),
        "must name projections, as in [\"q_proj\", \"v_proj\"], or be \"all-linear\"",
    )?;
    given.check(
        targets.len() == 1 || targets.iter().all(|target| target != ALL_LINEAR),
        "train.lora_target_modules",
        format!("{targets:?}"),
        "must be \"all-linear\" alone, or a list without it",
    )?;
    let adapter = &train.lora_adapter;
    if adapter.as_os_str().is_empty() {
        return Ok(());
    }
    given.check(
        train.method.has_adapter(),
        "train.lora_adapter",
        quoted(adapter),
        "needs method = \"lora\" or \"qlora\"",
    )?;
    given.check(
        adapter.join("adapter_config.json").is_file(),
        "train.lora_adapter",
        quoted(adapter),
        "has no adapter_config.json; give the folder of an adapter in PEFT's format",
    )
}

fn check_devices(devices: &[DeviceChoice], given: &Given) -> Result<()> {
    let said: Vec<String> = devices.iter().map(DeviceChoice::to_string).collect();
    let rule =
        |holds: bool, rule: &str| given.check(holds, "train.devices", format!("{said:?}"), rule);
    rule(
        !devices.contains(&DeviceChoice::Auto),
        "must name each device, as in [\"cuda:0\", \"cuda:1\"]",
    )?;
    let cpus = devices
        .iter()
        .filter(|&&device| device == DeviceChoice::Cpu);
    rule(
        [0, devices.len()].contains(&cpus.count()),
        "must be GPUs only, or \"cpu\" only: they do not round alike",
    )?;
    let again = |(at, device): (usize, &DeviceChoice)| {
        *device != DeviceChoice::Cpu && devices[..at].contains(device)
    };
    rule(
        !devices.iter().enumerate().any(again),
        "must name a GPU once",
    )
}

fn check_endpoint(generate: &GenerateSection, given: &Given) -> Result<()> {
    let endpoint = &generate.openai;
    given.required(
        Path::new(&endpoint.model),
        "generate.openai.model",
        "the name the endpoint knows the model by, model = \"…\"",
    )?;
    let url = &endpoint.base_url;
    given.check(
        url.is_empty() || url.starts_with("http://") || url.starts_with("https://"),
        "generate.openai.base_url",
        format_args!("{url:?}"),
        "must begin with http:// or https://",
    )?;
    given.check(
        generate.variant == Variant::NoSystem
            || generate.variant == Variant::CommonSystem
            || generate.verify.method == VerifyMethod::Generate,
        "generate.verify.method",
        "\"score\"",
        "cannot go with engine = \"openai\": an endpoint gives no probabilities of words it has not chosen; set method = \"generate\"",
    )?;
    given.check(
        generate.respond.teacher_top_k == 0,
        "generate.respond.teacher_top_k",
        generate.respond.teacher_top_k,
        "cannot go with engine = \"openai\": an endpoint does not name its tokens by id; leave it out",
    )?;
    for (value, key) in [
        (
            endpoint.max_parallel_requests,
            "generate.openai.max_parallel_requests",
        ),
        (endpoint.timeout_seconds, "generate.openai.timeout_seconds"),
        (
            endpoint.connect_timeout_seconds,
            "generate.openai.connect_timeout_seconds",
        ),
        (endpoint.max_failures, "generate.openai.max_failures"),
    ] {
        given.at_least(value, 1, key)?;
    }
    Ok(())
}

fn check_train(train: &TrainSection, given: &Given) -> Result<()> {
    let threshold = train.early_stopping_threshold;
    given.check(
        threshold.is_finite() && threshold >= 0.0,
        "train.early_stopping_threshold",
        threshold,
        "must be 0 or more and finite",
    )?;
    for (asked, key) in [
        (
            train.early_stopping_patience > 0,
            "train.early_stopping_patience",
        ),
        (train.load_best_model_at_end, "train.load_best_model_at_end"),
    ] {
        let value = "set";
        given.check(
            !asked || train.eval_steps > 0,
            key,
            value,
            "needs evaluations on the way; set train.eval_steps",
        )?;
        given.check(
            !asked
                || train.metric_for_best_model != BestMetric::EvalLoss
                || train.eval_fraction > 0.0,
            key,
            value,
            "needs held-out rows; set train.eval_fraction",
        )?;
    }
    given.check(
        train.metric_for_best_model != BestMetric::Obedience || train.obedience_probe,
        "train.metric_for_best_model",
        "\"obedience\"",
        "needs train.obedience_probe = true",
    )?;
    check_adapter(train, given)?;
    let in_backward = train.optimizer_in_backward;
    given.check(
        !in_backward || train.micro_batches() == 1,
        "train.optimizer_in_backward",
        in_backward,
        format_args!(
            "cannot go with {} micro-batches a step: a gradient is used and gone before the next micro-batch could be added to \
             it; set gradient_accumulation_steps = 1 and at most one device",
            train.micro_batches()
        ),
    )?;
    given.check(
        !in_backward || train.max_grad_norm == 0.0,
        "train.optimizer_in_backward",
        in_backward,
        format_args!(
            "cannot go with max_grad_norm = {}: the norm of all gradients is known only when the first have been used; set \
             max_grad_norm = 0",
            train.max_grad_norm
        ),
    )?;
    check_devices(&train.devices, given)?;
    given.at_least(train.max_length, 2, "train.max_length")?;
    if train.variant == Variant::CommonSystem {
        given.check(
            !train.common_system_message.trim().is_empty(),
            "train.common_system_message",
            "\"\"",
            "must have a text when variant = \"common_system\"",
        )?;
    }
    given.at_least(
        train.per_device_train_batch_size,
        1,
        "train.per_device_train_batch_size",
    )?;
    given.at_least(
        train.gradient_accumulation_steps,
        1,
        "train.gradient_accumulation_steps",
    )?;
    given.at_least(train.logging_steps, 1, "train.logging_steps")?;
    given.check(
        train.save_strategy == SaveStrategy::Steps || train.save_steps == 0,
        "train.save_steps",
        train.save_steps,
        "cannot go with save_strategy = \"epoch\"; leave one of both out",
    )?;
    given.at_least(train.max_nonfinite_steps, 1, "train.max_nonfinite_steps")?;
    let above_zero = |value: f64| value.is_finite() && value > 0.0;
    for (value, key) in [
        (train.learning_rate, "train.learning_rate"),
        (train.adam_epsilon, "train.adam_epsilon"),
        (train.num_train_epochs, "train.num_train_epochs"),
    ] {
        given.check(above_zero(value), key, value, "must be above 0 and finite")?;
    }
    for (value, key) in [
        (train.weight_decay, "train.weight_decay"),
        (train.max_grad_norm, "train.max_grad_norm"),
    ] {
        let holds = value.is_finite() && value >= 0.0;
        given.check(holds, key, value, "must be 0 or more and finite")?;
    }
    for (value, key) in [
        (train.adam_beta1, "train.adam_beta1"),
        (train.adam_beta2, "train.adam_beta2"),
        (train.eval_fraction, "train.eval_fraction"),
    ] {
        given.check(
            (0.0..1.0).contains(&value),
            key,
            value,
            "must be from 0 to below 1",
        )?;
    }
    Ok(())
}

/// The given values' places, for the errors.
struct Given<'a> {
    origins: &'a Origins,
}

impl Given<'_> {
    fn check(&self, holds: bool, key: &str, value: impl Display, rule: impl Display) -> Result<()> {
        if !holds {
            let (name, section) = key_and_section(key);
            bail!("{}: {name} = {value}{section} {rule}", self.origins.at(key));
        }
        Ok(())
    }

    fn required(&self, path: &Path, key: &str, example: &str) -> Result<()> {
        if path.as_os_str().is_empty() {
            let (name, section) = key_and_section(key);
            bail!(
                "{}: {name}{section} is missing; add {example}",
                self.origins.at(key)
            );
        }
        Ok(())
    }

    fn at_least(&self, value: usize, least: usize, key: &str) -> Result<()> {
        self.check(
            value >= least,
            key,
            value,
            format!("must be at least {least}"),
        )
    }

    fn sampling(&self, temperature: f64, top_p: f64, section: &str) -> Result<()> {
        self.check(
            temperature.is_finite() && temperature >= 0.0,
            &format!("{section}.temperature"),
            temperature,
            "must be 0 (greedy) or more, and finite",
        )?;
        self.check(
            top_p > 0.0 && top_p <= 1.0,
            &format!("{section}.top_p"),
            top_p,
            "must be above 0 and at most 1",
        )
    }

    fn model(&self, path: &Path, key: &str) -> Result<()> {
        let rule = if !path.exists() {
            "does not exist; give the folder of a Hugging Face model, relative to the current directory"
        } else if !path.is_dir() {
            "is not a folder; give the folder of a Hugging Face model"
        } else if !path.join("config.json").is_file() {
            "has no config.json; give the folder of a Hugging Face model"
        } else {
            return Ok(());
        };
        self.check(false, key, quoted(path), rule)
    }

    fn file(&self, path: &Path, key: &str) -> Result<()> {
        let rule = if !path.exists() {
            "does not exist; give a file, relative to the current directory"
        } else if path.is_dir() {
            "is a folder; give a file in it"
        } else {
            return Ok(());
        };
        self.check(false, key, quoted(path), rule)
    }
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
