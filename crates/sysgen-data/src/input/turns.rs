//! From a record to the rows that go through the phases: which of its answers are written again, and
//! which turns are only context.

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

/// A record as a system message and pairs of turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    system: Option<String>,
    turns: Vec<Turn>,
}

/// Pairs up the messages. A last question without an answer is left out and reported by the flag.
pub(crate) fn pair_up(messages: Vec<Message>) -> Result<(Conversation, bool), Reason> {
    let refuse = |reason: &str| Err(reason.to_string());
    let mut messages = messages.into_iter().peekable();
    let system = messages
        .next_if(|first| first.role == Role::System)
        .map(|first| first.content);
    let mut turns = Vec::new();
    let mut unanswered = false;
    while let Some(question) = messages.next() {
        match question.role {
            Role::User => {}
            Role::Assistant if turns.is_empty() => return refuse("the assistant speaks first"),
            Role::Assistant => return refuse("two assistant turns in a row"),
            Role::System => return refuse("a system message within the conversation"),
            Role::Tool => return refuse("tool calls"),
        }
        let Some(answer) = messages.next() else {
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
        turns.push(Turn {
            question: question.content,
            answer: answer.content,
        });
    }
    if turns.is_empty() {
        return refuse(if unanswered {
            "a question without an answer"
        } else {
            "no turns"
        });
    }
    let system = system.filter(|text| !text.trim().is_empty());
    Ok((Conversation { system, turns }, unanswered))
}

/// The rows of one record; none when the record has a system message and such records are skipped.
pub(crate) fn rows_of(
    record: &Record,
    multi_turn: MultiTurn,
    existing_system: ExistingSystem,
) -> Result<Vec<Row>, Reason> {
    let (Conversation { system, turns }, _) = pair_up(record.messages.clone())?;
    let system = match existing_system {
        ExistingSystem::Skip if system.is_some() => return Ok(Vec::new()),
        ExistingSystem::Keep => system,
        ExistingSystem::Skip | ExistingSystem::Replace => None,
    };
    let row = |id: String, history: &[Turn], turns: &[Turn]| Row {
        id,
        source: record.source.clone(),
        line: record.line,
        system: system.clone(),
        history: history.to_vec(),
        turns: turns.to_vec(),
    };
    Ok(match multi_turn {
        MultiTurn::First => vec![row(record.id.clone(), &[], &turns[..1])],
        MultiTurn::Whole => vec![row(record.id.clone(), &[], &turns)],
        MultiTurn::Unroll if turns.len() == 1 => vec![row(record.id.clone(), &[], &turns)],
        MultiTurn::Unroll => (0..turns.len())
            .map(|i| {
                row(
                    format!("{}#{}", record.id, i + 1),
                    &turns[..i],
                    &turns[i..=i],
                )
            })
            .collect(),
    })
}
