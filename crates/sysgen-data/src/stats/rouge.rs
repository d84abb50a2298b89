//! ROUGE-1, -2, -L and -Lsum (Lin 2004) as Google's `rouge_score` computes them, which Hugging Face's
//! `evaluate` wraps. Its tokens are runs of ASCII letters and digits, so text in other scripts scores 0.

use std::collections::HashMap;

use serde::Serialize;

use crate::stats::ngrams::{Ngrams, Numbers};
use crate::stats::porter::stem;

/// Precision, recall and their harmonic mean, each between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Score {
    /// Of the candidate's pieces, those in the reference.
    pub precision: f64,
    /// Of the reference's pieces, those in the candidate.
    pub recall: f64,
    /// Harmonic mean.
    pub f: f64,
}

impl Score {
    /// From `hits` of `candidate` and of `reference` pieces.
    pub(crate) fn new(hits: f64, candidate: f64, reference: f64) -> Score {
        Score::of(hits / candidate.max(1.0), hits / reference.max(1.0))
    }

    pub(crate) fn of(precision: f64, recall: f64) -> Score {
        let sum = precision + recall;
        let f = if sum > 0.0 {
            2.0 * precision * recall / sum
        } else {
            0.0
        };
        Score {
            precision,
            recall,
            f,
        }
    }
}

/// The four scores of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// Shared words.
    pub rouge1: Score,
    /// Shared pairs of neighbouring words.
    pub rouge2: Score,
    /// Longest common subsequence of words.
    pub rouge_l: Score,
    /// The same over lines, each line of the reference against all of the candidate.
    pub rouge_lsum: Score,
}

/// Scores `candidate` against `reference`. With `stemmer`, words of more than three letters are stemmed.
pub fn rouge(reference: &str, candidate: &str, stemmer: bool) -> Rouge {
    let in_lines = |text: &str| -> Vec<Vec<String>> {
        text.split('\n')
            .map(|line| tokens(line, stemmer))
            .filter(|line| !line.is_empty())
            .collect()
    };
    let (reference, candidate) = (in_lines(reference), in_lines(candidate));
    let mut numbers = Numbers::default();
    let (reference_lines, candidate_lines) = (
        numbered(&reference, &mut numbers),
        numbered(&candidate, &mut numbers),
    );
    let (reference, candidate) = (reference_lines.concat(), candidate_lines.concat());
    let (left, right) = (Ngrams::new(&reference), Ngrams::new(&candidate));
    let of_order = |order| {
        let [hits, of_candidate, of_reference] = [
            left.shared(&right, order),
            right.count(order),
            left.count(order),
        ]
        .map(|n| n as f64);
        Score::new(hits, of_candidate, of_reference)
    };
    let of_length =
        |hits: usize| Score::new(hits as f64, candidate.len() as f64, reference.len() as f64);
    Rouge {
        rouge1: of_order(1),
        rouge2: of_order(2),
        rouge_l: of_length(common_subsequence(&reference, &candidate)),
        rouge_lsum: of_length(union_of_subsequences(&reference_lines, &candidate_lines)),
    }
}

fn numbered<'a>(lines: &'a [Vec<String>], numbers: &mut Numbers<'a>) -> Vec<Vec<u32>> {
    lines
        .iter()
        .map(|line| numbers.of(line.iter().map(String::as_str)))
        .collect()
}

/// The words that are compared: lower case, runs of `a-z0-9`, stemmed if asked for.
pub fn tokens(text: &str, stemmer: bool) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words
        .filter(|word| !word.is_empty())
        .map(|word| {
            if stemmer && word.len() > 3 {
                stem(word)
            } else {
                word.to_string()
            }
        })
        .collect()
}

/// Length of the longest common subsequence, 64 positions of `a` at a time (Hyyrö 2004): a bit of
/// `open` is cleared where the table's column rises by one.
fn common_subsequence(a: &[u32], b: &[u32]) -> usize {
    let blocks = a.len().div_ceil(64);
    let mut places: HashMap<u32, Vec<u64>> = HashMap::new();
    for (i, token) in a.iter().enumerate() {
        let mask = places.entry(*token).or_insert_with(|| vec![0; blocks]);
        mask[i / 64] |= 1 << (i % 64);
    }
    let mut open = vec![u64::MAX; blocks];
    for token in b {
        let Some(mask) = places.get(token) else {
            continue;
        };
        let mut carry = false;
        for (open, mask) in open.iter_mut().zip(mask) {
            let (sum, over) = open.overflowing_add(*open & mask);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            carry = over || over_again;
            *open = sum | (*open & !mask);
        }
    }
    let set: usize = open.iter().map(|block| block.count_ones() as usize).sum();
    blocks * 64 - set
}

/// For each line of the reference, its words that are in a longest common subsequence with any line of
/// the candidate; a word counts no more often than in the poorer text.
fn union_of_subsequences(reference: &[Vec<u32>], candidate: &[Vec<u32>]) -> usize {
    let counts = |lines: &[Vec<u32>]| {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        for token in lines.iter().flatten() {
            *counts.entry(*token).or_default() += 1;
        }
        counts
    };
    let mut left = counts(candidate);
    for (token, count) in counts(reference) {
        if let Some(of_candidate) = left.get_mut(&token) {
            *of_candidate = count.min(*of_candidate);
        }
    }
    let mut hits = 0;
    for line in reference {
        let mut in_union = vec![false; line.len()];
        for other in candidate {
            mark_subsequence(line, other, &mut in_union);
        }
        for (token, _) in line.iter().zip(in_union).filter(|(_, marked)| *marked) {
            if let Some(count) = left.get_mut(token).filter(|count| **count > 0) {
                *count -= 1;
                hits += 1;
            }
        }
    }
    hits
}

/// Marks the places in `a` of the longest common subsequence that `rouge_score` finds among those of
/// equal length: from the end, it gives up a word of `b` only where that loses nothing and one of `a` would.
fn mark_subsequence(a: &[u32], b: &[u32], marked: &mut [bool]) {
    let width = b.len() + 1;
    let mut table = vec![0u32; (a.len() + 1) * width];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            table[i * width + j] = if a[i - 1] == b[j - 1] {
                table[(i - 1) * width + j - 1] + 1
            } else {
                table[(i - 1) * width + j].max(table[i * width + j - 1])
            };
        }
    }
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            marked[i - 1] = true;
            i -= 1;
            j -= 1;
        } else if table[i * width + j - 1] > table[(i - 1) * width + j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}
