//! Two tokenizations of one answer laid beside each other: a learnt token of the student is compared with the teacher's
//! token that begins at the same place of the text, if there is one.

use std::collections::HashMap;

use anyhow::Result;
use sysgen_chat::Chat;

use crate::distill::ensure_new;
use crate::example::{Example, prepare};
use crate::rows::Row;

/// A row as the teacher reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aligned {
    /// The teacher's ids of the whole conversation.
    pub ids: Vec<u32>,
    /// For every learnt token of the student, the teacher's position that predicts a token beginning at the same place.
    pub teacher_at: Vec<Option<u32>>,
}

impl Aligned {
    /// Learnt tokens with a counterpart.
    pub fn count(&self) -> usize {
        self.teacher_at.iter().flatten().count()
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
    let mut all = HashMap::new();
    for example in examples {
        ensure_new(&all, &example.id)?;
        let aligned = match theirs.get(example.id.as_str()) {
            Some(other) => beside(student, example, teacher, other),
            // What the teacher's template refuses is learnt from the data alone.
            None => Aligned {
                ids: vec![0],
                teacher_at: vec![None; example.supervised()],
            },
        };
        all.insert(example.id.clone(), aligned);
    }
    Ok(all)
}

fn beside(student: &Chat, ours: &Example, teacher: &Chat, theirs: &Example) -> Aligned {
    let (our_answers, their_answers) = (stretches(ours), stretches(theirs));
    // The student's row may have lost its oldest turns; the last answers are there on both sides.
    let surplus = their_answers.len().saturating_sub(our_answers.len());
    let missing = our_answers.len() - (their_answers.len() - surplus);
    let mut teacher_at = Vec::new();
    for (number, answer) in our_answers.iter().enumerate() {
        if number < missing {
            teacher_at.extend(vec![None; answer.len()]);
            continue;
        }
        let other = &their_answers[surplus + number - missing];
        let places: HashMap<Place, usize> = places(teacher, &theirs.ids, other)
            .into_iter()
            .zip(other.clone())
            .collect();
        for place in places_of(student, &ours.ids, answer) {
            let token = places.get(&place);
            teacher_at.push(token.map(|&token| token as u32 - 1));
        }
    }
    Aligned {
        ids: theirs.ids.clone(),
        teacher_at,
    }
}

/// Where a token begins in an answer's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// After so many bytes.
    After(usize),
    /// Inside a character; the number keeps such tokens apart from each other.
    Inside(usize),
    /// At its end: the stop token.
    End,
}

/// The learnt stretches of an example, each an answer with its stop token.
fn stretches(example: &Example) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (1..example.learn.len()).filter(|&at| example.learn[at]) {
        match found.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => found.push(at..at + 1),
        }
    }
    found
}

fn places(chat: &Chat, ids: &[u32], answer: &std::ops::Range<usize>) -> Vec<Place> {
    places_of(chat, ids, answer)
}

/// Where each token of an answer begins. A tokenizer may drop the first space of what it decodes, so every piece is decoded
/// behind the token before it.
fn places_of(chat: &Chat, ids: &[u32], answer: &std::ops::Range<usize>) -> Vec<Place> {
    let mut places = Vec::with_capacity(answer.len());
    let (mut bytes, mut from) = (0, answer.start);
    for at in answer.clone() {
        places.push(if at + 1 == answer.end {
            Place::End
        } else if at == from {
            Place::After(bytes)
        } else {
            Place::Inside(at)
        });
        let before = from.saturating_sub(1);
        let known = chat.decode(&ids[before..from]);
        let piece = chat.decode(&ids[before..=at]);
        if !piece.ends_with('\u{fffd}') {
            bytes += piece.len().saturating_sub(known.len());
            from = at + 1;
        }
    }
    places
}
