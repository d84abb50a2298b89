//! What is changed about any template before it is used and exported: line breaks, the date, thoughts, BOS.

use sysgen_chat::{Chat, ChatOptions};

use crate::own_template::{CHATML, exchange, model};

#[test]
fn a_template_of_another_systems_line_breaks_writes_the_same_text() {
    let template = "{% for m in messages %}\n<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let text = |template: &str| {
        let chat = model(template, false).chat();
        chat.render_text(&exchange(), false).unwrap()
    };
    // As jinja2 reads it.
    assert_eq!(text(template), text(&template.replace('\n', "\r\n")));
    assert_eq!(text(template), text(&template.replace('\n', "\r")));
}

#[test]
fn a_run_writes_the_date_on_which_it_began() {
    let template = format!("{{{{ '[' + strftime_now('%d %b %Y') + ']' }}}}{CHATML}");
    let model = model(&template, false);
    let at = |now: Option<u64>| {
        let options = ChatOptions {
            now,
            ..ChatOptions::default()
        };
        model.with(options).unwrap()
    };
    let text = |chat: &Chat| chat.render_text(&exchange(), false).unwrap();
    // date -u -d @1709210096
    let chat = at(Some(1_709_210_096));
    assert!(text(&chat).starts_with("[29 Feb 2024]"), "{}", text(&chat));
    assert!(!chat.depends_on_today());
    assert!(at(None).depends_on_today());
    assert!(!text(&at(None)).starts_with("[29 Feb 2024]"));
    // Ids of another day are another run's.
    assert_eq!(chat.fingerprint(), at(Some(1_709_210_096)).fingerprint());
    assert_ne!(chat.fingerprint(), at(Some(1_709_310_096)).fingerprint());
}

#[test]
fn thoughts_are_not_asked_for_unless_the_run_wants_them() {
    let prompt = "{{ '<|im_start|>assistant\n' }}";
    let template = CHATML.replace(
        prompt,
        "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}{{ 't\n' }}{% endif %}",
    );
    let model = model(&template, false);
    let wanted = model.chat();
    assert!(!wanted.template_is_changed());
    let without = ChatOptions {
        without_thinking: true,
        ..ChatOptions::default()
    };
    let chat = model.with(without).unwrap();
    let text = |chat: &Chat| chat.render_text(&exchange()[..2], true).unwrap();
    assert_eq!(text(&chat), text(&wanted) + "t\n");
    // Whoever serves the export has the same prompt without saying so, and nothing is put before it twice.
    let folder = tempfile::tempdir().unwrap();
    chat.save(folder.path()).unwrap();
    for options in [ChatOptions::default(), without] {
        let served = Chat::load(folder.path(), options).unwrap();
        assert_eq!(served.template(), chat.template());
        assert_eq!(text(&served), text(&chat));
    }
    // A template that knows nothing of thoughts stays as it is.
    let plain = crate::own_template::model(CHATML, false)
        .with(without)
        .unwrap();
    assert!(!plain.template_is_changed());
}

#[test]
fn the_template_writes_the_bos_that_the_tokenizer_wants() {
    let written = format!("{{{{ bos_token }}}}{CHATML}");
    for (template, wanted, changed) in [
        (CHATML, true, true),
        (CHATML, false, false),
        (&written, true, false),
    ] {
        let chat = model(template, wanted).chat();
        assert_eq!(chat.template_is_changed(), changed, "{template}");
        // What apply_chat_template gives, which adds no special tokens.
        let text = chat.render_text(&exchange(), false).unwrap();
        assert_eq!(chat.encode(&text), chat.render(&exchange()).unwrap().ids);
    }
}
