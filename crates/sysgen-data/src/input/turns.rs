//! From a record to the rows that go through the phases: which of its answers are written again, and
//! which turns are only context.

use std::collections::HashSet;

use sysgen_core::config::{ExistingSystem, MultiTurn};
use sysgen_core::message::{Message, Role};
use sysgen_core::record::Record;

use crate::input::format::Reason;

/// One question and its answer in the source data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The user's text.
    pub question: String,
    /// The answer of the source data.
    pub answer: String,
}

/// What goes through the phases as one unit and comes out as one row of the data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Unique: the record's id, with `#<turn>` when the conversation was unrolled.
    pub id: String,
    /// The file of the record.
    pub source: String,
    /// The record's line in it.
    pub line: usize,
    /// The record's own system message, when `existing_system = "keep"`.
    pub system: Option<String>,
    /// Earlier turns: context that is left as it is.
    pub history: Vec<Turn>,
    /// The turns whose answers are written again; never empty, more than one only in
    /// `multi_turn = "whole"`.
    pub turns: Vec<Turn>,
}

/// What a conversation looks like, once it is known to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Its first message is a system message with a text.
    pub(crate) has_system: bool,
    /// A last question without an answer, which is left out.
    pub(crate) last_question_unanswered: bool,
}

/// Whether the messages are pairs of question and answer, after a system message perhaps.
pub(crate) fn layout(messages: &[Message]) -> Result<Layout, Reason> {
    let refuse = |reason: &str| Err(reason.to_string());
    let (system, rest) = match messages {
        [first, rest @ ..] if first.role == Role::System => (Some(first), rest),
        rest => (None, rest),
    };
    let mut unanswered = false;
    for (i, pair) in rest.chunks(2).enumerate() {
        match pair[0].role {
            Role::User => {}
            Role::Assistant if i == 0 => return refuse("the assistant speaks first"),
            Role::Assistant => return refuse("two assistant turns in a row"),
            Role::System => return refuse("a system message within the conversation"),
            Role::Tool => return refuse("tool calls"),
        }
        let [question, answer] = pair else {
            unanswered = true;
            break;
        };
        match answer.role {
            Role::Assistant => {}
            Role::User => return refuse("two user turns in a row"),
            Role::System => return refuse("a system message within the conversation"),
            Role::Tool => return refuse("tool calls"),
        }
        if question.content.trim().is_empty() {
            return refuse("an empty question");
        }
        if answer.content.trim().is_empty() {
            return refuse("an empty answer");
        }
    }
    match (rest.len(), unanswered) {
        (0, _) => return refuse("no turns"),
        (1, true) => return refuse("a question without an answer"),
        _ => {}
    }
    Ok(Layout {
        has_system: system.is_some_and(|system| !system.content.trim().is_empty()),
        last_question_unanswered: unanswered,
    })
}

/// Gives a conversation another id where its unrolled rows would have those of other records (`a#1` beside `a`). Before
/// anything is chosen among the records, so that an id does not depend on the choice.
pub(crate) fn keep_ids_apart(records: &mut [Record], multi_turn: MultiTurn) {
    let looks_unrolled = |record: &Record| {
        let turn = record.id.rsplit_once('#').map(|(_, turn)| turn);
        turn.is_some_and(|turn| turn.parse::<usize>().is_ok())
    };
    if multi_turn != MultiTurn::Unroll || !records.iter().any(looks_unrolled) {
        return;
    }
    let mut taken: HashSet<String> = records.iter().map(|record| record.id.clone()).collect();
    for record in records {
        let answers = record
            .messages
            .iter()
            .filter(|message| message.role == Role::Assistant)
            .count();
        let clashes = |id: &str, taken: &HashSet<String>| {
            answers > 1 && (1..=answers).any(|turn| taken.contains(&unrolled(id, turn)))
        };
        if !clashes(&record.id, &taken) {
            continue;
        }
        let free = (2..)
            .map(|copy| format!("{}~{copy}", record.id))
            .find(|id| !taken.contains(id) && !clashes(id, &taken));
        record.id = free.expect("there are more numbers than records");
        taken.insert(record.id.clone());
    }
}

/// The id of a conversation's row for one turn, from 1.
fn unrolled(id: &str, turn: usize) -> String {
    format!("{id}#{turn}")
}

/// The rows of one record whose `layout` holds; none when it has a system message and such records are
/// skipped.
pub(crate) fn rows_of(
    record: Record,
    multi_turn: MultiTurn,
    existing_system: ExistingSystem,
) -> Vec<Row> {
    let Record {
        id,
        source,
        line,
        messages,
        learnt_answers: _, // every answer of its turns is written again
    } = record;
    let mut messages = messages.into_iter().peekable();
    let system = messages
        .next_if(|first| first.role == Role::System)
        .map(|first| first.content)
        .filter(|text| !text.trim().is_empty());
    let system = match existing_system {
        ExistingSystem::Skip if system.is_some() => return Vec::new(),
        ExistingSystem::Keep => system,
        ExistingSystem::Skip | ExistingSystem::Replace => None,
    };
    let mut turns = Vec::new();
    while let (Some(question), Some(answer)) = (messages.next(), messages.next()) {
        turns.push(Turn {
            question: question.content,
            answer: answer.content,
        });
    }
    if multi_turn == MultiTurn::First {
        turns.truncate(1);
    }
    if multi_turn != MultiTurn::Unroll || turns.len() == 1 {
        return vec![Row {
            id,
            source,
            line,
            system,
            history: Vec::new(),
            turns,
        }];
    }
    (0..turns.len())
        .map(|i| Row {
            id: unrolled(&id, i + 1),
            source: source.clone(),
            line,
            system: system.clone(),
            history: turns[..i].to_vec(),
            turns: turns[i..=i].to_vec(),
        })
        .collect()
}
