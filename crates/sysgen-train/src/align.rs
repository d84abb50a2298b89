//! Two tokenizations of one answer laid beside each other: cut wherever both have a token boundary, it falls into the
//! shortest spans of text that are whole tokens on both sides.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;
use sysgen_chat::Chat;

use crate::distill::ensure_new;
use crate::example::{Example, prepare};
use crate::rows::Row;

/// A row as the teacher reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aligned {
    /// The teacher's ids of the whole conversation.
    pub ids: Vec<u32>,
    /// What is compared, in the order of the text.
    pub spans: Vec<AlignedSpan>,
}

/// The same text as whole tokens of both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlignedSpan {
    /// Of the student: which of the row's learnt tokens.
    pub learnt: Range<usize>,
    /// Of the teacher: which of its ids.
    pub teacher: Range<usize>,
}

impl Aligned {
    /// Learnt tokens that are compared.
    pub fn count(&self) -> usize {
        self.spans.iter().map(|span| span.learnt.len()).sum()
    }
}

/// Every example beside the teacher's reading of its row, by the row's id.
///
/// # Errors
/// Two rows have one id.
pub fn align(
    student: &Chat,
    teacher: &Chat,
    rows: &[Row],
    examples: &[Example],
) -> Result<HashMap<String, Aligned>> {
    let theirs = prepare(teacher, rows, usize::MAX, true).examples;
    let theirs: HashMap<&str, &Example> = theirs
        .iter()
        .map(|example| (example.id.as_str(), example))
        .collect();
    let aligned = |example: &Example| match theirs.get(example.id.as_str()) {
        Some(other) => beside(student, example, teacher, other),
        // What the teacher's template refuses is learnt from the data alone.
        None => Aligned {
            ids: vec![0],
            spans: Vec::new(),
        },
    };
    let aligned: Vec<Aligned> = examples.par_iter().map(aligned).collect();
    let mut all = HashMap::new();
    for (example, aligned) in examples.iter().zip(aligned) {
        ensure_new(&all, &example.id)?;
        all.insert(example.id.clone(), aligned);
    }
    Ok(all)
}

fn beside(student: &Chat, ours: &Example, teacher: &Chat, theirs: &Example) -> Aligned {
    let (our_answers, their_answers) = (answers(ours), answers(theirs));
    // The student's row may have lost its oldest turns; the last answers are there on both sides.
    let both = our_answers.len().min(their_answers.len());
    let unmatched = our_answers.len() - both;
    let mut learnt: usize = our_answers[..unmatched].iter().map(Range::len).sum();
    let their_answers = &their_answers[their_answers.len() - both..];
    let mut spans = Vec::new();
    for (answer, other) in our_answers[unmatched..].iter().zip(their_answers) {
        // The stop token writes nothing; both have one.
        let (stop, other_stop) = (answer.len() - 1, other.len() - 1);
        let our_text = Pieces::of(student, &ours.ids, answer.start..answer.end - 1);
        let their_text = Pieces::of(teacher, &theirs.ids, other.start..other.end - 1);
        let mut common = common_spans(&our_text.ends, &their_text.ends);
        // A tokenizer that changes what it reads has other texts at the same places.
        common.retain(|(ours, theirs)| our_text.text_of(ours) == their_text.text_of(theirs));
        common.push((stop..stop + 1, other_stop..other_stop + 1));
        spans.extend(common.into_iter().map(|(ours, theirs)| AlignedSpan {
            learnt: learnt + ours.start..learnt + ours.end,
            teacher: other.start + theirs.start..other.start + theirs.end,
        }));
        learnt += answer.len();
    }
    Aligned {
        ids: theirs.ids.clone(),
        spans,
    }
}

/// The shortest spans that end at the same place on both sides, as ranges of tokens: `ends` are where each token ends, or
/// `None` inside a character. What no common place ends is in no span.
pub fn common_spans(
    ours: &[Option<usize>],
    theirs: &[Option<usize>],
) -> Vec<(Range<usize>, Range<usize>)> {
    let mut spans = Vec::new();
    let (mut from, mut at) = ((0, 0), (0, 0));
    while at.0 < ours.len() && at.1 < theirs.len() {
        match (ours[at.0], theirs[at.1]) {
            (None, _) => at.0 += 1,
            (_, None) => at.1 += 1,
            (Some(our_end), Some(their_end)) => match our_end.cmp(&their_end) {
                Ordering::Less => at.0 += 1,
                Ordering::Greater => at.1 += 1,
                Ordering::Equal => {
                    at = (at.0 + 1, at.1 + 1);
                    spans.push((from.0..at.0, from.1..at.1));
                    from = at;
                }
            },
        }
    }
    spans
}

/// The learnt stretches of an example, each an answer with its stop token.
fn answers(example: &Example) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for at in (1..example.learn.len()).filter(|&at| example.learn[at]) {
        match found.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => found.push(at..at + 1),
        }
    }
    found
}

/// The text of some tokens.
struct Pieces {
    text: String,
    /// Where each token ends in it, `None` inside a character.
    ends: Vec<Option<usize>>,
}

impl Pieces {
    /// A tokenizer may drop the first space of what it decodes, so every piece is decoded behind the token before it.
    fn of(chat: &Chat, ids: &[u32], tokens: Range<usize>) -> Pieces {
        let (mut text, mut from) = (String::new(), tokens.start);
        let mut ends = Vec::with_capacity(tokens.len());
        for at in tokens {
            let before = from.saturating_sub(1);
            let known = chat.decode(&ids[before..from]);
            let piece = chat.decode(&ids[before..=at]);
            if piece.ends_with('\u{fffd}') {
                ends.push(None);
                continue;
            }
            text += piece.get(known.len()..).unwrap_or_default();
            ends.push(Some(text.len()));
            from = at + 1;
        }
        Pieces { text, ends }
    }

    fn text_of(&self, tokens: &Range<usize>) -> Option<&str> {
        let end = self.ends[tokens.end - 1]?;
        let before = self.ends[..tokens.start].last().copied();
        self.text.get(before.unwrap_or(Some(0))?..end)
    }
}
