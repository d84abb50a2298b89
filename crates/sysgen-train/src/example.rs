//! A row becomes an example: token ids, the mask of what is learnt, and no more tokens than a row may have.
//!
//! What is too long loses its oldest turns, then the start of its question; never a word of the system message or of the
//! answer. What still does not fit is dropped and named.

use std::path::Path;

use anyhow::{Result, bail};
use rayon::prelude::*;
use sysgen_chat::Chat;
use sysgen_core::message::{Message, Role};

use crate::render_cache;
use crate::rows::Row;

/// A conversation as the model is trained on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The row it comes from.
    pub id: String,
    /// The tokens.
    pub ids: Vec<u32>,
    /// `learn[t]`: `ids[t]` is something the model learns to say. Never true for the first token.
    pub learn: Vec<bool>,
    /// Which file of `data.path` its row comes from, counted from 0.
    pub set: usize,
}

impl Example {
    /// How many tokens are learnt.
    pub fn supervised(&self) -> usize {
        self.learn.iter().filter(|&&learn| learn).count()
    }
}

/// All rows as examples, and what happened to those that are not whole.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    /// In the order of the rows.
    pub examples: Vec<Example>,
    /// Rows that lost history or the start of their question.
    pub cut: Vec<String>,
    /// Rows too long to be used, and why.
    pub dropped: Vec<(String, String)>,
    /// Rows that the chat template or tokenizer refuses, and why; the gate refuses to train on the rest.
    pub refused: Vec<(String, String)>,
    /// Rows whose stored teacher probabilities do not fit them, and why.
    pub unfit: Vec<(String, String)>,
}

/// What became of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// All of it is there.
    Whole(Example),
    /// It lost history or the start of its question.
    Cut(Example),
    /// It is too long, and why nothing could be cut (row, reason).
    Dropped(String, String),
    /// It cannot be rendered (row, reason).
    Refused(String, String),
}

/// Renders every row to at most `max_length` tokens, in parallel. With a `cache` folder, rows whose text, template and
/// tokenizer were met before are taken from there.
pub fn render_rows(
    chat: &Chat,
    rows: &[&Row],
    max_length: usize,
    cache: Option<&Path>,
) -> Vec<Fit> {
    let render = |row: &Row| {
        fit(chat, row, max_length)
            .unwrap_or_else(|error| Fit::Refused(row.id.clone(), format!("{error:#}")))
    };
    match cache.filter(|_| !chat.depends_on_today()) {
        Some(folder) => render_cache::through(folder, chat, rows, max_length, render),
        None => rows.par_iter().map(|row| render(row)).collect(),
    }
}

/// Renders every row to at most `max_length` tokens. With `assistant_only_loss` false, every token but the first is learnt.
pub fn prepare(
    chat: &Chat,
    rows: &[Row],
    max_length: usize,
    assistant_only_loss: bool,
) -> Examples {
    let rows: Vec<&Row> = rows.iter().collect();
    Examples::of(
        render_rows(chat, &rows, max_length, None),
        assistant_only_loss,
    )
}

impl Examples {
    /// Sorts rendered rows by what became of them.
    pub fn of(fits: Vec<Fit>, assistant_only_loss: bool) -> Examples {
        let mut found = Examples::default();
        for fit in fits {
            match fit {
                Fit::Whole(example) => {
                    (found.examples).push(learn_what(example, assistant_only_loss))
                }
                Fit::Cut(example) => {
                    found.cut.push(example.id.clone());
                    (found.examples).push(learn_what(example, assistant_only_loss));
                }
                Fit::Dropped(id, reason) => found.dropped.push((id, reason)),
                Fit::Refused(id, reason) => found.refused.push((id, reason)),
            }
        }
        found
    }
}

fn learn_what(mut example: Example, assistant_only_loss: bool) -> Example {
    if !assistant_only_loss {
        example.learn.fill(true);
        if let Some(first) = example.learn.first_mut() {
            *first = false; // nothing comes before it to predict it from
        }
    }
    example
}

fn fit(chat: &Chat, row: &Row, max_length: usize) -> Result<Fit> {
    let whole = render(chat, row, &row.messages)?;
    if whole.ids.len() <= max_length {
        return Ok(Fit::Whole(whole));
    }
    let system = usize::from(row.messages.first().is_some_and(|m| m.role == Role::System));
    let without = |dropped: usize| {
        let mut messages = row.messages.clone();
        messages.drain(system..system + dropped);
        messages
    };
    let turns = later_turns(&row.messages[system..]);
    // The more turns are dropped, the shorter it is: the fewest that are enough lie between `too_few` and `enough`.
    let (mut too_few, mut enough, mut longest) = (0, turns.len() + 1, None);
    while enough - too_few > 1 {
        let middle = usize::midpoint(too_few, enough);
        let example = render(chat, row, &without(turns[middle - 1]))?;
        if example.ids.len() <= max_length {
            (enough, longest) = (middle, Some(example));
        } else {
            too_few = middle;
        }
    }
    match longest {
        Some(example) => Ok(Fit::Cut(example)),
        None => {
            let shortest = without(turns.last().copied().unwrap_or(0));
            cut_question(chat, row, shortest, max_length)
        }
    }
}

fn render(chat: &Chat, row: &Row, messages: &[Message]) -> Result<Example> {
    // Only the oldest turns are ever cut, so the last answers of the row are those of `messages`.
    let answers = messages.iter().filter(|m| m.role == Role::Assistant);
    let learnt = &row.learnt_answers[row.learnt_answers.len() - answers.count()..];
    let mut rendered = chat.render_learning(messages, learnt)?;
    for (answer, learnt) in rendered.answers.into_iter().zip(learnt) {
        rendered.learn[answer].fill(*learnt);
    }
    Ok(Example {
        id: row.id.clone(),
        ids: rendered.ids,
        learn: rendered.learn,
        set: row.set,
    })
}

/// Where the second and every later turn of these messages begins, if an assistant answers it.
fn later_turns(messages: &[Message]) -> Vec<usize> {
    let last_answer = messages.iter().rposition(|m| m.role == Role::Assistant);
    (1..last_answer.unwrap_or(0))
        .filter(|&i| messages[i].role == Role::User && messages[i - 1].role == Role::Assistant)
        .collect()
}

/// Keeps as much of the end of the longest question as fits, at least one character.
fn cut_question(
    chat: &Chat,
    row: &Row,
    mut messages: Vec<Message>,
    max_length: usize,
) -> Result<Fit> {
    let question = (0..messages.len())
        .filter(|&i| matches!(messages[i].role, Role::User | Role::Tool))
        .max_by_key(|&i| messages[i].content.len());
    let Some(question) = question else {
        bail!("no user message")
    };
    let text: Vec<char> = messages[question].content.chars().collect();
    let mut try_keeping = |characters: usize| -> Result<Example> {
        messages[question].content = text[text.len() - characters..].iter().collect();
        render(chat, row, &messages)
    };
    let shortest = try_keeping(text.len().min(1))?;
    if shortest.ids.len() > max_length {
        let reason = format!(
            "its system message and answer alone need {} tokens, train.max_length is {max_length}",
            shortest.ids.len()
        );
        return Ok(Fit::Dropped(row.id.clone(), reason));
    }
    let (mut fits, mut too_long) = (text.len().min(1), text.len());
    let mut best = shortest;
    while too_long - fits > 1 {
        let middle = usize::midpoint(fits, too_long);
        let example = try_keeping(middle)?;
        if example.ids.len() <= max_length {
            (fits, best) = (middle, example);
        } else {
            too_long = middle;
        }
    }
    Ok(Fit::Cut(best))
}
