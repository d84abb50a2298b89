//! Phase 4: the question is asked again under the new system message.

use sysgen_core::message::Message;

use crate::input::{Row, Turn};

/// The conversation up to the question of turn `answers.len()`: the system message, earlier turns as
/// they are, and, in a whole conversation, the answers written so far instead of the original ones.
pub(crate) fn prompt(system: &str, row: &Row, answers: &[String]) -> Vec<Message> {
    let mut messages = vec![Message::system(system)];
    messages.extend(row.history.iter().flat_map(spoken));
    for (turn, answer) in row.turns.iter().zip(answers) {
        messages.push(Message::user(&turn.question));
        messages.push(Message::assistant(answer));
    }
    messages.push(Message::user(&row.turns[answers.len()].question));
    messages
}

/// Both messages of a turn of the source data.
pub(crate) fn spoken(turn: &Turn) -> [Message; 2] {
    [
        Message::user(&turn.question),
        Message::assistant(&turn.answer),
    ]
}
