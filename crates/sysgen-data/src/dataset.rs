//! One line of `dataset.jsonl`: the conversation to learn from, and where it came from.

use serde::{Deserialize, Serialize};
use sysgen_core::config::{TagRules, Variant};
use sysgen_core::message::{Message, Role};

use crate::filter::{filter, system_text};
use crate::generator::{Reply, Teacher};
use crate::input::Row;
use crate::log::{Answer, Answers, Phase};
use crate::respond::spoken;
use crate::steps::{Kept, Plan};
use crate::tag::{Phrase, Tag};
use crate::verify::Label;

/// Stands between system message and question in `variant = "system_in_user"`.
const JOINT: &str = "\n\n";

/// A line of the data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) messages: Vec<Turn>,
    pub(crate) sysgen: Provenance,
}

/// A message, with `"weight": 0` where it is context and not to be learnt (the key of OpenAI's
/// fine-tuning format).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<u8>,
}

/// Where a line came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) line: usize,
    pub(crate) tags: Vec<TagVerdict>,
    pub(crate) annotated: Option<String>,
    pub(crate) original_answer: String,
    /// All of them, when the conversation has several that were written again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) original_answers: Option<Vec<String>>,
    pub(crate) model: Option<String>,
    pub(crate) seeds: Seeds,
    pub(crate) prompt_hash: Option<String>,
    /// Of all answers that were written anew, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) teacher: Option<Teacher>,
    tokens: Tokens,
}

/// The verifier's word on one tag of the draft.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TagVerdict {
    pub(crate) tag: Tag,
    pub(crate) label: Label,
    pub(crate) margin: Option<f32>,
    pub(crate) kept: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seeds {
    draft: Option<u64>,
    verify: Option<u64>,
    pub(crate) respond: Vec<u64>,
}

/// Tokens read and written for a line, all attempts and turns together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tokens {
    draft_prompt: usize,
    draft: usize,
    verify_prompt: usize,
    verify: usize,
    respond_prompt: usize,
    respond: usize,
}

impl Line {
    /// Every answer that was written anew, beside the one it replaces; empty where the original answers
    /// stay (`variant = "original_answer"` and its like).
    pub(crate) fn pairs(&self) -> impl Iterator<Item = AnswerPair<'_>> {
        let new = self.messages.iter().filter(|turn| turn.is_learnt());
        self.originals()
            .iter()
            .zip(new)
            .take(self.sysgen.seeds.respond.len())
            .map(|(original, new)| AnswerPair {
                original,
                new: &new.content,
            })
    }

    /// The original answers of the turns that are learnt.
    pub(crate) fn originals(&self) -> &[String] {
        match &self.sysgen.original_answers {
            Some(all) => all,
            None => std::slice::from_ref(&self.sysgen.original_answer),
        }
    }

    /// The question behind the system message that was drafted for this line and put before it (`variant = "system_in_user"`).
    pub(crate) fn without_drafted_system<'a>(&self, question: &'a str) -> Option<&'a str> {
        let draft = self.sysgen.annotated.as_deref()?;
        let kept = |phrase: &Phrase| {
            let verdicts = &mut self.sysgen.tags.iter();
            verdicts.any(|verdict| verdict.tag == phrase.tag && verdict.kept)
        };
        // Which rules the draft was read by is not in the line; one of the two gives the words that are there.
        [TagRules::Strict, TagRules::Lenient]
            .into_iter()
            .find_map(|rules| {
                let mut phrases = filter(draft, rules).phrases;
                phrases.retain(kept);
                let behind = question.strip_prefix(&system_text(&phrases))?;
                behind.strip_prefix(JOINT)
            })
    }

    /// The system message, if there is one.
    pub(crate) fn system(&self) -> Option<&str> {
        let first = self.messages.first()?;
        (first.role == Role::System).then_some(first.content.as_str())
    }
}

impl Turn {
    /// An answer that a trainer learns.
    pub(crate) fn is_learnt(&self) -> bool {
        self.role == Role::Assistant && self.weight != Some(0)
    }
}

/// An answer of the source data and the one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerPair<'a> {
    pub(crate) original: &'a str,
    pub(crate) new: &'a str,
}

/// The line of a row that was kept. `model` names what wrote it.
pub(crate) fn line(
    plan: &Plan,
    variant: Variant,
    model: &str,
    row: &Row,
    answers: &Answers,
    kept: &Kept,
) -> Line {
    let written = !kept.answers.is_empty();
    let seeds = Seeds {
        draft: kept.drafted.as_ref().map(|drafted| plan.seed(row, Phase::Draft, drafted.attempt)),
        // Scoring draws nothing.
        verify: matches!(answers.get(&(Phase::Verify, 0)), Some(Answer::Reply(_)) if kept.drafted.is_some())
            .then(|| plan.seed(row, Phase::Verify, 0)),
        respond: (0..kept.answers.len()).map(|turn| plan.seed(row, Phase::Respond, turn)).collect(),
    };
    let tags = kept.drafted.iter().flat_map(|drafted| {
        let used = Tag::CANONICAL
            .into_iter()
            .filter(|tag| drafted.phrases.iter().any(|phrase| phrase.tag == *tag));
        used.map(|tag| {
            let verdict = drafted.verdicts[&tag];
            TagVerdict {
                tag,
                label: verdict.label,
                margin: verdict.margin,
                kept: drafted.kept_tags.contains(&tag),
            }
        })
    });
    let originals = || row.turns.iter().map(|turn| turn.answer.clone());
    let generated = written || kept.drafted.is_some();
    Line {
        messages: messages(variant, row, kept),
        sysgen: Provenance {
            id: row.id.clone(),
            source: row.source.clone(),
            line: row.line,
            tags: tags.collect(),
            annotated: kept
                .drafted
                .as_ref()
                .map(|drafted| drafted.annotated.trim().to_string()),
            original_answer: row.turns[0].answer.clone(),
            original_answers: (row.turns.len() > 1).then(|| originals().collect()),
            model: generated.then(|| model.to_string()),
            seeds,
            prompt_hash: kept.drafted.as_ref().map(|_| plan.prompt_hash(row)),
            teacher: teacher(answers, kept),
            tokens: tokens(answers, kept),
        },
    }
}

fn messages(variant: Variant, row: &Row, kept: &Kept) -> Vec<Turn> {
    let mut turns = Vec::new();
    let turn = |message: Message, weight| Turn {
        role: message.role,
        content: message.content,
        weight,
    };
    for earlier in &row.history {
        let [question, answer] = spoken(earlier);
        turns.extend([turn(question, None), turn(answer, Some(0))]);
    }
    for (i, original) in row.turns.iter().enumerate() {
        let [question, answer] = spoken(original);
        let answer = kept.answers.get(i).map_or(answer, Message::assistant);
        turns.extend([turn(question, None), turn(answer, None)]);
    }
    match &kept.system {
        // The paper's Table 7: the same text at the beginning of the user's message.
        Some(system) if variant == Variant::SystemInUser => {
            turns[0].content = format!("{system}{JOINT}{}", turns[0].content);
        }
        Some(system) => turns.insert(0, turn(Message::system(system), None)),
        None => {}
    }
    turns
}

/// What the model thought while it wrote the answers, if all of them know.
fn teacher(answers: &Answers, kept: &Kept) -> Option<Teacher> {
    let mut all: Option<Teacher> = None;
    for turn in 0..kept.answers.len() {
        let Some(Answer::Reply(Reply {
            teacher: Some(teacher),
            ..
        })) = answers.get(&(Phase::Respond, turn))
        else {
            return None;
        };
        match &mut all {
            None => all = Some(teacher.clone()),
            Some(all) => {
                all.answer_ids.extend(&teacher.answer_ids);
                all.ids.extend_from_slice(&teacher.ids);
                all.log_probabilities
                    .extend_from_slice(&teacher.log_probabilities);
            }
        }
    }
    all
}

/// Only what this line is made of counts: the log may hold more, for another variant of it.
fn tokens(answers: &Answers, kept: &Kept) -> Tokens {
    let mut tokens = Tokens::default();
    let add = |read: &mut usize, wrote: &mut usize, reply: &Reply| {
        *read += reply.prompt_tokens;
        *wrote += reply.reply_tokens;
    };
    let attempts = kept
        .drafted
        .as_ref()
        .map_or(0, |drafted| drafted.attempt + 1);
    for ((phase, attempt), answer) in answers {
        match (phase, answer) {
            (Phase::Draft, Answer::Reply(reply)) if *attempt < attempts => {
                add(&mut tokens.draft_prompt, &mut tokens.draft, reply);
            }
            (Phase::Verify, Answer::Reply(reply)) if attempts > 0 => {
                add(&mut tokens.verify_prompt, &mut tokens.verify, reply);
            }
            (Phase::Verify, Answer::Judged(judged)) if attempts > 0 => {
                tokens.verify_prompt += judged.prompt_tokens
            }
            (Phase::Respond, Answer::Reply(reply)) if *attempt < kept.answers.len() => {
                add(&mut tokens.respond_prompt, &mut tokens.respond, reply);
            }
            _ => {}
        }
    }
    tokens
}
