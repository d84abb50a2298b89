//! Every refusal of the gate, each against a folder or a row that is broken in exactly that way.

use std::path::Path;

use serde_json::Value;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::RunConfig;
use sysgen_core::config::{CrossTokenizer, DefaultSystem, DistillSection, SystemRole};
use sysgen_train::check::{Findings, Subject, Taught, Verdict, check, preview, same_ids};
use sysgen_train::check_page;
use sysgen_train::distill::TeacherChat;
use sysgen_train::example::{Example, Examples, prepare};
use sysgen_train::rows::Row;

use crate::fixture::{self, BOS, END, TEMPLATE, VOCAB};

fn subject<'a>(chat: &'a Chat, rows: &'a [Row], examples: &'a Examples) -> Subject<'a> {
    Subject {
        chat,
        embedding_rows: VOCAB,
        rows: rows.iter().collect(),
        examples: examples.examples.iter().collect(),
        refused: &examples.refused,
        cut: &examples.cut,
        dropped: &examples.dropped,
        default_system: DefaultSystem::Keep,
        assistant_only_loss: true,
        teacher: None,
    }
}

fn findings(dir: &Path, rows: &[Row]) -> Findings {
    let chat = fixture::chat(dir);
    let examples = prepare(&chat, rows, 512, true);
    check(&subject(&chat, rows, &examples)).unwrap()
}

/// The findings when every example was changed by `change`.
fn findings_with(change: impl Fn(&mut Example)) -> Findings {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, rows) = (fixture::chat(dir.path()), fixture::rows(5));
    let mut examples = prepare(&chat, &rows, 512, true);
    examples.examples.iter_mut().for_each(change);
    check(&subject(&chat, &rows, &examples)).unwrap()
}

fn refuses(findings: &Findings, words: &[&str]) {
    let found = findings
        .problems()
        .iter()
        .any(|problem| words.iter().all(|word| problem.contains(word)));
    assert!(found, "no problem says {words:?}: {findings:#?}");
}

fn passes(findings: &Findings) {
    for gate in &findings.gates {
        assert_eq!(gate.verdict, Verdict::Passed, "{gate:?}");
    }
}

#[test]
fn a_sound_data_set_passes() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let findings = findings(dir.path(), &fixture::rows(20));
    assert_eq!(findings.gates.len(), 10);
    passes(&findings);
}

#[test]
fn a_missing_bos_is_refused() {
    let findings = findings_with(|example| {
        example.ids.remove(0);
        example.learn.remove(0);
    });
    refuses(
        &findings,
        &[
            "5 row(s) (row-0, row-1, row-2 and 2 more)",
            "do not begin with <|begin|>",
        ],
    );
}

#[test]
fn a_doubled_bos_is_refused() {
    let findings = findings_with(|example| {
        example.ids.insert(0, BOS);
        example.learn.insert(0, false);
    });
    refuses(&findings, &["<|begin|> more than once"]);
}

#[test]
fn a_template_that_writes_bos_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder_with(dir.path(), &format!("{{{{ bos_token }}}}{TEMPLATE}"), VOCAB);
    refuses(&findings(dir.path(), &fixture::rows(3)), &["<|begin|>"]);
}

#[test]
fn a_row_with_nothing_to_learn_is_refused() {
    let findings = findings_with(|example| {
        if example.id == "row-3" {
            example.learn.fill(false);
        }
    });
    refuses(&findings, &["1 row(s) (row-3)", "no token to learn"]);
}

#[test]
fn an_answer_whose_stop_token_is_not_learnt_is_refused() {
    let findings = findings_with(|example| {
        let stop = example.ids.iter().rposition(|&id| id == END).unwrap();
        example.learn[stop] = false;
    });
    refuses(&findings, &["do not teach the model to stop", "<|end|>"]);
}

#[test]
fn a_template_that_drops_the_system_message_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let deaf = TEMPLATE.replace(
        "{% for message in messages %}",
        "{% for message in messages if message['role'] != 'system' %}",
    );
    fixture::model_folder_with(dir.path(), &deaf, VOCAB);
    refuses(
        &findings(dir.path(), &fixture::rows(4)),
        &["row-0", "system message"],
    );
}

#[test]
fn a_template_that_changes_the_system_message_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let loud = TEMPLATE.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'system' %}{{ message['content'] | upper }}{% else %}{{ message['content'] }}{% endif %}",
    );
    fixture::model_folder_with(dir.path(), &loud, VOCAB);
    refuses(
        &findings(dir.path(), &fixture::rows(4)),
        &["row-0", "system message"],
    );
}

#[test]
fn a_default_system_text_is_said_when_kept_and_gone_when_stripped() {
    let dir = tempfile::tempdir().unwrap();
    let chatty = TEMPLATE.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<|role|>system\nYou are Tiny.<|end|>\n{% endif %}",
    );
    fixture::model_folder_with(dir.path(), &chatty, VOCAB);
    let mut rows = fixture::rows(4);
    rows[1].messages.remove(0);
    let kept = findings(dir.path(), &rows);
    assert!(kept.problems().is_empty(), "{kept:?}");
    assert!(
        kept.notes()
            .iter()
            .any(|note| note.contains("You are Tiny.") && note.contains("1 row(s)")),
        "{kept:?}"
    );

    // The gate itself, told that the text should be gone when it is not.
    let chat = fixture::chat(dir.path());
    let examples = prepare(&chat, &rows, 512, true);
    let told = Subject {
        default_system: DefaultSystem::Strip,
        ..subject(&chat, &rows, &examples)
    };
    refuses(
        &check(&told).unwrap(),
        &["default_system = \"strip\"", "You are Tiny."],
    );

    let options = ChatOptions {
        system_role: SystemRole::Native,
        default_system: DefaultSystem::Strip,
        ..ChatOptions::default()
    };
    let chat = Chat::load(dir.path(), options).unwrap();
    let examples = prepare(&chat, &rows, 512, true);
    let stripped = Subject {
        default_system: DefaultSystem::Strip,
        ..subject(&chat, &rows, &examples)
    };
    passes(&check(&stripped).unwrap());
}

#[test]
fn policies_come_out_of_the_exported_template_alone() {
    let dir = tempfile::tempdir().unwrap();
    let refusing = format!(
        "{{% if messages[0]['role'] == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}{TEMPLATE}"
    );
    fixture::model_folder_with(dir.path(), &refusing, VOCAB);
    let rows = fixture::rows(6);
    refuses(
        &findings(dir.path(), &rows),
        &["6 row(s)", "cannot be rendered"],
    );
    for system_role in [SystemRole::OwnTurn, SystemRole::MergeFirstUser] {
        let chat = Chat::load(
            dir.path(),
            ChatOptions {
                system_role,
                default_system: DefaultSystem::Keep,
                ..ChatOptions::default()
            },
        )
        .unwrap();
        let examples = prepare(&chat, &rows, 512, true);
        passes(&check(&subject(&chat, &rows, &examples)).unwrap());
    }
}

#[test]
fn an_answer_that_does_not_follow_its_generation_prompt_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows = fixture::rows(3);
    // Served, the model is asked with one more line break than it was trained behind.
    let shifted = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n\n{% endif %}");
    fixture::model_folder_with(dir.path(), &shifted, VOCAB);
    refuses(
        &findings(dir.path(), &rows),
        &["3 row(s)", "after its own generation prompt"],
    );
    // Without one the model has to write the answer's head itself, and learns to.
    let headless = TEMPLATE.replace("<|role|>assistant\n{% endif %}", "{% endif %}");
    fixture::model_folder_with(dir.path(), &headless, VOCAB);
    passes(&findings(dir.path(), &rows));
    let example = &fixture::examples(&fixture::chat(dir.path()), &rows)[0];
    let text = preview(&fixture::chat(dir.path()), example, false);
    assert!(text.contains("⟦<|role|>assistant\nRED<|end|>⟧"), "{text}");
}

#[test]
fn two_templates_that_give_other_ids_are_told_apart() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fixture::model_folder(one.path());
    let (one_chat, same) = (fixture::chat(one.path()), fixture::chat(one.path()));
    let messages = &fixture::rows(1)[0].messages;
    assert!(same_ids(&one_chat, &same, messages));
    // Only the generation prompt differs: a conversation alone would not show it.
    fixture::model_folder_with(
        other.path(),
        &TEMPLATE.replace("assistant\n{% endif %}", "assistant\n\n{% endif %}"),
        VOCAB,
    );
    if let Ok(other) = Chat::load(other.path(), ChatOptions::default()) {
        assert!(!same_ids(&one_chat, &other, messages));
    }
    let other = tempfile::tempdir().unwrap();
    fixture::model_folder_with(
        other.path(),
        &TEMPLATE.replace("<|end|>\n", "<|end|>"),
        VOCAB,
    );
    assert!(!same_ids(&one_chat, &fixture::chat(other.path()), messages));
}

#[test]
fn a_tokenizer_with_more_ids_than_the_embedding_is_refused_and_padding_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, rows) = (fixture::chat(dir.path()), fixture::rows(2));
    let examples = prepare(&chat, &rows, 512, true);
    let small = Subject {
        embedding_rows: VOCAB - 1,
        ..subject(&chat, &rows, &examples)
    };
    refuses(&check(&small).unwrap(), &["ids up to 259", "259 rows"]);
    let foreign = Subject {
        embedding_rows: VOCAB + 1025,
        ..subject(&chat, &rows, &examples)
    };
    refuses(&check(&foreign).unwrap(), &["only 260 ids", "head 1285"]);
    let padded = Subject {
        embedding_rows: VOCAB + 28,
        ..subject(&chat, &rows, &examples)
    };
    let findings = check(&padded).unwrap();
    assert!(
        findings.problems().is_empty() && findings.notes()[0].contains("28 rows of padding"),
        "{findings:?}"
    );
}

#[test]
fn the_table_and_the_page_name_the_gate_the_rows_and_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, rows) = (fixture::chat(dir.path()), fixture::rows(5));
    let mut examples = prepare(&chat, &rows, 512, true);
    examples.examples[3].learn.fill(false);
    let findings = check(&subject(&chat, &rows, &examples)).unwrap();
    let table = check_page::table(&findings, false);
    assert!(!table.contains('\u{1b}'), "{table}");
    let refused = "every row has something to learn                    refused   1";
    assert!(
        table.contains(refused) && table.contains("row-3") && table.contains("take these rows out"),
        "{table}"
    );
    assert!(check_page::table(&findings, true).contains("\u{1b}[31mrefused"));

    let shown: Vec<&Example> = examples.examples.iter().take(2).collect();
    let page = check_page::html(&findings, &chat, &shown, "a <folder>");
    for words in [
        "<mark>RED&lt;|end|&gt;</mark>",
        "<td class=\"refused\">refused</td><td>1: row-3</td>",
        "a &lt;folder&gt;",
    ] {
        assert!(page.contains(words), "{words} is not in {page}");
    }
    assert!(!page.contains("http"), "the page needs no network");
}

#[test]
fn rows_that_lose_something_are_named_but_do_not_stop_a_run() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let (chat, rows) = (fixture::chat(dir.path()), fixture::rows(5));
    let longest = fixture::examples(&chat, &rows)
        .iter()
        .map(|example| example.ids.len())
        .max()
        .unwrap();
    let examples = prepare(&chat, &rows, longest - 1, true);
    let findings = check(&subject(&chat, &rows, &examples)).unwrap();
    assert!(findings.problems().is_empty());
    let note = &findings.notes()[0];
    assert!(
        note.contains("lost history") && note.contains("raise train.max_length"),
        "{note}"
    );
}

#[test]
fn a_teacher_of_other_tokens_is_refused_or_said() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, rows: usize| {
        let path = dir.path().join(name);
        fixture::model_folder_with(&path, TEMPLATE, rows);
        path
    };
    let (chat, rows) = (fixture::chat(&folder("student", VOCAB)), fixture::rows(4));
    let examples = prepare(&chat, &rows, 512, true);
    let of = |path: std::path::PathBuf, cross_tokenizer: CrossTokenizer| {
        let distill = DistillSection {
            teacher: path,
            ..DistillSection::default()
        };
        let config = RunConfig::default();
        let teacher = TeacherChat::load(&config, &distill, &chat, VOCAB, &rows).unwrap();
        let taught = Subject {
            teacher: Some(Taught::ByModel(teacher.vocabularies, cross_tokenizer)),
            ..subject(&chat, &rows, &examples)
        };
        check(&taught).unwrap()
    };
    passes(&of(folder("same", VOCAB), CrossTokenizer::Refuse));
    let padded = of(folder("padded", VOCAB + 12), CrossTokenizer::Refuse);
    assert!(padded.problems().is_empty());
    assert!(padded.notes()[0].contains("272 and 260 rows"), "{padded:?}");

    // The same words under other ids: nothing but their content tells.
    let swapped = folder("swapped", VOCAB);
    let file = swapped.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
    vocab.insert("a".to_string(), b);
    vocab.insert("b".to_string(), a);
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    refuses(
        &of(swapped.clone(), CrossTokenizer::Refuse),
        &[
            "different vocabularies",
            "\"a\" for the student and \"b\"",
            "cross_tokenizer = \"uld\"",
        ],
    );
    let uld = of(swapped, CrossTokenizer::Uld);
    assert!(
        uld.problems().is_empty() && uld.notes()[0].contains("ULD"),
        "{uld:?}"
    );

    let unfit = [("row-1".to_string(), "it has none".to_string())];
    let stored = Subject {
        teacher: Some(Taught::ByRows(&unfit)),
        ..subject(&chat, &rows, &examples)
    };
    let findings = check(&stored).unwrap();
    assert!(findings.problems().is_empty());
    assert!(
        findings.notes()[0].contains("1 row(s) (row-1)"),
        "{findings:?}"
    );
}
