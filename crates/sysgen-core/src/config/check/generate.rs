//! The rules of `[generate]`.

use std::path::Path;

use super::given::Given;
use crate::config::{Engine, GenerateSection, Variant, VerifyMethod};

pub(super) fn check_generate(generate: &GenerateSection, given: &Given) {
    match generate.engine {
        Engine::Local if generate.model.as_os_str().is_empty() => {}
        Engine::Local => given.model(&generate.model, "generate.model"),
        Engine::Openai => check_endpoint(generate, given),
    }
    given.at_least(generate.batch_size, 1, "generate.batch_size");
    given.at_least(generate.max_length, 2, "generate.max_length");
    for (path, key) in [
        (&generate.draft_prompt, "generate.draft_prompt"),
        (&generate.verify_prompt, "generate.verify_prompt"),
    ] {
        if !path.as_os_str().is_empty() {
            given.file(path, key);
        }
    }
    if generate.variant == Variant::CommonSystem {
        given.check(
            !generate.common_system_message.trim().is_empty(),
            "generate.common_system_message",
            "\"\"",
            "must have a text when variant = \"common_system\"",
        );
    }
    let (draft, verify, respond) = (&generate.draft, &generate.verify, &generate.respond);
    given.sampling(draft.temperature, draft.top_p, "generate.draft");
    given.sampling(verify.temperature, verify.top_p, "generate.verify");
    given.sampling(respond.temperature, respond.top_p, "generate.respond");
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
        );
        given.check(
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            &format!("{section}.repetition_penalty"),
            repetition_penalty,
            "must be above 0, 1 for none",
        );
    }
    given.check(
        verify.threshold.is_finite(),
        "generate.verify.threshold",
        verify.threshold,
        "must be finite",
    );
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
        given.at_least(max_tokens, 1, &key);
        given.check(
            !runs || max_tokens < generate.max_length,
            &key,
            max_tokens,
            format!(
                "must be below generate.max_length ({}), which holds prompt and answer",
                generate.max_length
            ),
        );
    }
}

fn check_endpoint(generate: &GenerateSection, given: &Given) {
    let endpoint = &generate.openai;
    given.required(
        Path::new(&endpoint.model),
        "generate.openai.model",
        "the name the endpoint knows the model by, model = \"…\"",
    );
    let url = &endpoint.base_url;
    given.check(
        url.is_empty() || url.starts_with("http://") || url.starts_with("https://"),
        "generate.openai.base_url",
        format_args!("{url:?}"),
        "must begin with http:// or https://",
    );
    given.check(
        generate.variant == Variant::NoSystem
            || generate.variant == Variant::CommonSystem
            || generate.verify.method == VerifyMethod::Generate,
        "generate.verify.method",
        "\"score\"",
        "cannot go with engine = \"openai\": an endpoint gives no probabilities of words it has not chosen; set method = \"generate\"",
    );
    given.check(
        generate.respond.teacher_top_k == 0,
        "generate.respond.teacher_top_k",
        generate.respond.teacher_top_k,
        "cannot go with engine = \"openai\": an endpoint does not name its tokens by id; leave it out",
    );
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
        given.at_least(value, 1, key);
    }
}
