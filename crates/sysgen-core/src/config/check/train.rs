//! The rules of `[train]` and `[distill]`.

use super::given::{Given, quoted};
use crate::config::{
    ALL_LINEAR, BestMetric, CrossTokenizer, DeviceChoice, DistillSection, TrainSection, Variant,
};

pub(super) fn check_train(train: &TrainSection, given: &Given) {
    let threshold = train.early_stopping_threshold;
    given.check(
        threshold.is_finite() && threshold >= 0.0,
        "train.early_stopping_threshold",
        threshold,
        "must be 0 or more and finite",
    );
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
        );
        given.check(
            !asked
                || train.metric_for_best_model != BestMetric::EvalLoss
                || train.eval_fraction > 0.0,
            key,
            value,
            "needs held-out rows; set train.eval_fraction",
        );
    }
    given.check(
        train.metric_for_best_model != BestMetric::Obedience || train.obedience_probe,
        "train.metric_for_best_model",
        "\"obedience\"",
        "needs train.obedience_probe = true",
    );
    check_adapter(train, given);
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
    );
    given.check(
        !in_backward || train.max_grad_norm == 0.0,
        "train.optimizer_in_backward",
        in_backward,
        format_args!(
            "cannot go with max_grad_norm = {}: the norm of all gradients is known only when the first have been used; set \
             max_grad_norm = 0",
            train.max_grad_norm
        ),
    );
    check_devices(&train.devices, given);
    given.at_least(train.max_length, 2, "train.max_length");
    if train.variant == Variant::CommonSystem {
        given.check(
            !train.common_system_message.trim().is_empty(),
            "train.common_system_message",
            "\"\"",
            "must have a text when variant = \"common_system\"",
        );
    }
    given.at_least(
        train.per_device_train_batch_size,
        1,
        "train.per_device_train_batch_size",
    );
    given.at_least(
        train.gradient_accumulation_steps,
        1,
        "train.gradient_accumulation_steps",
    );
    given.at_least(train.logging_steps, 1, "train.logging_steps");
    given.at_least(train.max_nonfinite_steps, 1, "train.max_nonfinite_steps");
    let above_zero = |value: f64| value.is_finite() && value > 0.0;
    for (value, key) in [
        (train.learning_rate, "train.learning_rate"),
        (train.adam_epsilon, "train.adam_epsilon"),
        (train.num_train_epochs, "train.num_train_epochs"),
    ] {
        given.check(above_zero(value), key, value, "must be above 0 and finite");
    }
    for (value, key) in [
        (train.weight_decay, "train.weight_decay"),
        (train.max_grad_norm, "train.max_grad_norm"),
    ] {
        let holds = value.is_finite() && value >= 0.0;
        given.check(holds, key, value, "must be 0 or more and finite");
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
        );
    }
}

/// The keys of the adapters, whether or not the method uses them.
fn check_adapter(train: &TrainSection, given: &Given) {
    given.at_least(train.lora_r, 1, "train.lora_r");
    given.check(
        train.lora_alpha.is_finite() && train.lora_alpha > 0.0,
        "train.lora_alpha",
        train.lora_alpha,
        "must be above 0 and finite",
    );
    given.check(
        (0.0..1.0).contains(&train.lora_dropout),
        "train.lora_dropout",
        train.lora_dropout,
        "must be from 0 to below 1",
    );
    let targets = &train.lora_target_modules;
    let named = targets.iter().all(|target| !target.trim().is_empty());
    given.check(
        named && !targets.is_empty(),
        "train.lora_target_modules",
        format!("{targets:?}"),
        "must name projections, as in [\"q_proj\", \"v_proj\"], or be \"all-linear\"",
    );
    given.check(
        targets.len() == 1 || targets.iter().all(|target| target != ALL_LINEAR),
        "train.lora_target_modules",
        format!("{targets:?}"),
        "must be \"all-linear\" alone, or a list without it",
    );
    given.check(
        targets.iter().all(|target| !target.contains(',')),
        "train.lora_target_modules",
        format!("{targets:?}"),
        "has several modules in one text; write a list, as in [\"q_proj\", \"v_proj\"]",
    );
    let adapter = &train.lora_adapter;
    if adapter.as_os_str().is_empty() {
        return;
    }
    given.check(
        train.method.has_adapter(),
        "train.lora_adapter",
        quoted(adapter),
        "needs method = \"lora\" or \"qlora\"",
    );
    given.check(
        adapter.join("adapter_config.json").is_file(),
        "train.lora_adapter",
        quoted(adapter),
        "has no adapter_config.json; give the folder of an adapter in PEFT's format",
    );
}

fn check_devices(devices: &[DeviceChoice], given: &Given) {
    let said: Vec<String> = devices.iter().map(DeviceChoice::to_string).collect();
    let rule = |holds: bool, rule: &str| {
        given.check(holds, "train.devices", format!("{said:?}"), rule);
    };
    rule(
        !devices.contains(&DeviceChoice::Auto),
        "must name each device, as in [\"cuda:0\", \"cuda:1\"]",
    );
    let cpus = devices
        .iter()
        .filter(|&&device| device == DeviceChoice::Cpu);
    rule(
        [0, devices.len()].contains(&cpus.count()),
        "must be GPUs only, or \"cpu\" only: they do not round alike",
    );
    let again = |(at, device): (usize, &DeviceChoice)| {
        *device != DeviceChoice::Cpu && devices[..at].contains(device)
    };
    rule(
        !devices.iter().enumerate().any(again),
        "must name a GPU once",
    );
}

pub(super) fn check_distill(distill: &DistillSection, train: Option<&TrainSection>, given: &Given) {
    given.check(
        train.is_some(),
        "distill.divergence",
        "…",
        "needs a [train] section: [distill] says what training learns from",
    );
    let stored = distill.teacher.as_os_str().is_empty();
    if !stored {
        given.model(&distill.teacher, "distill.teacher");
    }
    given.check(
        distill.beta > 0.0 && distill.beta < 1.0,
        "distill.beta",
        distill.beta,
        "must be above 0 and below 1; its ends are divergence = \"forward_kl\" and \"reverse_kl\"",
    );
    given.check(
        distill.temperature.is_finite() && distill.temperature > 0.0,
        "distill.temperature",
        distill.temperature,
        "must be above 0 and finite",
    );
    given.check(
        !stored || distill.temperature == 1.0,
        "distill.temperature",
        distill.temperature,
        "must be 1 without a teacher to run: the stored probabilities were taken at 1",
    );
    given.check(
        distill.alpha > 0.0 && distill.alpha <= 1.0,
        "distill.alpha",
        distill.alpha,
        "must be above 0 and at most 1",
    );
    given.check(
        distill.cross_tokenizer == CrossTokenizer::Refuse
            || train.is_none_or(|train| train.assistant_only_loss),
        "distill.cross_tokenizer",
        "\"uld\"",
        "needs train.assistant_only_loss = true: the answers are compared, and the templates around them are different texts",
    );
    check_on_policy(distill, train, given);
}

fn check_on_policy(distill: &DistillSection, train: Option<&TrainSection>, given: &Given) {
    given.at_least(distill.max_new_tokens, 1, "distill.max_new_tokens");
    given.check(
        distill.on_policy_temperature.is_finite() && distill.on_policy_temperature >= 0.0,
        "distill.on_policy_temperature",
        distill.on_policy_temperature,
        "must be 0 (greedy) or more, and finite",
    );
    let rule = |holds: bool, rule: &str| {
        let holds = holds || distill.on_policy == 0.0;
        given.check(holds, "distill.on_policy", distill.on_policy, rule);
    };
    rule(
        (0.0..=1.0).contains(&distill.on_policy),
        "must be from 0 to 1",
    );
    rule(
        !distill.teacher.as_os_str().is_empty(),
        "needs distill.teacher: stored probabilities are those of the data's answers, not of what the student writes",
    );
    rule(
        distill.cross_tokenizer == CrossTokenizer::Refuse,
        "cannot go with cross_tokenizer = \"uld\": what the student writes is laid before the teacher token by token",
    );
    rule(
        train.is_none_or(|train| train.assistant_only_loss),
        "needs train.assistant_only_loss = true: where everything is learnt, no answer can be told from its question",
    );
    rule(
        train.is_none_or(|train| !train.optimizer_in_backward),
        "cannot go with train.optimizer_in_backward: what the student writes may need more than one micro-batch",
    );
}
