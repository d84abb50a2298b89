//! The policies on the models' own templates: what a system message becomes and what happens without one.

use sysgen_core::Message;
use sysgen_core::config::{DefaultSystem, SystemRole};

use crate::fixtures::{gemma, llama, phi, qwen, solar, template};

fn turns() -> Vec<Message> {
    vec![
        Message::user("Hi"),
        Message::assistant("Hello"),
        Message::user("And?"),
    ]
}

fn with_system() -> Vec<Message> {
    [
        &[Message::system("It's \"{{ brief }}\"\nNow.")],
        &turns()[..],
    ]
    .concat()
}

#[test]
fn gemma_refuses_a_system_message_and_the_error_names_the_key() {
    let Some(source) = template("google-gemma-2-9b-it.jinja") else {
        return;
    };
    let error = gemma(&source)
        .chat()
        .render(&with_system())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("System role not supported") && error.contains("model.system_role"),
        "{error}"
    );
}

#[test]
fn own_turn_leaves_other_turns_and_the_alternation_check_alone() {
    let Some(source) = template("google-gemma-2-9b-it.jinja") else {
        return;
    };
    let own = gemma(&source)
        .load(SystemRole::OwnTurn, DefaultSystem::Keep)
        .unwrap();
    let native = gemma(&source).chat();
    let plain = native.render_text(&turns(), true).unwrap();
    assert_eq!(own.render_text(&turns(), true).unwrap(), plain);
    assert_eq!(
        own.render_text(&with_system(), true).unwrap(),
        plain.replace(
            "<bos>",
            "<bos><start_of_turn>system\nIt's \"{{ brief }}\"\nNow.<end_of_turn>\n"
        )
    );
    let unordered = [Message::system("S"), Message::user("a"), Message::user("b")];
    assert!(
        own.render_text(&unordered, true)
            .unwrap_err()
            .to_string()
            .contains("must alternate")
    );
}

#[test]
fn own_turn_is_no_change_where_the_template_has_it() {
    for (name, chat) in [
        ("Qwen-Qwen2.5-14B-Instruct.jinja", qwen as fn(&str) -> _),
        ("meta-llama-Llama-3.1-8B-Instruct.jinja", llama),
        ("microsoft-phi-4.jinja", phi),
        ("derived-gemma-2-9b-it-system-role.jinja", gemma),
    ] {
        let Some(source) = template(name) else { return };
        let chat = chat(&source)
            .load(SystemRole::OwnTurn, DefaultSystem::Keep)
            .unwrap();
        assert!(!chat.template_is_changed(), "{name}");
    }
}

#[test]
fn merging_puts_the_system_text_before_the_first_users() {
    let Some(source) = template("google-gemma-2-9b-it.jinja") else {
        return;
    };
    let chat = gemma(&source)
        .load(SystemRole::MergeFirstUser, DefaultSystem::Keep)
        .unwrap();
    assert_eq!(
        chat.render_text(&with_system(), false).unwrap(),
        gemma(&source)
            .chat()
            .render_text(&turns(), false)
            .unwrap()
            .replace("Hi", "It's \"{{ brief }}\"\nNow.\n\nHi")
    );
    assert!(
        chat.render_text(&[Message::system("alone")], false)
            .is_err()
    );
}

#[test]
fn error_refuses_any_system_message() {
    let Some(source) = template("microsoft-phi-4.jinja") else {
        return;
    };
    let chat = phi(&source)
        .load(SystemRole::Error, DefaultSystem::Keep)
        .unwrap();
    assert!(
        chat.render_text(&with_system(), true)
            .unwrap_err()
            .to_string()
            .contains("system_role")
    );
    assert_eq!(
        chat.render_text(&turns(), true).unwrap(),
        phi(&source).chat().render_text(&turns(), true).unwrap()
    );
}

#[test]
fn strip_takes_out_qwens_and_llamas_default_and_nothing_else() {
    let expected_qwen = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n";
    let header = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let expected_llama = format!(
        "<|begin_of_text|>{user}Hi<|eot_id|>{assistant}Hello<|eot_id|>{user}And?<|eot_id|>{assistant}",
        user = header("user"),
        assistant = header("assistant")
    );
    for (name, model, default, expected) in [
        (
            "Qwen-Qwen2.5-14B-Instruct.jinja",
            qwen as fn(&str) -> _,
            "You are Qwen",
            expected_qwen,
        ),
        (
            "meta-llama-Llama-3.1-8B-Instruct.jinja",
            llama,
            "Cutting Knowledge Date",
            expected_llama.as_str(),
        ),
    ] {
        let Some(source) = template(name) else { return };
        let keep = model(&source).chat();
        assert!(keep.hidden_default().unwrap().contains(default), "{name}");
        let strip = model(&source)
            .load(SystemRole::Native, DefaultSystem::Strip)
            .unwrap();
        assert_eq!(strip.hidden_default(), None, "{name}");
        assert_eq!(strip.render_text(&turns(), true).unwrap(), expected);
        for prompt in [false, true] {
            let (kept, stripped) = (
                keep.render_text(&with_system(), prompt).unwrap(),
                strip.render_text(&with_system(), prompt).unwrap(),
            );
            assert_eq!(kept, stripped, "{name}");
        }
        // A merged system message is no system message to the template.
        let merged = model(&source)
            .load(SystemRole::MergeFirstUser, DefaultSystem::Strip)
            .unwrap();
        assert!(
            !merged
                .render_text(&with_system(), true)
                .unwrap()
                .contains(default),
            "{name}"
        );
    }
}

#[test]
fn strip_changes_nothing_where_nothing_is_hidden() {
    for (name, model) in [
        ("microsoft-phi-4.jinja", phi as fn(&str) -> _),
        ("google-gemma-2-9b-it.jinja", gemma),
        ("upstage-SOLAR-10.7B-Instruct-v1.0.jinja", solar),
    ] {
        let Some(source) = template(name) else { return };
        let (keep, strip) = (
            model(&source).chat(),
            model(&source)
                .load(SystemRole::Native, DefaultSystem::Strip)
                .unwrap(),
        );
        assert_eq!(keep.hidden_default(), None, "{name}");
        assert_eq!(keep.template(), strip.template(), "{name}");
    }
}

#[test]
fn an_exported_template_gives_the_same_ids_when_loaded_as_it_is() {
    type Make = fn(&str) -> crate::fixtures::Model;
    for (name, model) in [
        ("google-gemma-2-9b-it.jinja", gemma as Make),
        ("upstage-SOLAR-10.7B-Instruct-v1.0.jinja", solar),
        ("Qwen-Qwen2.5-14B-Instruct.jinja", qwen),
        ("meta-llama-Llama-3.1-8B-Instruct.jinja", llama),
        ("microsoft-phi-4-initial-release.jinja", phi),
    ] {
        let Some(source) = template(name) else { return };
        let model = model(&source);
        let role = if name.contains("gemma") {
            SystemRole::OwnTurn
        } else {
            SystemRole::MergeFirstUser
        };
        let chat = model.load(role, DefaultSystem::Strip).unwrap();
        let exported = crate::fixtures::Model {
            dir: tempfile::TempDir::new().unwrap(),
        };
        chat.save(exported.dir.path()).unwrap();
        let again = exported.chat();
        for messages in [turns(), with_system()] {
            assert_eq!(
                again.render(&messages).unwrap(),
                chat.render(&messages).unwrap(),
                "{name}"
            );
            assert_eq!(
                again.prompt(&messages).unwrap(),
                chat.prompt(&messages).unwrap(),
                "{name}"
            );
        }
        // The policies are in the template now: applying them again changes nothing.
        assert_eq!(
            exported
                .load(role, DefaultSystem::Strip)
                .unwrap()
                .render(&with_system())
                .unwrap()
                .ids,
            chat.render(&with_system()).unwrap().ids
        );
    }
}
