//! The gate before the first step: what would train the wrong thing without anyone noticing is refused here.
//!
//! Each finding names the rows and what to do. Findings that stop a run are problems, the others are notes.

use anyhow::Result;
use rayon::prelude::*;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::config::{CrossTokenizer, DefaultSystem};
use sysgen_core::message::{Message, Role};

use crate::distill::{OTHER_TOKENS, Vocabularies};
use crate::example::Example;
use crate::rows::Row;

/// Rows named in a finding; the rest is counted.
const NAMED_ROWS: usize = 3;
/// Rows that are rendered again through the exported files.
const EXPORTED_ROWS: usize = 32;

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to say.
    Passed,
    /// Something to know.
    Note,
    /// A reason not to train.
    Refused,
}

/// One thing that was looked at in all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// What has to hold, in a few words.
    pub name: &'static str,
    /// Whether it holds.
    pub verdict: Verdict,
    /// The rows it does not hold for.
    pub rows: Vec<String>,
    /// What is the matter; empty where it holds.
    pub finding: String,
    /// What to do about it; empty where nothing has to be done.
    pub fix: &'static str,
}

impl Gate {
    fn passed(name: &'static str) -> Gate {
        Gate {
            name,
            verdict: Verdict::Passed,
            rows: Vec::new(),
            finding: String::new(),
            fix: "",
        }
    }

    fn said(name: &'static str, verdict: Verdict, finding: String, fix: &'static str) -> Gate {
        Gate {
            verdict,
            finding,
            fix,
            ..Gate::passed(name)
        }
    }

    /// Refused for these rows, or passed where there are none.
    fn of_rows(name: &'static str, rows: &[&str], finding: &str, fix: &'static str) -> Gate {
        if rows.is_empty() {
            return Gate::passed(name);
        }
        Gate {
            rows: rows.iter().map(|row| (*row).to_string()).collect(),
            ..Gate::said(name, Verdict::Refused, finding.to_string(), fix)
        }
    }

    fn also(mut self, other: Gate) -> Gate {
        if other.verdict == Verdict::Passed {
            return self;
        }
        if self.verdict == Verdict::Passed {
            return other;
        }
        self.finding = format!("{}; {}", self.finding, other.finding);
        self.rows.extend(other.rows);
        self
    }

    /// The finding in one sentence, with the first rows and the way out.
    pub fn sentence(&self) -> String {
        let mut text = match self.named_rows() {
            rows if rows.is_empty() => String::new(),
            rows => format!("{} row(s) ({rows}) ", self.rows.len()),
        };
        text += &self.finding;
        if !self.fix.is_empty() {
            text += &format!("; {}", self.fix);
        }
        text
    }

    /// The first rows by name, and how many more there are.
    pub fn named_rows(&self) -> String {
        let named: Vec<&str> = self
            .rows
            .iter()
            .take(NAMED_ROWS)
            .map(String::as_str)
            .collect();
        let rest = self.rows.len().saturating_sub(NAMED_ROWS);
        let rest = if rest > 0 {
            format!(" and {rest} more")
        } else {
            String::new()
        };
        named.join(", ") + &rest
    }
}

/// What the gates found, in the order they were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// One for each thing that was looked at.
    pub gates: Vec<Gate>,
}

impl Findings {
    /// Reasons not to train, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        self.with(Verdict::Refused)
    }

    /// Things to know, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        self.with(Verdict::Note)
    }

    fn with(&self, verdict: Verdict) -> Vec<String> {
        let gates = self.gates.iter().filter(|gate| gate.verdict == verdict);
        gates.map(Gate::sentence).collect()
    }
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
    /// Rows that lost history or the start of their question.
    pub cut: &'a [String],
    /// Rows too long to be used, and why.
    pub dropped: &'a [(String, String)],
    /// What was asked for default system texts.
    pub default_system: DefaultSystem,
    /// Whether only the assistant's words are learnt.
    pub assistant_only_loss: bool,
    /// Where a teacher's probabilities come from, if there is one.
    pub teacher: Option<Taught<'a>>,
}

/// Where a teacher's probabilities come from.
#[derive(Clone, Debug)]
pub enum Taught<'a> {
    /// A model: how its tokens stand to the student's, and what was asked for where they differ.
    ByModel(Vocabularies, CrossTokenizer),
    /// The rows; those that have none that fit them, and why.
    ByRows(&'a [(String, String)]),
}

/// Looks at everything.
///
/// # Errors
/// When the tokenizer cannot be saved and loaded again.
pub fn check(subject: &Subject) -> Result<Findings> {
    Ok(Findings {
        gates: vec![
            vocabulary(subject),
            rendered(subject),
            length(subject),
            beginning(subject),
            supervised(subject),
            stops(subject),
            system_texts(subject),
            default_system(subject),
            exported_template(subject)?,
            teacher(subject),
        ],
    })
}

fn vocabulary(subject: &Subject) -> Gate {
    const NAME: &str = "tokenizer fits the model";
    let said = |verdict, finding| Gate::said(NAME, verdict, finding, "");
    match subject.chat.padding_rows(subject.embedding_rows) {
        Ok(0) => Gate::passed(NAME),
        Ok(padding) => said(
            Verdict::Note,
            format!(
                "the tokenizer has {} ids, the model {} embedding rows: {padding} rows of padding that no text uses",
                subject.chat.vocab_size(),
                subject.embedding_rows
            ),
        ),
        Err(error) => said(Verdict::Refused, error.to_string()),
    }
}

/// A teacher that reads the student's ids as other words teaches nonsense without a sign of it.
fn teacher(subject: &Subject) -> Gate {
    const NAME: &str = "the teacher reads the same tokens";
    match &subject.teacher {
        None | Some(Taught::ByModel(Vocabularies::Same, _) | Taught::ByRows([])) => {
            Gate::passed(NAME)
        }
        Some(Taught::ByModel(found, asked)) => {
            let (verdict, so, fix) = match (found, asked) {
                (Vocabularies::Different { .. }, CrossTokenizer::Refuse) => {
                    (Verdict::Refused, "", OTHER_TOKENS)
                }
                (Vocabularies::Different { .. }, CrossTokenizer::Uld) => (
                    Verdict::Note,
                    ": sorted probabilities are compared over spans that are whole tokens on both sides (ULD)",
                    "",
                ),
                _ => (Verdict::Note, "", ""),
            };
            Gate::said(NAME, verdict, format!("{found}{so}"), fix)
        }
        Some(Taught::ByRows(unfit)) => {
            let reason = unfit.first().map_or("", |(_, reason)| reason);
            let finding = format!(
                "have no stored probabilities that fit them and are left out; the first one: {reason}"
            );
            let fix = "generate them again with this tokenizer, or set distill.teacher";
            Gate {
                rows: unfit.iter().map(|(id, _)| id.clone()).collect(),
                ..Gate::said(NAME, Verdict::Note, finding, fix)
            }
        }
    }
}

fn rendered(subject: &Subject) -> Gate {
    let rows: Vec<&str> = subject.refused.iter().map(|(id, _)| id.as_str()).collect();
    let reason = subject.refused.first().map_or("", |(_, reason)| reason);
    Gate::of_rows(
        "every row renders, answers told from prompts",
        &rows,
        &format!("cannot be rendered; the first one: {reason}"),
        "",
    )
}

/// Never a reason not to train: what is lost is counted and named.
fn length(subject: &Subject) -> Gate {
    const NAME: &str = "rows fit whole";
    let (cut, dropped) = (subject.cut.len(), subject.dropped.len());
    if cut + dropped == 0 {
        return Gate::passed(NAME);
    }
    let fix = "raise train.max_length";
    let finding = format!(
        "are too long: {cut} lost history or the start of the question (never of the answer), {dropped} are left out"
    );
    let names = subject.dropped.iter().map(|(id, _)| id).chain(subject.cut);
    Gate {
        rows: names.cloned().collect(),
        ..Gate::said(NAME, Verdict::Note, finding, fix)
    }
}

fn beginning(subject: &Subject) -> Gate {
    const NAME: &str = "one BOS, as the tokenizer wants it";
    let Some(bos) = subject.chat.bos_id() else {
        return Gate::passed(NAME);
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
    let fix = "correct bos_token in the chat template, or add_bos_token in tokenizer_config.json";
    let missing_says = format!("do not begin with {name}, which the tokenizer wants");
    let doubled_says = format!("begin with {name} more than once; the tokenizer wants one");
    Gate::of_rows(NAME, &missing, &missing_says, fix).also(Gate::of_rows(
        NAME,
        &doubled,
        &doubled_says,
        fix,
    ))
}

fn supervised(subject: &Subject) -> Gate {
    let rows: Vec<&str> = subject
        .examples
        .iter()
        .filter(|example| example.supervised() == 0)
        .map(|example| example.id.as_str())
        .collect();
    Gate::of_rows(
        "every row has something to learn",
        &rows,
        "have no token to learn: the answer is empty, all its answers have weight 0, or the template hides it",
        "take these rows out, or correct their answers",
    )
}

fn stops(subject: &Subject) -> Gate {
    let chat = subject.chat;
    let stops: Vec<String> = chat.stop_ids().iter().map(|&id| chat.token(id)).collect();
    let endless: Vec<&str> = subject
        .examples
        .iter()
        .filter(|example| {
            example.supervised() > 0
                && !learns_to_stop(example, chat.stop_ids(), subject.assistant_only_loss)
        })
        .map(|example| example.id.as_str())
        .collect();
    Gate::of_rows(
        "the stop token is learnt",
        &endless,
        &format!(
            "do not teach the model to stop: no stop token ({}) is learnt at the end of the answer",
            stops.join(", ")
        ),
        "set eos_token_id in generation_config.json to the token that ends a turn",
    )
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

fn system_texts(subject: &Subject) -> Gate {
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
    Gate::of_rows(
        "the system message is in the prompt, word for word",
        &lost,
        "have a system message that is not word for word in the prompt: the template drops or changes it",
        "see model.system_role",
    )
}

fn default_system(subject: &Subject) -> Gate {
    const NAME: &str = "no hidden system text";
    let Some(text) = subject.chat.hidden_default() else {
        return Gate::passed(NAME);
    };
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let without = subject
        .rows
        .iter()
        .filter(|row| row.messages.iter().all(|m| m.role != Role::System))
        .count();
    match subject.default_system {
        DefaultSystem::Strip => Gate::said(
            NAME,
            Verdict::Refused,
            format!(
                "model.default_system = \"strip\", but without a system message the prompt still says `{text}`"
            ),
            "use another chat template",
        ),
        DefaultSystem::Keep if without > 0 => Gate::said(
            NAME,
            Verdict::Note,
            format!(
                "{without} row(s) have no system message; the template gives them its own: `{text}`"
            ),
            "model.default_system = \"strip\" takes it out",
        ),
        DefaultSystem::Keep => Gate::passed(NAME),
    }
}

/// What is exported must be the template in use: whoever serves the model renders with those files alone.
fn exported_template(subject: &Subject) -> Result<Gate> {
    let folder = tempfile::tempdir()?;
    subject.chat.save(folder.path())?;
    let options = ChatOptions {
        now: subject.chat.options().now,
        ..ChatOptions::default()
    };
    let exported = Chat::load(folder.path(), options)?;
    let differ: Vec<&str> = subject
        .rows
        .iter()
        .take(EXPORTED_ROWS)
        .filter(|row| !same_ids(subject.chat, &exported, &row.messages))
        .map(|row| row.id.as_str())
        .collect();
    Ok(Gate::of_rows(
        "the exported template gives the same ids",
        &differ,
        "become other ids with the exported chat template than with the one in use: the exported model would see other prompts",
        "use another model.system_role",
    ))
}

/// Both give the same prompt and the same conversation; of what neither renders, nothing is said.
pub fn same_ids(one: &Chat, other: &Chat, messages: &[Message]) -> bool {
    // Some templates rewrite earlier answers: the last is learnt in any row.
    let answers = messages.iter().filter(|m| m.role == Role::Assistant);
    let mut learnt = vec![false; answers.count()];
    if let Some(last) = learnt.last_mut() {
        *last = true;
    }
    let Ok(whole) = one.render_learning(messages, &learnt) else {
        return true;
    };
    let answer = messages
        .iter()
        .rposition(|m| m.role == Role::Assistant)
        .unwrap_or(messages.len());
    let prompt = one.prompt(&messages[..answer]).ok();
    other
        .render_learning(messages, &learnt)
        .is_ok_and(|there| there.ids == whole.ids)
        && other.prompt(&messages[..answer]).ok() == prompt
}

/// A row as text, with the learnt tokens in green, or in brackets `⟦…⟧` without colour.
pub fn preview(chat: &Chat, example: &Example, colour: bool) -> String {
    let (open, close) = if colour {
        ("\u{1b}[32m", "\u{1b}[0m")
    } else {
        ("⟦", "⟧")
    };
    let marked = |(learnt, text): (bool, String)| match learnt {
        true => format!("{open}{text}{close}"),
        false => text,
    };
    stretches(chat, example).into_iter().map(marked).collect()
}

/// A row as stretches of text that are learnt (true) or not.
pub fn stretches(chat: &Chat, example: &Example) -> Vec<(bool, String)> {
    let mut stretches = Vec::new();
    let mut start = 0;
    for end in 1..=example.ids.len() {
        if end < example.ids.len() && example.learn[end] == example.learn[start] {
            continue;
        }
        let text = spelled(chat, &example.ids[start..end]);
        stretches.push((example.learn[start], text));
        start = end;
    }
    stretches
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
