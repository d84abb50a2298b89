//! What the page knows of every row without unpacking it: what rows are listed, filtered and sorted by.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;
use sysgen_core::message::Role;

use crate::dataset::Line;
use crate::stats::rouge::rouge;
use crate::tag::Tag;
use crate::verify::Label;

/// Characters of a question that the list shows.
const PREVIEW: usize = 110;
/// Bits of one tag in `verdicts`.
const VERDICT_BITS: usize = 4;
/// The bit that says that the tag was kept.
const KEPT: u32 = 8;

/// One entry per row in each column.
#[derive(Default, Serialize)]
pub(crate) struct Index {
    ids: Vec<String>,
    /// Names of `source`, by number.
    sources: Vec<String>,
    source: Vec<usize>,
    /// Four bits per tag, Role lowest: 0 no verdict, else 1 Good, 2 Bad, 3 None, 4 Unread; 8 is added
    /// when the tag was kept.
    verdicts: Vec<u32>,
    /// The least margin of a verdict, in nats.
    margin: Vec<Option<f32>>,
    /// ROUGE-L of the new answer against the original one, in thousandths; the mean of several.
    similarity: Vec<Option<u16>>,
    /// Lengths in characters.
    system_characters: Vec<usize>,
    question_characters: Vec<usize>,
    original_characters: Vec<usize>,
    answer_characters: Vec<usize>,
    /// The start of the question.
    preview: Vec<String>,
    #[serde(skip)]
    numbers: BTreeMap<String, usize>,
}

impl Index {
    pub(crate) fn rows(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn add(&mut self, lines: &[Line]) {
        let similarities: Vec<Option<u16>> = lines.par_iter().map(similarity).collect();
        self.similarity.extend(similarities);
        for line in lines {
            let provenance = &line.sysgen;
            self.ids.push(provenance.id.clone());
            let next = self.sources.len();
            let number = *self
                .numbers
                .entry(provenance.source.clone())
                .or_insert(next);
            if number == next {
                self.sources.push(provenance.source.clone());
            }
            self.source.push(number);
            self.verdicts.push(verdicts(line));
            let margins = provenance.tags.iter().filter_map(|verdict| verdict.margin);
            self.margin.push(margins.min_by(f32::total_cmp));
            let question = question(line);
            let answers = line.messages.iter().filter(|turn| turn.is_learnt());
            self.system_characters.push(line.system().map_or(0, length));
            self.question_characters.push(length(question));
            self.original_characters
                .push(line.originals().iter().map(|text| length(text)).sum());
            self.answer_characters
                .push(answers.map(|turn| length(&turn.content)).sum());
            let start: String = question.chars().take(PREVIEW).collect();
            self.preview
                .push(start.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// The question of the first answer that is learnt.
fn question(line: &Line) -> &str {
    line.messages
        .windows(2)
        .find(|pair| pair[0].role == Role::User && pair[1].is_learnt())
        .map_or("", |pair| &pair[0].content)
}

fn verdicts(line: &Line) -> u32 {
    let mut bits = 0;
    for verdict in &line.sysgen.tags {
        let label = match verdict.label {
            Label::Good => 1,
            Label::Bad => 2,
            Label::None => 3,
            Label::Unread => 4,
        };
        let place = Tag::CANONICAL
            .iter()
            .position(|tag| *tag == verdict.tag)
            .unwrap_or(0);
        bits |= (label + if verdict.kept { KEPT } else { 0 }) << (place * VERDICT_BITS);
    }
    bits
}

fn similarity(line: &Line) -> Option<u16> {
    let scores: Vec<f64> = line
        .pairs()
        .map(|pair| rouge(pair.original, pair.new, false).rouge_l.f)
        .collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    (!scores.is_empty()).then_some((mean * 1000.0).round() as u16)
}
