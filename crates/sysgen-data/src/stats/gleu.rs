//! GLEU, the sentence-level BLEU of Google (Wu et al. 2016, section 6), as `nltk.translate.gleu_score`
//! counts it: shared n-grams of one to four tokens over those of the text that has more.

use crate::stats::ngrams::{LONGEST, Ngrams, Numbers};

/// Shared n-grams, and n-grams of the text that has more of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gleu {
    /// Shared, orders 1 to 4 together, clipped.
    pub shared: usize,
    /// In the richer text.
    pub all: usize,
}

impl Gleu {
    /// `shared / all`; 0 for two empty texts.
    pub fn score(self) -> f64 {
        if self.all == 0 {
            0.0
        } else {
            self.shared as f64 / self.all as f64
        }
    }
}

/// Summing counts gives nltk's `corpus_gleu`; the mean of scores is the mean of its `sentence_gleu`.
impl std::iter::Sum for Gleu {
    fn sum<I: Iterator<Item = Gleu>>(counts: I) -> Gleu {
        counts.fold(Gleu::default(), |sum, counts| Gleu {
            shared: sum.shared + counts.shared,
            all: sum.all + counts.all,
        })
    }
}

/// Over words: whatever stands between white space, in its own case.
pub fn gleu_words(reference: &str, candidate: &str) -> Gleu {
    let mut numbers = Numbers::default();
    let reference = numbers.of(words(reference));
    let candidate = numbers.of(words(candidate));
    gleu(&reference, &candidate)
}

/// Over characters, white space included: what nltk does when it is given texts instead of lists.
pub fn gleu_characters(reference: &str, candidate: &str) -> Gleu {
    // 0 is no token.
    let numbers = |text: &str| text.chars().map(|c| c as u32 + 1).collect::<Vec<u32>>();
    gleu(&numbers(reference), &numbers(candidate))
}

/// The words of Python's `str.split`, for which four control characters are white space, too.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    text.split(space).filter(|word| !word.is_empty())
}

fn gleu(reference: &[u32], candidate: &[u32]) -> Gleu {
    let (reference, candidate) = (Ngrams::new(reference), Ngrams::new(candidate));
    let count = |text: &Ngrams| (1..=LONGEST).map(|order| text.count(order)).sum::<usize>();
    Gleu {
        shared: (1..=LONGEST)
            .map(|order| candidate.shared(&reference, order))
            .sum(),
        all: count(&reference).max(count(&candidate)),
    }
}
