//! A text as words, for comparing texts: what counts are letters, digits and operators, not case,
//! punctuation or spaces. Every word is a 64-bit hash, and so is every sequence of words.

/// The words of `text`, each as its hash. Scripts that put no space between words (Chinese, Japanese,
/// Thai) count every character as one.
pub(crate) fn words(text: &str) -> Vec<u64> {
    let mut words = Vec::new();
    let mut word = Hash::new();
    for c in text.chars() {
        if is_unspaced(c) {
            word.end(&mut words);
            word.add(c);
            word.end(&mut words);
        } else if "+*/=<>%^&|".contains(c) {
            // 3+4 is not 3*4.
            word.end(&mut words);
            word.add(c);
            word.end(&mut words);
        } else if c.is_alphanumeric() {
            c.to_lowercase().for_each(|c| word.add(c));
        } else if c != '\'' && c != '’' {
            word.end(&mut words);
        }
    }
    word.end(&mut words);
    words
}

/// The hash of every sequence of `n` words that follow each other; of all of them when there are fewer.
pub(crate) fn sequences(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    let n = n.min(words.len()).max(1);
    words.windows(n).map(sequence)
}

/// The hash of one sequence of words.
pub(crate) fn sequence(words: &[u64]) -> u64 {
    words.iter().fold(words.len() as u64, |hash, word| {
        mix(hash.rotate_left(23) ^ word)
    })
}

/// The hash of a text but for case and the kind and number of its spaces.
pub(crate) fn text(text: &str) -> u64 {
    let words = text.split_whitespace().map(|part| {
        let mut hash = Hash::new();
        part.chars()
            .flat_map(char::to_lowercase)
            .for_each(|c| hash.add(c));
        mix(hash.value)
    });
    sequence(&words.collect::<Vec<_>>())
}

/// Spreads a number over all 64 bits (the finaliser of SplitMix64), so that sums of it make hashes.
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0e00}'..='\u{0eff}'       // Thai, Lao
        | '\u{3040}'..='\u{30ff}'     // Hiragana, Katakana
        | '\u{3400}'..='\u{9fff}'     // Han
        | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
        && c.is_alphanumeric()
}

/// FNV-1a over the characters of one word. The standard library's hasher may change between its versions,
/// and with it what a data set is.
struct Hash {
    value: u64,
    empty: bool,
}

impl Hash {
    const START: u64 = 0xcbf2_9ce4_8422_2325;

    fn new() -> Hash {
        Hash {
            value: Hash::START,
            empty: true,
        }
    }

    fn add(&mut self, c: char) {
        self.value = (self.value ^ u64::from(c as u32)).wrapping_mul(0x0000_0100_0000_01b3);
        self.empty = false;
    }

    fn end(&mut self, words: &mut Vec<u64>) {
        if !self.empty {
            words.push(mix(self.value));
            *self = Hash::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_punctuation_and_spaces_do_not_count() {
        assert_eq!(words("Don't  STOP,\nme now!"), words("dont stop me — now"));
        assert_eq!(words("a b").len(), 2);
        assert_ne!(words("a b"), words("ab"));
        assert_ne!(words("3.5"), words("35"));
        assert_ne!(words("3+4"), words("3*4"));
        assert_eq!(text(" What is\n3 - 4?"), text("what is 3 - 4? "));
        assert_ne!(text("What is 3 - 4?"), text("What is 3 + 4?"));
    }

    #[test]
    fn scripts_without_spaces_have_a_word_per_character() {
        assert_eq!(words("你好吗?").len(), 3);
        assert_eq!(words("GPT很好").len(), 3);
        assert_eq!(words("안녕 하세요").len(), 2);
    }

    #[test]
    fn sequences_are_in_order_and_short_texts_have_one() {
        let abcd = words("a b c d");
        assert_eq!(sequences(&abcd, 3).count(), 2);
        assert_ne!(
            sequence(&words("a b c")),
            sequence(&words("c b a")),
            "order counts"
        );
        assert_eq!(sequences(&abcd, 9).collect::<Vec<_>>(), [sequence(&abcd)]);
        assert_eq!(sequences(&[], 3).count(), 0);
    }
}
