//! Prompts begin alike: instructions and demonstrations first, then the row. Their ids are made once.
//!
//! A text may be cut between a letter and a space where the tokenizer's pieces end there anyway: byte-level BPE whose
//! pattern begins a word with its space, as those of GPT-2, Llama 3, Qwen and Phi do. Then the ids of both parts, one
//! after the other, are the ids of the whole. SentencePiece has no such places, and its texts are always encoded whole.

use std::sync::{Arc, Mutex, PoisonError};

use tokenizers::{
    ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Inner,
    pre_tokenizers::byte_level::ByteLevel,
};

/// Bytes of the shortest text, and of the shortest beginning, that are worth it.
const SHORTEST: usize = 1_000;
/// Beginnings that are remembered: one for each phase that has long instructions, and some more.
const REMEMBERED: usize = 4;
/// Words with spaces, digits, punctuation and lines, for the last doubt.
const PROBE: &str = "You write messages. Mark every phrase, as in <<Role>>\u{2026}<</Role>> or \"x1\"; it's\n\nthe user's word\tand 12 more";

/// The beginnings of the texts seen so far.
#[derive(Default)]
pub(crate) struct SharedPrefix {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last text that began like none of them.
    last: String,
    known: Vec<Arc<Beginning>>,
    next: usize,
}

struct Beginning {
    /// Ends before a space.
    text: String,
    ids: Vec<u32>,
}

/// Whether texts of this tokenizer may be cut between a letter and a space.
pub(crate) fn cuts_before_spaces(inner: &Inner) -> bool {
    let plain = match inner.get_normalizer() {
        None | Some(NormalizerWrapper::NFC(_)) => true,
        Some(_) => false,
    };
    let byte_level = match inner.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(ByteLevel { use_regex, .. })) => *use_regex,
        Some(PreTokenizerWrapper::Sequence(sequence)) => {
            let parts: &[PreTokenizerWrapper] = sequence.as_ref();
            let split = |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::Split(_));
            let bytes =
                |part: &PreTokenizerWrapper| matches!(part, PreTokenizerWrapper::ByteLevel(_));
            parts.first().is_some_and(split) && parts.iter().all(|part| split(part) || bytes(part))
        }
        _ => false,
    };
    let spaceless = inner
        .get_added_tokens_decoder()
        .values()
        .all(|token| !token.content.contains(' ') && !token.single_word);
    plain
        && byte_level
        && spaceless
        && matches!(inner.get_model(), ModelWrapper::BPE(_))
        && (1..PROBE.len()).filter(|&at| is_cut(PROBE, at)).all(|at| {
            let ids = |text: &str| Some(inner.encode_fast(text, false).ok()?.get_ids().to_vec());
            let parts = ids(&PROBE[..at]).zip(ids(&PROBE[at..]));
            parts.map(|(first, second)| [first, second].concat()) == ids(PROBE)
        })
}

/// Between two letters and a space with a letter after it.
fn is_cut(text: &str, at: usize) -> bool {
    let bytes = text.as_bytes();
    at >= 2
        && at + 1 < bytes.len()
        && bytes[at - 2..at].iter().all(u8::is_ascii_lowercase)
        && bytes[at] == b' '
        && bytes[at + 1].is_ascii_lowercase()
}

impl SharedPrefix {
    /// The ids of `text`, of which `encode` is asked only for what is new.
    pub(crate) fn encode(&self, text: &str, encode: impl Fn(&str) -> Vec<u32>) -> Vec<u32> {
        if text.len() < SHORTEST {
            return encode(text);
        }
        let beginning = self.beginning(text).or_else(|| {
            let start = self.learn(text)?;
            let beginning = Arc::new(Beginning {
                text: start.to_string(),
                ids: encode(start),
            });
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.known.len() < REMEMBERED {
                state.known.push(beginning.clone());
            } else {
                let place = state.next % REMEMBERED;
                state.known[place] = beginning.clone();
                state.next += 1;
            }
            Some(beginning)
        });
        match beginning {
            None => encode(text),
            Some(beginning) => {
                let mut ids = beginning.ids.clone();
                ids.extend(encode(&text[beginning.text.len()..]));
                ids
            }
        }
    }

    /// The longest that `text` begins with.
    fn beginning(&self, text: &str) -> Option<Arc<Beginning>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |beginning: &&Arc<Beginning>| {
            text.starts_with(&beginning.text) && is_cut(text, beginning.text.len())
        };
        let known = state.known.iter().filter(fits);
        known.max_by_key(|beginning| beginning.text.len()).cloned()
    }

    /// What `text` and the last unknown text have in common, up to the last place where it may be cut.
    fn learn<'t>(&self, text: &'t str) -> Option<&'t str> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let last = std::mem::replace(&mut state.last, text.to_string());
        let common = text.bytes().zip(last.bytes()).take_while(|(a, b)| a == b);
        let common = common.count();
        let cut = (SHORTEST..common).rev().find(|&at| is_cut(text, at))?;
        Some(&text[..cut])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use crate::Tokenizer;

    const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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

    #[track_caller]
    fn check(dir: &Path, cuts: bool) {
        let used = Tokenizer::load(dir).unwrap();
        assert_eq!(used.cuts_before_spaces(), cuts);
        for text in texts().iter().chain(texts().iter().rev()) {
            assert_eq!(used.encode(text), used.encode_whole(text), "{text}");
        }
    }

    #[test]
    fn a_text_has_the_same_ids_after_others_that_begin_like_it() {
        check(&nano(), true);
        let split = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CL100K}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        check(edited("pre_tokenizer", split).path(), true);
    }

    #[test]
    fn tokenizers_without_pieces_at_spaces_are_left_alone() {
        // One piece for the whole text: a merge may span any place.
        let whole = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        check(edited("pre_tokenizer", whole).path(), false);
        // A space before every text that is encoded.
        let prepend = json!({"type": "Prepend", "prepend": " "});
        check(edited("normalizer", prepend).path(), false);
    }
}
