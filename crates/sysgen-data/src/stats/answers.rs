//! Table 1: how far the new answers are from the original ones.

use rayon::prelude::*;
use serde::Serialize;

use crate::dataset::{AnswerPair, Line};
use crate::stats::bert_score::BertScoreStatistics;
use crate::stats::gleu::{Gleu, gleu_characters, gleu_words, words};
use crate::stats::rouge::{Rouge, Score, rouge};

/// New answers against original ones. Scores are means over the pairs, times 100.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnswerStatistics {
    /// Answers that were written anew.
    pub pairs: usize,
    /// Whether ROUGE stemmed its words.
    pub stemmer: bool,
    /// Shared words.
    pub rouge1: Score,
    /// Shared pairs of words.
    pub rouge2: Score,
    /// Longest common subsequence.
    #[serde(rename = "rougeL")]
    pub rouge_l: Score,
    /// The same, line by line.
    #[serde(rename = "rougeLsum")]
    pub rouge_lsum: Score,
    /// Alike by an encoder's hidden states; none where no encoder was named.
    pub bert_score: Option<BertScoreStatistics>,
    /// GLEU over words.
    pub gleu_words: GleuStatistics,
    /// GLEU over characters.
    pub gleu_characters: GleuStatistics,
    /// Mean length of the original answers, in characters.
    pub original_characters: f64,
    /// Mean length of the new ones, in characters.
    pub new_characters: f64,
    /// `new_characters / original_characters`: the paper's "Len.".
    pub length_ratio: f64,
    /// The same with words for characters.
    pub length_ratio_words: f64,
}

/// GLEU times 100, counted in two ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GleuStatistics {
    /// Mean of the pairs' scores (nltk: `sentence_gleu`).
    pub mean: f64,
    /// From the counts of all pairs together (nltk: `corpus_gleu`).
    pub corpus: f64,
}

/// Sums over pairs, in file order, so that the last bits do not depend on the number of cores.
#[derive(Default)]
pub(crate) struct Sums {
    pairs: usize,
    stemmer: bool,
    rouge: [[f64; 3]; 4],
    gleu_words: GleuSums,
    gleu_characters: GleuSums,
    /// Original and new.
    characters: [usize; 2],
    words: [usize; 2],
}

#[derive(Default)]
struct GleuSums {
    scores: f64,
    counts: Gleu,
}

struct Pair {
    rouge: Rouge,
    gleu_words: Gleu,
    gleu_characters: Gleu,
    characters: [usize; 2],
    words: [usize; 2],
}

impl Sums {
    pub(crate) fn add(&mut self, lines: &[Line], stemmer: bool) {
        self.stemmer = stemmer;
        let pairs: Vec<Pair> = lines
            .par_iter()
            .flat_map_iter(|line| line.pairs().map(|pair| score(pair, stemmer)))
            .collect();
        for pair in pairs {
            self.pairs += 1;
            let Rouge {
                rouge1,
                rouge2,
                rouge_l,
                rouge_lsum,
            } = pair.rouge;
            for (sums, score) in self
                .rouge
                .iter_mut()
                .zip([rouge1, rouge2, rouge_l, rouge_lsum])
            {
                for (sum, value) in sums
                    .iter_mut()
                    .zip([score.precision, score.recall, score.f])
                {
                    *sum += value;
                }
            }
            self.gleu_words.add(pair.gleu_words);
            self.gleu_characters.add(pair.gleu_characters);
            for i in 0..2 {
                self.characters[i] += pair.characters[i];
                self.words[i] += pair.words[i];
            }
        }
    }

    pub(crate) fn finish(&self) -> Option<AnswerStatistics> {
        if self.pairs == 0 {
            return None;
        }
        let pairs = self.pairs as f64;
        let score = |[precision, recall, f]: [f64; 3]| Score {
            precision: precision * 100.0 / pairs,
            recall: recall * 100.0 / pairs,
            f: f * 100.0 / pairs,
        };
        let gleu = |sums: &GleuSums| GleuStatistics {
            mean: sums.scores * 100.0 / pairs,
            corpus: sums.counts.score() * 100.0,
        };
        let [rouge1, rouge2, rouge_l, rouge_lsum] = self.rouge.map(score);
        // No original answer is empty: reading leaves such rows out.
        let ratio = |[original, new]: [usize; 2]| new as f64 / original.max(1) as f64;
        Some(AnswerStatistics {
            pairs: self.pairs,
            stemmer: self.stemmer,
            rouge1,
            rouge2,
            rouge_l,
            rouge_lsum,
            bert_score: None,
            gleu_words: gleu(&self.gleu_words),
            gleu_characters: gleu(&self.gleu_characters),
            original_characters: self.characters[0] as f64 / pairs,
            new_characters: self.characters[1] as f64 / pairs,
            length_ratio: ratio(self.characters),
            length_ratio_words: ratio(self.words),
        })
    }
}

impl GleuSums {
    fn add(&mut self, counts: Gleu) {
        self.scores += counts.score();
        self.counts = [self.counts, counts].into_iter().sum();
    }
}

fn score(pair: AnswerPair<'_>, stemmer: bool) -> Pair {
    let AnswerPair { original, new } = pair;
    let both = [original, new];
    Pair {
        rouge: rouge(original, new, stemmer),
        gleu_words: gleu_words(original, new),
        gleu_characters: gleu_characters(original, new),
        characters: both.map(|text| text.chars().count()),
        words: both.map(|text| words(text).count()),
    }
}
