//! The gate before the first step: what would train the wrong thing without anyone noticing is refused here.
//!
//! Each finding names the rows and what to do. Findings that stop a run are problems, the others are notes.

use anyhow::Result;
use rayon::prelude::*;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::config::{DefaultSystem, SystemRole};
use sysgen_core::message::{Message, Role};

use crate::example::Example;
use crate::rows::Row;

/// Rows named in a finding; the rest is counted.
const NAMED_ROWS: usize = 3;
/// Rows that are rendered again through the exported files.
const EXPORTED_ROWS: usize = 32;

/// What the gate found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Reasons not to train.
    pub problems: Vec<String>,
    /// Things to know.
    pub notes: Vec<String>,
}

/// What the gate looks at.
pub struct Subject<'a> {
    /// The template and tokenizer in use.
    pub chat: &'a Chat,
    /// Rows of the model's embedding table.
    pub embedding_rows: usize,
    /// The rows of the data set.
    pub rows: Vec<&'a Row>,
    /// The rows as they are trained on.
    pub examples: Vec<&'a Example>,
    /// Rows that could not be rendered, and why.
    pub refused: &'a [(String, String)],
    /// What was asked for default system texts.
    pub default_system: DefaultSystem,
    /// Whether only the assistant's words are learnt.
    pub assistant_only_loss: bool,
}

/// Looks at everything.
///
/// # Errors
/// When the tokenizer cannot be saved and loaded again.
pub fn check(subject: &Subject) -> Result<Findings> {
    let mut findings = Findings::default();
    vocabulary(subject, &mut findings);
    refused(subject, &mut findings);
    beginning(subject, &mut findings);
    supervision(subject, &mut findings);
    system_texts(subject, &mut findings);
    default_system(subject, &mut findings);
    exported_template(subject, &mut findings)?;
    Ok(findings)
}

fn vocabulary(subject: &Subject, findings: &mut Findings) {
    match subject.chat.padding_rows(subject.embedding_rows) {
        Ok(0) => {}
        Ok(padding) => findings.notes.push(format!(
            "the tokenizer has {} ids, the model {} embedding rows: {padding} rows of padding that no text uses",
            subject.chat.vocab_size(),
            subject.embedding_rows
        )),
        Err(error) => findings.problems.push(error.to_string()),
    }
}

fn refused(subject: &Subject, findings: &mut Findings) {
    if let Some((_, reason)) = subject.refused.first() {
        let rows: Vec<&str> = subject.refused.iter().map(|(id, _)| id.as_str()).collect();
        report(findings, &rows, |rows| {
            format!("{rows} cannot be rendered; the first one: {reason}")
        });
    }
}

fn beginning(subject: &Subject, findings: &mut Findings) {
    let Some(bos) = subject.chat.bos_id() else {
        return;
    };
    let wanted = subject.chat.begins_with_bos();
    let name = subject.chat.token(bos);
    let (mut missing, mut doubled) = (Vec::new(), Vec::new());
    for example in &subject.examples {
        match example.ids.iter().take_while(|&&id| id == bos).count() {
            0 if wanted => missing.push(example.id.as_str()),
            0 | 1 => {} // a template may write BOS where the tokenizer does not
            _ => doubled.push(example.id.as_str()),
        }
    }
    report(findings, &missing, |rows| {
        format!("{rows} do not begin with {name}, which the tokenizer wants")
    });
    report(findings, &doubled, |rows| {
        format!("{rows} begin with {name} more than once; the tokenizer wants one")
    });
}

fn supervision(subject: &Subject, findings: &mut Findings) {
    let chat = subject.chat;
    let stops: Vec<String> = chat.stop_ids().iter().map(|&id| chat.token(id)).collect();
    let (mut nothing, mut endless) = (Vec::new(), Vec::new());
    for example in &subject.examples {
        if example.supervised() == 0 {
            nothing.push(example.id.as_str());
        } else if !learns_to_stop(example, chat.stop_ids(), subject.assistant_only_loss) {
            endless.push(example.id.as_str());
        }
    }
    report(findings, &nothing, |rows| {
        format!("{rows} have no token to learn: the answer is empty, or the template hides it")
    });
    report(findings, &endless, |rows| {
        format!(
            "{rows} do not teach the model to stop: no stop token ({}) is learnt at the end of the answer",
            stops.join(", ")
        )
    });
}

/// Every answer (an unbroken stretch of learnt tokens) ends with a stop token. Where everything is learnt there is one
/// stretch, and some stop token must be in it.
fn learns_to_stop(example: &Example, stop_ids: &[u32], assistant_only_loss: bool) -> bool {
    let learnt = |t: usize| example.learn.get(t) == Some(&true);
    let is_stop = |t: usize| stop_ids.contains(&example.ids[t]);
    let mut learnt_positions = (0..example.ids.len()).filter(|&t| learnt(t));
    if assistant_only_loss {
        learnt_positions.filter(|&t| !learnt(t + 1)).all(is_stop)
    } else {
        learnt_positions.any(is_stop)
    }
}

fn system_texts(subject: &Subject, findings: &mut Findings) {
    let lost: Vec<&str> = subject
        .rows
        .par_iter()
        .filter_map(|&row| {
            let system = row.messages.iter().find(|m| m.role == Role::System)?;
            let answer = row
                .messages
                .iter()
                .rposition(|m| m.role == Role::Assistant)
                .unwrap_or(row.messages.len());
            // A row that cannot be rendered is named by `refused`.
            let prompt = subject
                .chat
                .render_text(&row.messages[..answer], true)
                .ok()?;
            (!prompt.contains(system.content.trim())).then_some(row.id.as_str())
        })
        .collect();
    report(findings, &lost, |rows| {
        format!(
            "{rows} have a system message that is not word for word in the prompt: the template drops or changes it; see model.system_role"
        )
    });
}

fn default_system(subject: &Subject, findings: &mut Findings) {
    let Some(text) = subject.chat.hidden_default() else {
        return;
    };
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let without = subject
        .rows
        .iter()
        .filter(|row| row.messages.iter().all(|m| m.role != Role::System))
        .count();
    match subject.default_system {
        DefaultSystem::Strip => findings.problems.push(format!(
            "model.default_system = \"strip\", but without a system message the prompt still says `{text}`"
        )),
        DefaultSystem::Keep if without > 0 => findings.notes.push(format!(
            "{without} row(s) have no system message; the template gives them its own: `{text}` \
             (model.default_system = \"strip\" takes it out)"
        )),
        DefaultSystem::Keep => {}
    }
}

/// What is exported must be the template in use: whoever serves the model renders with those files alone.
fn exported_template(subject: &Subject, findings: &mut Findings) -> Result<()> {
    let folder = tempfile::tempdir()?;
    subject.chat.save(folder.path())?;
    let options = ChatOptions {
        system_role: SystemRole::Native,
        default_system: DefaultSystem::Keep,
    };
    let exported = Chat::load(folder.path(), options)?;
    let differ: Vec<&str> = subject
        .rows
        .iter()
        .take(EXPORTED_ROWS)
        .filter(|row| !same_ids(subject.chat, &exported, &row.messages))
        .map(|row| row.id.as_str())
        .collect();
    report(findings, &differ, |rows| {
        format!(
            "{rows} become other ids with the exported chat template than with the one in use: the exported model would see other prompts"
        )
    });
    Ok(())
}

/// Both give the same prompt and the same conversation; of what neither renders, nothing is said.
pub fn same_ids(one: &Chat, other: &Chat, messages: &[Message]) -> bool {
    let Ok(whole) = one.render(messages) else {
        return true;
    };
    let answer = messages
        .iter()
        .rposition(|m| m.role == Role::Assistant)
        .unwrap_or(messages.len());
    let prompt = one.prompt(&messages[..answer]).ok();
    other
        .render(messages)
        .is_ok_and(|there| there.ids == whole.ids)
        && other.prompt(&messages[..answer]).ok() == prompt
}

fn report(findings: &mut Findings, rows: &[&str], say: impl Fn(&str) -> String) {
    if rows.is_empty() {
        return;
    }
    let named = rows
        .iter()
        .take(NAMED_ROWS)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    let rest = rows.len().saturating_sub(NAMED_ROWS);
    let rest = if rest > 0 {
        format!(" and {rest} more")
    } else {
        String::new()
    };
    findings
        .problems
        .push(say(&format!("{} row(s) ({named}{rest})", rows.len())));
}

/// A row as text, with the learnt tokens in green, or in brackets `⟦…⟧` without colour.
pub fn preview(chat: &Chat, example: &Example, colour: bool) -> String {
    let (open, close) = if colour {
        ("\u{1b}[32m", "\u{1b}[0m")
    } else {
        ("⟦", "⟧")
    };
    let mut text = String::new();
    let mut start = 0;
    for end in 1..=example.ids.len() {
        if end < example.ids.len() && example.learn[end] == example.learn[start] {
            continue;
        }
        let stretch = spelled(chat, &example.ids[start..end]);
        if example.learn[start] {
            text += &format!("{open}{stretch}{close}");
        } else {
            text += &stretch;
        }
        start = end;
    }
    text
}

/// The text of some tokens, special ones included.
fn spelled(chat: &Chat, ids: &[u32]) -> String {
    let mut text = String::new();
    let mut plain: Vec<u32> = Vec::new();
    for &id in ids {
        let name = chat.token(id);
        // Byte tokens of a character decode to nothing readable alone: only whole stretches are decoded.
        if chat.decode(&[id]).is_empty() && !name.is_empty() {
            text += &chat.decode(&std::mem::take(&mut plain));
            text += &name;
        } else {
            plain.push(id);
        }
    }
    text + &chat.decode(&plain)
}
