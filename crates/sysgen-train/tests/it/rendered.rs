//! What a row becomes before the gate sees it: ids, what of them is learnt, and what is cut where it is too long.

use serde_json::{Value, json};
use sysgen_core::Message;
use sysgen_train::check::preview;
use sysgen_train::example::{Examples, prepare};
use sysgen_train::rows::Row;

use crate::fixture::{self, END, VOCAB};

#[test]
fn what_is_too_long_loses_history_then_question_and_never_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let chat = fixture::chat(dir.path());
    let turn = |n: usize| {
        [
            Message::user(format!("question {n} {}", "x".repeat(30))),
            Message::assistant(format!("answer {n}")),
        ]
    };
    let mut messages = vec![Message::system("Be brief.")];
    messages.extend((0..4).flat_map(turn));
    let row = Row::new("long", messages);
    let whole = chat.render(&row.messages).unwrap().ids.len();
    let text_at = |limit: usize| -> (Examples, String) {
        let fitted = prepare(&chat, std::slice::from_ref(&row), limit, true);
        let text = fitted
            .examples
            .first()
            .map(|example| preview(&chat, example, false))
            .unwrap_or_default();
        (fitted, text)
    };

    let (fitted, text) = text_at(whole);
    assert!(fitted.cut.is_empty() && text.contains("question 0"));
    let (fitted, text) = text_at(whole - 1);
    assert_eq!(fitted.cut, ["long"]);
    assert!(
        !text.contains("question 0") && text.contains("question 1") && text.contains("Be brief."),
        "{text}"
    );

    let last_turn = chat
        .render(&[&row.messages[..1], &row.messages[7..]].concat())
        .unwrap()
        .ids
        .len();
    let (fitted, text) = text_at(last_turn - 10);
    assert_eq!(fitted.examples[0].ids.len(), last_turn - 10);
    assert!(
        text.contains("Be brief.")
            && text.contains("⟦answer 3<|end|>⟧")
            && !text.contains("question 3"),
        "{text}"
    );

    let (fitted, _) = text_at(40);
    assert!(fitted.examples.is_empty());
    assert!(
        fitted.dropped[0].0 == "long" && fitted.dropped[0].1.contains("train.max_length is 40"),
        "{:?}",
        fitted.dropped
    );
}

/// Held against the walk that drops one turn after the other.
#[test]
fn no_more_turns_are_dropped_than_have_to_be() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let chat = fixture::chat(dir.path());
    let turn = |n: usize| {
        [
            Message::user("q".repeat(3 + n * 7 % 5)),
            Message::assistant("a".repeat(1 + n * 5 % 7)),
        ]
    };
    for system in [0, 1] {
        let mut messages = vec![Message::system("Be brief."); system];
        messages.extend((0..9).flat_map(turn));
        // What is asked last has no answer, and is no turn to keep.
        messages.push(Message::user("and?"));
        let lengths: Vec<usize> = (0..9)
            .map(|dropped| {
                let kept = &messages[system + 2 * dropped..];
                let kept = [&messages[..system], kept].concat();
                chat.render(&kept).unwrap().ids.len()
            })
            .collect();
        let row = Row::new("long", messages);
        for limit in lengths[8]..=lengths[0] {
            let fitted = prepare(&chat, std::slice::from_ref(&row), limit, true);
            let dropped = lengths.iter().position(|&length| length <= limit).unwrap();
            assert_eq!(fitted.examples[0].ids.len(), lengths[dropped], "{limit}");
            assert_eq!(fitted.cut.len(), usize::from(dropped > 0));
        }
    }
}

#[test]
fn an_answer_of_weight_zero_is_not_learnt_even_where_older_turns_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let chat = fixture::chat(dir.path());
    let turns = ["one", "two", "three"];
    let messages = turns.into_iter().flat_map(|word| {
        [
            Message::user(format!("say {word}")),
            Message::assistant(word),
        ]
    });
    let mut row = Row::new("a", messages.collect());
    row.learnt_answers = vec![false, false, true];
    let whole = chat.render(&row.messages).unwrap().ids.len();
    for limit in [whole, whole - 1] {
        let fitted = prepare(&chat, std::slice::from_ref(&row), limit, true);
        let text = preview(&chat, &fitted.examples[0], false);
        assert!(
            text.contains("⟦three<|end|>⟧") && text.contains("assistant\ntwo"),
            "{text}"
        );
    }
}

#[test]
fn the_learnt_tokens_of_a_row_are_its_answer_and_the_stop_token() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let chat = fixture::chat(dir.path());
    for (row, example) in fixture::rows(4)
        .iter()
        .zip(fixture::examples(&chat, &fixture::rows(4)))
    {
        let learnt: Vec<u32> = example
            .ids
            .iter()
            .zip(&example.learn)
            .filter(|(_, learn)| **learn)
            .map(|(id, _)| *id)
            .collect();
        let (stop, answer) = learnt.split_last().unwrap();
        assert_eq!(
            (*stop, chat.decode(answer)),
            (END, row.messages[2].content.clone())
        );
    }
}

#[test]
fn the_preview_marks_what_is_learnt() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let chat = fixture::chat(dir.path());
    let messages = vec![Message::user("Größe?"), Message::assistant("Zwölf.")];
    let example = &fixture::examples(&chat, &[Row::new("a", messages)])[0];
    assert_eq!(
        preview(&chat, example, false),
        "<|begin|><|role|>user\nGröße?<|end|>\n<|role|>assistant\n⟦Zwölf.<|end|>⟧\n"
    );
    assert!(preview(&chat, example, true).contains("\u{1b}[32mZwölf.<|end|>\u{1b}[0m"));
}

/// Kept here so that the fixture is what its name says.
#[test]
fn the_fixture_is_a_byte_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["vocab_size"], json!(VOCAB));
    let chat = fixture::chat(dir.path());
    assert_eq!(chat.vocab_size(), VOCAB);
    assert_eq!(chat.decode(&chat.encode("aß \n€")), "aß \n€");
}
