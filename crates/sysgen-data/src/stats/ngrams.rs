//! Counting the n-grams two texts share, up to four tokens long: what ROUGE-N and GLEU are made of.

use std::collections::HashMap;

/// The longest n-gram that can be counted.
pub(crate) const LONGEST: usize = 4;
const BITS: u32 = 32;

/// Every token with the three that follow it, sorted. An n-gram of any order is the beginning of such
/// a four, so one sort serves all orders.
pub(crate) struct Ngrams {
    /// The first token is in the highest bits; 0 stands after the last token.
    fours: Vec<u128>,
}

impl Ngrams {
    /// Of a text whose tokens are numbered from 1.
    pub(crate) fn new(tokens: &[u32]) -> Ngrams {
        let token = |i: usize| u128::from(tokens.get(i).copied().unwrap_or(0));
        let mut fours: Vec<u128> = (0..tokens.len())
            .map(|i| (0..LONGEST).fold(0, |four, k| four << BITS | token(i + k)))
            .collect();
        fours.sort_unstable();
        Ngrams { fours }
    }

    /// How many n-grams of `order` tokens there are.
    pub(crate) fn count(&self, order: usize) -> usize {
        (self.fours.len() + 1).saturating_sub(order)
    }

    /// How many of them the other text has, too; each counts as often as in the text where it is rarer.
    pub(crate) fn shared(&self, other: &Ngrams, order: usize) -> usize {
        let shift = BITS * (LONGEST - order) as u32;
        let token = u128::from(u32::MAX);
        let whole = move |four: &u128| {
            let ngram = four >> shift;
            (ngram & token != 0).then_some(ngram)
        };
        let mut left = self.fours.iter().filter_map(whole).peekable();
        let mut right = other.fours.iter().filter_map(whole).peekable();
        let mut shared = 0;
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            match a.cmp(b) {
                std::cmp::Ordering::Less => drop(left.next()),
                std::cmp::Ordering::Greater => drop(right.next()),
                std::cmp::Ordering::Equal => {
                    shared += 1;
                    left.next();
                    right.next();
                }
            }
        }
        shared
    }
}

/// Numbers tokens from 1, the same token always the same.
#[derive(Default)]
pub(crate) struct Numbers<'a> {
    known: HashMap<&'a str, u32>,
}

impl<'a> Numbers<'a> {
    pub(crate) fn of(&mut self, tokens: impl IntoIterator<Item = &'a str>) -> Vec<u32> {
        let number = |token: &'a str| {
            let next = self.known.len() as u32 + 1;
            *self.known.entry(token).or_insert(next)
        };
        tokens.into_iter().map(number).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_ngram_counts_as_often_as_in_the_poorer_text() {
        let mut numbers = Numbers::default();
        let left = Ngrams::new(&numbers.of("a a a b a a".split(' ')));
        let right = Ngrams::new(&numbers.of("a a b b a a a a".split(' ')));
        assert_eq!(
            (1..=4).map(|n| left.count(n)).collect::<Vec<_>>(),
            [6, 5, 4, 3]
        );
        // aaaa·b: 5 of 6 a's and one b; aa aa ab aa against aa ab bb ba aa aa aa: aa x3, ab, ba.
        assert_eq!(
            (1..=2).map(|n| left.shared(&right, n)).collect::<Vec<_>>(),
            [6, 5]
        );
        assert_eq!(left.shared(&Ngrams::new(&[]), 1), 0);
    }
}
