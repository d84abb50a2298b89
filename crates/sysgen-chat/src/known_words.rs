//! Texts are made of the same words again and again: the ids of a word are made once.
//!
//! A text may be cut before a single space where the tokenizer's pieces end there anyway: byte-level BPE whose pattern begins
//! a word with its space, or leaves the space alone, as those of GPT-2, Llama 3, Qwen and Phi do. Then the ids of the parts,
//! one after the other, are the ids of the whole. SentencePiece has no such places, and its texts are always encoded whole.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    ModelWrapper, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, PreTokenizerWrapper, Tokenizer as Inner,
};

/// Bytes of the longest word that is remembered: what is longer seldom comes again.
const LONGEST: usize = 48;
/// Words that are remembered in each shelf before it is emptied: some 10 MB in all.
const REMEMBERED: usize = 2_048;
/// So that threads seldom wait for one another.
const SHELVES: usize = 32;

/// Words and their ids.
type Shelf = HashMap<Box<str>, Box<[u32]>>;

/// The ids of words, each with the space before it.
pub(crate) struct KnownWords {
    shelves: [Mutex<Shelf>; SHELVES],
    hasher: RandomState,
    /// Characters that end an added token which takes the spaces behind it.
    space_takers: HashSet<u8>,
}

impl KnownWords {
    /// None for a tokenizer whose texts must not be cut.
    pub(crate) fn of(inner: &Inner) -> Option<KnownWords> {
        let plain = matches!(
            inner.get_normalizer(),
            None | Some(NormalizerWrapper::NFC(_))
        );
        let pre_tokenizer = inner.get_pre_tokenizer()?;
        let byte_level = match pre_tokenizer {
            PreTokenizerWrapper::ByteLevel(ByteLevel { use_regex, .. }) => *use_regex,
            PreTokenizerWrapper::Sequence(sequence) => {
                let parts: &[PreTokenizerWrapper] = sequence.as_ref();
                let split =
                    |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::Split(_));
                let bytes =
                    |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::ByteLevel(_));
                parts.first().is_some_and(split)
                    && parts.iter().all(|part| split(part) || bytes(part))
            }
            _ => false,
        };
        let added = inner.get_added_tokens_decoder();
        let spaceless = added
            .values()
            .all(|token| !token.content.contains(' ') && !token.single_word);
        let takers = added.values().filter(|token| token.rstrip);
        let words = KnownWords {
            shelves: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            space_takers: takers
                .filter_map(|token| token.content.bytes().last())
                .collect(),
        };
        let bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        (plain && byte_level && spaceless && bpe && words.end_where(pre_tokenizer)).then_some(words)
    }

    /// Whether the pieces of `pre_tokenizer` end wherever a text would be cut: tried with every kind of neighbours.
    fn end_where(&self, pre_tokenizer: &PreTokenizerWrapper) -> bool {
        let kinds = || {
            "aZ7"
                .bytes()
                .chain((b'!'..=b'~').filter(u8::is_ascii_punctuation))
        };
        let mut text = String::new();
        for before in kinds().map(char::from) {
            for after in kinds().map(char::from) {
                text += &format!("e{before} {after}e\n{before}{before} {after}{after}  ");
            }
        }
        let mut pieces = PreTokenizedString::from(text.as_str());
        if pre_tokenizer.pre_tokenize(&mut pieces).is_err() {
            return false;
        }
        let starts: HashSet<usize> = pieces
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, _), _)| start)
            .collect();
        (0..text.len()).all(|at| !self.is_cut(text.as_bytes(), at) || starts.contains(&at))
    }

    /// Before a single space between two printed characters of ASCII.
    fn is_cut(&self, text: &[u8], at: usize) -> bool {
        text[at] == b' '
            && at > 0
            && text[at - 1].is_ascii_graphic()
            && text.get(at + 1).is_some_and(u8::is_ascii_graphic)
            && !self.space_takers.contains(&text[at - 1])
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shelves
            .iter()
            .map(|shelf| shelf.lock().map_or(0, |shelf| shelf.len()))
            .sum()
    }

    /// The ids of `text`, of which `encode` is asked only for what is new.
    pub(crate) fn encode(&self, text: &str, encode: impl Fn(&str) -> Vec<u32>) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut start = 0;
        for end in 1..=text.len() {
            if end < text.len() && !self.is_cut(text.as_bytes(), end) {
                continue;
            }
            let word = &text[start..end];
            start = end;
            if word.len() > LONGEST {
                ids.extend(encode(word));
                continue;
            }
            let place = self.hasher.hash_one(word) as usize % SHELVES;
            let shelf = || (self.shelves[place].lock()).unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = shelf().get(word) {
                ids.extend_from_slice(known);
                continue;
            }
            let new = encode(word);
            ids.extend_from_slice(&new);
            let mut shelf = shelf();
            if shelf.len() >= REMEMBERED {
                shelf.clear();
            }
            shelf.insert(word.into(), new.into());
        }
        ids
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use crate::Tokenizer;

    const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn nano() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/sysgen-nano")
    }

    /// Nano's tokenizer with one part replaced.
    fn edited(key: &str, value: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(nano().join("tokenizer.json")).unwrap();
        let mut tokenizer: Value = serde_json::from_slice(&bytes).unwrap();
        tokenizer[key] = value;
        let path = folder.path().join("tokenizer.json");
        std::fs::write(path, tokenizer.to_string()).unwrap();
        folder
    }

    /// Rows under long instructions, with all that could tempt a token to span a cut.
    fn texts() -> Vec<String> {
        let instructions = "You write system messages for every one of the questions, and <<Task>>mark the phrases<</Task>>.\n\n  It's 12 o'clock \u{e9}t\u{e9}.\n".repeat(14);
        let rows = [
            "how much is 1 + 1?",
            "how  many",
            "how\n\nmuch",
            "",
            " ",
            "howdy <|im_end|> you",
            "\u{301}e",
            "hours pass by",
        ];
        let starts = ["<|im_start|>user\n", "<|im_start|>system\nBe brief. "];
        let mut texts = Vec::new();
        for start in starts {
            for row in rows {
                texts.push(format!(
                    "{start}{instructions}Say to the user {row}<|im_end|>\n"
                ));
            }
        }
        texts
    }

    /// Texts of characters that pieces of all kinds are made of, drawn at random.
    fn drawn() -> Vec<String> {
        let parts = [
            " ",
            " ",
            " ",
            "  ",
            "\n",
            "\t",
            "the",
            "It",
            "'s",
            "12",
            "7",
            ".",
            "...",
            "<<",
            ">>",
            "(",
            "$",
            "\u{e9}",
            "\u{301}",
            "\u{4f60}",
            "<|im_end|>",
            "-",
            "_x",
            "\u{a0}",
        ];
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize
        };
        let mut text = || {
            (0..next() % 40)
                .map(|_| parts[next() % parts.len()])
                .collect()
        };
        (0..500).map(|_| text()).collect()
    }

    #[track_caller]
    fn check(dir: &Path, cuts: bool) {
        let used = Tokenizer::load(dir).unwrap();
        assert_eq!(used.cuts_before_spaces(), cuts);
        let texts = [texts(), drawn()].concat();
        for text in texts.iter().chain(texts.iter().rev()) {
            assert_eq!(used.encode(text), used.encode_whole(text), "{text:?}");
        }
    }

    fn split_by(pattern: &str) -> Value {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    }

    #[test]
    fn a_text_of_known_words_has_the_ids_of_the_whole_text() {
        check(&nano(), true);
        check(edited("pre_tokenizer", split_by(CL100K)).path(), true);
        check(edited("pre_tokenizer", split_by(O200K)).path(), true);
    }

    #[test]
    fn a_token_that_takes_the_space_behind_it_still_does() {
        let mut tokenizer: Value =
            serde_json::from_slice(&std::fs::read(nano().join("tokenizer.json")).unwrap()).unwrap();
        for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
            (token["lstrip"], token["rstrip"]) = (true.into(), true.into());
        }
        let folder = edited("added_tokens", tokenizer["added_tokens"].clone());
        let used = Tokenizer::load(folder.path()).unwrap();
        let text = "Say <|im_end|> you";
        assert_eq!(used.encode(text), used.encode("Say<|im_end|>you"));
        check(folder.path(), true);
    }

    #[test]
    fn tokenizers_without_pieces_at_spaces_are_left_alone() {
        // One piece for the whole text: a merge may span any place.
        let whole = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        check(edited("pre_tokenizer", whole).path(), false);
        // Pieces of a word and what follows it, to the end of the line.
        check(
            edited("pre_tokenizer", split_by(r"[^\n]+|\n+")).path(),
            false,
        );
        // A space ends a sum's piece but for those between numbers.
        check(
            edited(
                "pre_tokenizer",
                split_by(r"\d( \d)+| ?\p{L}+|\s|[^\s\p{L}]+"),
            )
            .path(),
            false,
        );
        // A space before every text that is encoded.
        let prepend = json!({"type": "Prepend", "prepend": " "});
        check(edited("normalizer", prepend).path(), false);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let used = Tokenizer::load(&nano()).unwrap();
        let text: Vec<String> = (0..200_000).map(|n| format!("w{n}")).collect();
        used.encode(&text.join(" "));
        assert!(used.known_words() <= super::SHELVES * super::REMEMBERED);
        assert!(used.known_words() > super::REMEMBERED);
    }
}
