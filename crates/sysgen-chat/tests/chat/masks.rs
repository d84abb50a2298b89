//! Exactly which tokens are learnt under the five models' own templates.

use sysgen_chat::Chat;
use sysgen_core::Message;
use sysgen_core::config::{DefaultSystem, SystemRole};

use crate::fixtures::{gemma, learnt, llama, phi, qwen, solar, spelled, template};

fn single() -> Vec<Message> {
    vec![Message::user("Hi"), Message::assistant("Hello there")]
}

fn multi() -> Vec<Message> {
    vec![
        Message::system("Be brief: 한."),
        Message::user("Hi"),
        Message::assistant("Hello there"),
        Message::user("And?"),
        Message::assistant("é你"),
    ]
}

/// `learnt` is exactly `answers`; the prompt of every answer is the row up to it; BOS is where it belongs, once.
fn check(chat: &Chat, messages: &[Message], answers: &[&[&str]]) {
    let rendered = chat.render(messages).unwrap();
    let expected: Vec<Vec<String>> = answers
        .iter()
        .map(|answer| answer.iter().map(|token| (*token).to_owned()).collect())
        .collect();
    assert_eq!(
        learnt(chat, &rendered),
        expected,
        "{:?}",
        spelled(chat, &rendered.ids)
    );
    assert!(!rendered.learn[0]);

    let bos = rendered
        .ids
        .iter()
        .filter(|id| Some(**id) == chat.bos_id())
        .count();
    assert_eq!(bos, usize::from(chat.begins_with_bos()));
    assert!(!chat.begins_with_bos() || Some(rendered.ids[0]) == chat.bos_id());

    let starts =
        (1..rendered.ids.len()).filter(|&at| rendered.learn[at] && !rendered.learn[at - 1]);
    let turns = (0..messages.len())
        .filter(|&at| messages[at] == Message::assistant(messages[at].content.as_str()));
    for (start, turn) in starts.zip(turns) {
        assert_eq!(
            chat.prompt(&messages[..turn]).unwrap(),
            rendered.ids[..start],
            "answer {turn}"
        );
    }
}

/// The ids are those of tokenising the whole text at once, as transformers does.
fn equals_whole_text(chat: &Chat, messages: &[Message]) {
    let mut whole = chat.encode(&chat.render_text(messages, false).unwrap());
    if chat.begins_with_bos() && whole.first().copied() != chat.bos_id() {
        whole.insert(0, chat.bos_id().unwrap());
    }
    assert_eq!(chat.render(messages).unwrap().ids, whole);
}

const BYTES: [&str; 5] = ["Ã", "©", "ä", "½", "ł"];

#[test]
fn llama_learns_the_answer_and_eot() {
    let Some(source) = template("meta-llama-Llama-3.1-8B-Instruct.jinja") else {
        return;
    };
    let chat = llama(&source).chat();
    let hello: &[&str] = &["Hello", "Ġthere", "<|eot_id|>"];
    check(&chat, &single(), &[hello]);
    check(
        &chat,
        &multi(),
        &[hello, &[&BYTES[..], &["<|eot_id|>"]].concat()],
    );
    equals_whole_text(&chat, &multi());
    // The template trims; what is learnt is what it writes.
    check(
        &chat,
        &[
            Message::user("Hi"),
            Message::assistant(" \n Hello there \n"),
        ],
        &[hello],
    );
}

#[test]
fn qwen_learns_the_answer_and_im_end_but_not_the_line_break_after_it() {
    let Some(source) = template("Qwen-Qwen2.5-14B-Instruct.jinja") else {
        return;
    };
    let chat = qwen(&source).chat();
    let hello: &[&str] = &["Hello", "Ġthere", "<|im_end|>"];
    check(&chat, &single(), &[hello]);
    check(
        &chat,
        &multi(),
        &[hello, &[&BYTES[..], &["<|im_end|>"]].concat()],
    );
    equals_whole_text(&chat, &multi());
    let last = *chat.render(&single()).unwrap().ids.last().unwrap();
    assert_eq!(chat.token(last), "Ċ");
}

#[test]
fn an_answer_that_begins_with_a_line_break_is_learnt_as_a_model_writes_it() {
    let Some(source) = template("Qwen-Qwen2.5-14B-Instruct.jinja") else {
        return;
    };
    let chat = qwen(&source).chat();
    // The whole text has one token for the header's line break and the answer's; no model could write half of it.
    check(
        &chat,
        &[Message::user("Hi"), Message::assistant("\nHello")],
        &[&["Ċ", "Hello", "<|im_end|>"]],
    );
}

#[test]
fn both_phi_templates_learn_the_answer_and_im_end() {
    for name in [
        "microsoft-phi-4.jinja",
        "microsoft-phi-4-initial-release.jinja",
    ] {
        let Some(source) = template(name) else { return };
        let chat = phi(&source).chat();
        let hello: &[&str] = &["Hello", "Ġthere", "<|im_end|>"];
        check(&chat, &single(), &[hello]);
        check(
            &chat,
            &multi(),
            &[hello, &[&BYTES[..], &["<|im_end|>"]].concat()],
        );
        equals_whole_text(&chat, &multi());
    }
}

#[test]
fn gemma_with_a_system_turn_learns_the_answer_and_end_of_turn() {
    let Some(source) = template("google-gemma-2-9b-it.jinja") else {
        return;
    };
    let chat = gemma(&source)
        .load(SystemRole::OwnTurn, DefaultSystem::Keep)
        .unwrap();
    let hello: &[&str] = &["Hello", "▁there", "<end_of_turn>"];
    let bytes = [
        "<0xC3>",
        "<0xA9>",
        "<0xE4>",
        "<0xBD>",
        "<0xA0>",
        "<end_of_turn>",
    ];
    check(&chat, &single(), &[hello]);
    check(&chat, &multi(), &[hello, &bytes]);
    equals_whole_text(&chat, &multi());
    // eos_token is <eos>; the template ends turns with another token, which has to stop generation too.
    assert_eq!(spelled(&chat, chat.stop_ids()), ["<eos>", "<end_of_turn>"]);
    let tokens = spelled(&chat, &chat.prompt(&multi()[..2]).unwrap());
    assert_eq!(
        tokens[..4],
        ["<bos>", "<start_of_turn>", "system", "<0x0A>"]
    );
    assert_eq!(
        tokens[tokens.len() - 3..],
        ["<start_of_turn>", "model", "<0x0A>"]
    );
}

#[test]
fn solar_learns_the_answer_and_an_eos_that_its_template_lacks() {
    let Some(source) = template("upstage-SOLAR-10.7B-Instruct-v1.0.jinja") else {
        return;
    };
    let chat = solar(&source).chat();
    // No mark of a new word before "Hello": it follows "### Assistant:\n".
    let hello: &[&str] = &["Hello", "▁there", "</s>"];
    let bytes = ["<0xC3>", "<0xA9>", "<0xE4>", "<0xBD>", "<0xA0>", "</s>"];
    check(&chat, &single(), &[hello]);
    check(&chat, &multi(), &[hello, &bytes]);
    equals_whole_text(&chat, &multi());
    assert_eq!(
        chat.render_text(&multi(), false).unwrap(),
        "<s>### System:\nBe brief: 한.\n\n### User:\nHi\n\n### Assistant:\nHello there</s>### User:\nAnd?\n\n### Assistant:\né你</s>"
    );
    // No BOS in its own template, and a tokenizer that wants it.
    assert_eq!(chat.token(chat.render(&single()).unwrap().ids[0]), "<s>");
}

#[test]
fn community_templates_are_refused_as_published_and_learn_the_stop_token_once_cleaned() {
    for (name, system_role, stop) in [
        (
            "community-gemma-it.chujiezheng.jinja",
            SystemRole::Native,
            "<end_of_turn>",
        ),
        (
            "community-solar-instruct.chujiezheng.jinja",
            SystemRole::Native,
            "</s>",
        ),
        (
            "derived-gemma-2-9b-it-system-role.jinja",
            SystemRole::OwnTurn,
            "<end_of_turn>",
        ),
    ] {
        let Some(source) = template(name) else { return };
        let model = |source: &str| {
            if stop == "</s>" {
                solar(source)
            } else {
                gemma(source)
            }
        };
        if name.starts_with("community") {
            // Their indents end up between the turns, differently before a prompt and before an answer.
            let error = model(&source).chat().render(&multi()).unwrap_err();
            assert!(
                format!("{error:#}").contains("generation prompt"),
                "{error:#}"
            );
        }
        // What their README says to do before use.
        let cleaned = source.replace("    ", "").replace('\n', "");
        let cleaned = if name.starts_with("derived") {
            source
        } else {
            cleaned
        };
        let chat = model(&cleaned)
            .load(system_role, DefaultSystem::Keep)
            .unwrap();
        let rendered = chat.render(&multi()).unwrap();
        assert_eq!(
            learnt(&chat, &rendered)[0],
            ["Hello", "▁there", stop],
            "{name}"
        );
        assert_eq!(
            rendered
                .ids
                .iter()
                .filter(|id| Some(**id) == chat.bos_id())
                .count(),
            1,
            "{name}"
        );
    }
}
