//! Rules that hold for any template, shown on a ChatML template of our own: no outside files are needed.

use serde_json::{Value, json};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::Message;
use sysgen_core::config::{DefaultSystem, SystemRole};

use crate::fixtures::{Model, byte_level, learnt, sentencepiece, spelled};

pub(crate) const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const SPECIALS: [&str; 4] = ["<s>", "<pad>", "<|im_start|>", "<|im_end|>"];

fn config() -> Value {
    json!({"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"})
}

pub(crate) fn model(template: &str, bos: bool) -> Model {
    Model::new(
        &byte_level(&["Hello", "Ġthere"], &SPECIALS, bos.then_some("<s>"), false),
        &config(),
        template,
    )
}

pub(crate) fn exchange() -> Vec<Message> {
    vec![
        Message::system("Be kind."),
        Message::user("Hi"),
        Message::assistant("Hello there"),
    ]
}

#[test]
fn bos_comes_once_whoever_writes_it() {
    for (template, wanted) in [
        (CHATML.to_owned(), true),
        (format!("{{{{ bos_token }}}}{CHATML}"), true),
        (CHATML.to_owned(), false),
    ] {
        let chat = model(&template, wanted).chat();
        assert_eq!(chat.begins_with_bos(), wanted);
        for ids in [
            chat.render(&exchange()).unwrap().ids,
            chat.prompt(&exchange()[..2]).unwrap(),
        ] {
            assert_eq!(
                ids.iter().filter(|id| Some(**id) == chat.bos_id()).count(),
                usize::from(wanted)
            );
            assert_eq!(
                chat.token(ids[0]),
                if wanted { "<s>" } else { "<|im_start|>" }
            );
        }
    }
    for twice in ["{{ bos_token }}{{ bos_token }}", "\n{{ bos_token }}"] {
        let error = model(&format!("{twice}{CHATML}"), true)
            .chat()
            .render(&exchange())
            .unwrap_err();
        assert!(error.to_string().contains("two <s>"), "{error}");
    }
}

#[test]
fn only_the_answer_and_its_stop_token_are_learnt() {
    let chat = model(CHATML, true).chat();
    let rendered = chat.render(&exchange()).unwrap();
    assert_eq!(
        learnt(&chat, &rendered),
        [["Hello", "Ġthere", "<|im_end|>"]]
    );
    assert_eq!(spelled(&chat, &rendered.ids)[..2], ["<s>", "<|im_start|>"]);
    assert_eq!(
        rendered.ids[..rendered.learn.iter().position(|l| *l).unwrap()],
        chat.prompt(&exchange()[..2]).unwrap()
    );
    assert!(
        chat.render(&exchange()[..2])
            .unwrap()
            .learn
            .iter()
            .all(|learn| !learn)
    );
    // An empty answer is a stop token.
    assert_eq!(
        learnt(
            &chat,
            &chat
                .render(&[Message::user("Hi"), Message::assistant("")])
                .unwrap()
        ),
        [["<|im_end|>"]]
    );
}

#[test]
fn a_template_without_a_stop_token_is_given_eos() {
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";
    let chat = model(template, false).chat();
    assert!(chat.template_is_changed());
    assert_eq!(
        learnt(&chat, &chat.render(&exchange()).unwrap()),
        [["Hello", "Ġthere", "<|im_end|>"]]
    );
    let without_eos = model(template, false);
    without_eos.write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
    assert!(
        format!(
            "{:#}",
            without_eos
                .load(SystemRole::Native, DefaultSystem::Keep)
                .err()
                .unwrap()
        )
        .contains("eos_token")
    );
}

#[test]
fn a_template_that_writes_answers_unlike_its_prompt_is_an_error() {
    let template = CHATML.replace(
        "{{ '<|im_start|>assistant\n' }}",
        "{{ '<|im_start|>assistant\n<think>' }}",
    );
    let error = model(&template, false)
        .chat()
        .render(&exchange())
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("message 3") && error.contains("generation prompt"),
        "{error}"
    );
}

#[test]
fn what_a_template_writes_between_prompt_and_answer_is_learnt() {
    // Qwen3 writes an empty thought there; the model has to write it, because the prompt does not.
    let template = CHATML.replace(
        "m.content +",
        "('t' if m.role == 'assistant' else '') + m.content +",
    );
    let chat = model(&template, false).chat();
    let rendered = chat
        .render(&[Message::user("Hi"), Message::assistant("t")])
        .unwrap();
    assert_eq!(learnt(&chat, &rendered), [["t", "t", "<|im_end|>"]]);
}

#[test]
fn a_template_that_rewrites_history_is_an_error() {
    let template = CHATML.replace(
        "m.content",
        "(m.content if loop.last or m.role != 'assistant' else 'gone')",
    );
    let chat = model(&template, false).chat();
    assert!(chat.render(&exchange()).is_ok());
    let longer = [
        &exchange()[..],
        &[Message::user("And?"), Message::assistant("Hello")],
    ]
    .concat();
    let error = format!("{:#}", chat.render(&longer).unwrap_err());
    assert!(error.contains("multi_turn"), "{error}");
}

#[test]
fn an_earlier_answer_that_is_not_learnt_may_be_rewritten() {
    // Qwen3 writes a thought before the last answer alone.
    let template = CHATML.replace(
        "m.content +",
        "('tt' if m.role == 'assistant' and loop.last else '') + m.content +",
    );
    let chat = model(&template, false).chat();
    let longer = [
        &exchange()[..],
        &[Message::user("And?"), Message::assistant("Hello")],
    ]
    .concat();
    let rendered = chat.render_learning(&longer, &[false, true]).unwrap();
    assert_eq!(
        chat.encode(&chat.render_text(&longer, false).unwrap()),
        rendered.ids
    );
    let prompt = chat.prompt(&longer[..4]).unwrap();
    assert!(rendered.ids.starts_with(&prompt));
    assert_eq!(rendered.answers[1].start, prompt.len());
    assert!(rendered.answers[0].is_empty());
    assert_eq!(
        learnt(&chat, &rendered)[0],
        ["t", "t", "Hello", "<|im_end|>"]
    );
    assert!(rendered.learn[..prompt.len()].iter().all(|learn| !learn));
    let error = format!("{:#}", chat.render(&longer).unwrap_err());
    assert!(
        error.contains("message 3") && error.contains("weight"),
        "{error}"
    );
}

#[test]
fn a_template_that_moves_the_system_message_is_told_the_way_out() {
    // As Mistral's: the system text stands in the last question, which is the last message of a prompt alone.
    let template = "{% set first = messages[0].content if messages[0].role == 'system' %}\
        {% for m in messages if m.role != 'system' %}\
        {% if m.role == 'user' %}{{ '<|im_start|>' + (first + ' ' if first and loop.last else '') + m.content }}\
        {% else %}{{ '<s>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}\
        {% if add_generation_prompt %}{{ '<s>' }}{% endif %}";
    let model = model(template, false);
    let chat = model.chat();
    assert!(chat.prompt(&exchange()[..2]).is_ok());
    for error in [
        chat.render(&exchange()).unwrap_err(),
        chat.takes_system_messages().unwrap_err(),
    ] {
        let error = format!("{error:#}");
        assert!(error.contains("merge_first_user"), "{error}");
    }
    let merged = model
        .load(SystemRole::MergeFirstUser, DefaultSystem::Keep)
        .unwrap();
    merged.takes_system_messages().unwrap();
    assert_eq!(
        learnt(&merged, &merged.render(&exchange()).unwrap())[0].last(),
        Some(&"<|im_end|>".to_string())
    );
}

#[test]
fn a_template_that_changes_an_answer_is_an_error() {
    let template = CHATML.replace("m.content", "m.content.replace('there', 'here')");
    let error = format!(
        "{:#}",
        model(&template, false)
            .chat()
            .render(&exchange())
            .unwrap_err()
    );
    assert!(
        error.contains("message 3") && error.contains("verbatim"),
        "{error}"
    );
}

#[test]
fn a_template_that_drops_the_system_message_is_an_error() {
    let template = CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages if m.role != 'system' %}",
    );
    let error = model(&template, false)
        .chat()
        .prompt(&exchange()[..2])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("system message") && error.contains("model.system_role"),
        "{error}"
    );
}

#[test]
fn a_refusal_says_what_the_template_says() {
    let template = format!(
        "{{% if messages[0].role == 'user' %}}{CHATML}{{% else %}}{{{{ raise_exception('Begin with the user') }}}}{{% endif %}}"
    );
    let error = model(&template, false)
        .chat()
        .render(&exchange()[1..2])
        .err();
    assert!(error.is_none());
    let error = model(&template, false)
        .chat()
        .render(&[Message::assistant("Hello")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("Begin with the user"), "{error}");
}

#[test]
fn special_tokens_in_a_message_become_tokens_as_in_transformers() {
    let chat = model(CHATML, false).chat();
    let ids = chat.prompt(&[Message::user("a<|im_end|>b")]).unwrap();
    assert_eq!(
        ids.iter()
            .filter(|id| chat.token(**id) == "<|im_end|>")
            .count(),
        2
    );
}

#[test]
fn a_continuation_has_no_mark_of_a_first_word() {
    let specials = ["<unk>", "<s>", "<|im_end|>", "<pad>", "<|im_start|>"];
    let pieces = ["▁Hello", "Hello", "▁there"];
    let chat = Model::new(&sentencepiece(&pieces, &specials, true), &config(), CHATML).chat();
    assert_eq!(
        spelled(&chat, &chat.encode("Hello there")),
        ["▁Hello", "▁there"]
    );
    assert_eq!(
        spelled(&chat, &chat.encode_continuation("Hello there")),
        ["Hello", "▁there"]
    );
    assert_eq!(
        spelled(&chat, &chat.encode_continuation(" there")),
        ["▁there"]
    );
    assert!(chat.encode_continuation("").is_empty());
    let byte_level = model(CHATML, true).chat();
    assert_eq!(
        byte_level.encode("Hello\n"),
        byte_level.encode_continuation("Hello\n")
    );
}

#[test]
fn decoding_skips_special_tokens() {
    let chat = model(CHATML, true).chat();
    assert_eq!(
        chat.decode(&chat.encode("<|im_start|>Hello there é你<|im_end|>")),
        "Hello there é你"
    );
}

#[test]
fn stop_ids_come_from_every_file_that_names_them() {
    let model = model(CHATML, false);
    let id = |token: &str| model.chat().encode(token)[0];
    assert_eq!(model.chat().stop_ids(), [id("<|im_end|>")]);
    model.write(
        "generation_config.json",
        &json!({"eos_token_id": [id("<|im_end|>"), id("<pad>")]}).to_string(),
    );
    model.write(
        "config.json",
        &json!({"eos_token_id": id("<s>")}).to_string(),
    );
    assert_eq!(
        model.chat().stop_ids(),
        [id("<|im_end|>"), id("<pad>"), id("<s>")]
    );
    assert_eq!(model.chat().pad_id(), id("<pad>"));
    model.write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<|im_end|>"}}"#,
    );
    assert_eq!(model.chat().pad_id(), id("<|im_end|>"));
    assert_eq!(model.chat().vocab_size(), id("<|im_end|>") as usize + 1);
}

#[test]
fn missing_files_and_unknown_tokens_are_named() {
    let message = |model: &Model| {
        format!(
            "{:#}",
            model
                .load(SystemRole::Native, DefaultSystem::Keep)
                .err()
                .unwrap()
        )
    };
    let model = model(CHATML, false);
    std::fs::remove_file(model.dir.path().join("chat_template.jinja")).unwrap();
    assert!(message(&model).contains("no chat template"));
    model.write("tokenizer_config.json", r#"{"eos_token": "<eos>"}"#);
    assert!(message(&model).contains("eos_token is `<eos>`"));
    std::fs::remove_file(model.dir.path().join("tokenizer.json")).unwrap();
    assert!(message(&model).contains("tokenizer.json is missing"));
}

#[test]
fn the_template_file_wins_over_the_configuration_and_lists_give_their_default() {
    let model = model(CHATML, false);
    let mut settings = config();
    let other = CHATML.replace("<|im_end|>\\n", "<|im_end|>");
    settings["chat_template"] =
        json!([{"name": "tool_use", "template": "-"}, {"name": "default", "template": other}]);
    model.write("tokenizer_config.json", &settings.to_string());
    assert_eq!(model.chat().template(), CHATML);
    std::fs::remove_file(model.dir.path().join("chat_template.jinja")).unwrap();
    assert_eq!(model.chat().template(), other);
    settings["chat_template"] = json!(other);
    model.write("tokenizer_config.json", &settings.to_string());
    assert_eq!(model.chat().template(), other);
}

#[test]
fn saving_keeps_files_and_puts_the_effective_template_in_both_places() {
    let model = model(CHATML, false);
    let mut settings = config();
    settings["chat_template"] = json!(CHATML);
    model.write("tokenizer_config.json", &settings.to_string());
    model.write("special_tokens_map.json", "{ }");
    let read = |dir: &Model, name: &str| std::fs::read(dir.dir.path().join(name)).unwrap();
    let save = |system_role| {
        let copy = Model {
            dir: tempfile::TempDir::new().unwrap(),
        };
        model
            .load(system_role, DefaultSystem::Keep)
            .unwrap()
            .save(copy.dir.path())
            .unwrap();
        copy
    };
    let same = save(SystemRole::Native);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ] {
        assert_eq!(read(&same, name), read(&model, name), "{name}");
    }
    let merged = save(SystemRole::MergeFirstUser);
    let effective = model
        .load(SystemRole::MergeFirstUser, DefaultSystem::Keep)
        .unwrap()
        .template()
        .to_owned();
    assert_ne!(effective, CHATML);
    assert_eq!(read(&merged, "chat_template.jinja"), effective.as_bytes());
    let saved: Value = serde_json::from_slice(&read(&merged, "tokenizer_config.json")).unwrap();
    assert_eq!(saved["chat_template"], effective);
    assert_eq!(saved["eos_token"], "<|im_end|>");
    assert_eq!(
        read(&merged, "tokenizer.json"),
        read(&model, "tokenizer.json")
    );
}

#[test]
fn fingerprints_differ_exactly_where_ids_can() {
    let model = model(CHATML, false);
    let native = model.chat().fingerprint();
    assert_eq!(native, model.chat().fingerprint());
    assert_ne!(
        native,
        model
            .load(SystemRole::MergeFirstUser, DefaultSystem::Keep)
            .unwrap()
            .fingerprint()
    );
    model.write("generation_config.json", r#"{"eos_token_id": 3}"#);
    assert_ne!(native, model.chat().fingerprint());
}

#[test]
fn a_chat_is_shared_between_threads() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Chat>();
    let _ = ChatOptions::default();
}
