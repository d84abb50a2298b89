//! Model directories with small tokenizers of the published kinds: byte-level BPE (Llama-3, Qwen, Phi) and
//! SentencePiece-like BPE with byte fallback (Gemma, SOLAR). Vocabularies are bytes plus the words a test names.

use std::path::PathBuf;

use serde_json::{Value, json};
use sysgen_chat::{Chat, ChatOptions, Rendered};
use sysgen_core::config::{DefaultSystem, SystemRole};
use tempfile::TempDir;

/// A model directory that goes away with the test.
pub(crate) struct Model {
    pub(crate) dir: TempDir,
}

impl Model {
    pub(crate) fn new(tokenizer: &Value, config: &Value, template: &str) -> Model {
        let model = Model {
            dir: TempDir::new().unwrap(),
        };
        model.write("tokenizer.json", &tokenizer.to_string());
        model.write("tokenizer_config.json", &config.to_string());
        model.write("chat_template.jinja", template);
        model
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    pub(crate) fn load(
        &self,
        system_role: SystemRole,
        default_system: DefaultSystem,
    ) -> anyhow::Result<Chat> {
        self.with(ChatOptions {
            system_role,
            default_system,
            ..ChatOptions::default()
        })
    }

    pub(crate) fn with(&self, options: ChatOptions) -> anyhow::Result<Chat> {
        Chat::load(self.dir.path(), options)
    }

    pub(crate) fn chat(&self) -> Chat {
        self.load(SystemRole::Native, DefaultSystem::Keep).unwrap()
    }
}

/// The folder with the models' own templates, or none, said aloud.
pub(crate) fn external() -> Option<PathBuf> {
    let folder = std::env::var_os("SYSGEN_EXTERNAL_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!(
            "SKIPPED: SYSGEN_EXTERNAL_DATA does not name the folder with templates/ and golden/chat_templates/"
        );
    }
    folder
}

/// One of the models' own templates.
pub(crate) fn template(name: &str) -> Option<String> {
    let path = external()?.join("templates").join(name);
    Some(
        std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
}

/// The learnt tokens, one list per answer.
pub(crate) fn learnt(chat: &Chat, rendered: &Rendered) -> Vec<Vec<String>> {
    assert_eq!(rendered.ids.len(), rendered.learn.len());
    let mut answers: Vec<Vec<String>> = Vec::new();
    let mut before = false;
    for (id, learn) in rendered.ids.iter().zip(&rendered.learn) {
        if *learn {
            if !before {
                answers.push(Vec::new());
            }
            answers.last_mut().unwrap().push(chat.token(*id));
        }
        before = *learn;
    }
    answers
}

/// All tokens, special ones included, as one text.
pub(crate) fn spelled(chat: &Chat, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|&id| chat.token(id)).collect()
}

fn added(specials: &[&str], first: usize, strip: bool) -> Vec<Value> {
    let one = |(index, text): (usize, &&str)| {
        json!({"id": first + index, "content": text, "single_word": false, "lstrip": strip, "rstrip": strip,
               "normalized": false, "special": true})
    };
    specials.iter().enumerate().map(one).collect()
}

/// Adds `word` and the merges that build it from its letters, left to right.
fn add_word(word: &str, pieces: &mut Vec<String>, merges: &mut Vec<String>) {
    let letters: Vec<char> = word.chars().collect();
    let mut left = letters[0].to_string();
    for letter in &letters[1..] {
        let merge = format!("{left} {letter}");
        left.push(*letter);
        if !merges.contains(&merge) {
            merges.push(merge);
            pieces.push(left.clone());
        }
    }
}

fn numbered(pieces: &[String]) -> Value {
    pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| (piece.clone(), json!(id)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// GPT-2's printable stand-ins for the 256 bytes.
fn byte_letters() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    (0..256)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

/// Llama-3's word pattern.
const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A byte-level BPE tokenizer with `words` (`Ġ` for a space, `Ċ` for a line break) and `specials`; texts begin with
/// `bos` if given. `strip`: special tokens swallow the white space around them, as Phi's do.
pub(crate) fn byte_level(
    words: &[&str],
    specials: &[&str],
    bos: Option<&str>,
    strip: bool,
) -> Value {
    let (mut pieces, mut merges) = (byte_letters(), Vec::new());
    for word in words {
        add_word(word, &mut pieces, &mut merges);
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let post_processor = bos.map(|bos| {
        let id = pieces.len() + specials.iter().position(|token| *token == bos).unwrap();
        json!({"type": "TemplateProcessing",
               "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(specials, pieces.len(), strip),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false}, byte_level]},
        "post_processor": post_processor,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": numbered(&pieces), "merges": merges}
    })
}

/// A SentencePiece-like BPE tokenizer as Llama-2's and Gemma's `tokenizer.json`; `dummy_prefix` is Llama's mark
/// before the first word of a text. `specials` come first, as in those models.
pub(crate) fn sentencepiece(words: &[&str], specials: &[&str], dummy_prefix: bool) -> Value {
    let mut pieces: Vec<String> = specials.iter().map(|token| (*token).to_owned()).collect();
    pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend((0x21..0x7f).map(|code| char::from_u32(code).unwrap().to_string()));
    pieces.push("▁".to_owned());
    let mut merges = Vec::new();
    for word in words {
        add_word(word, &mut pieces, &mut merges);
    }
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = if dummy_prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
    } else {
        spaces
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if dummy_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(specials, 0, false),
        "normalizer": normalizer, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": numbered(&pieces), "merges": merges}
    })
}

/// Words the byte-level fixtures know.
const WORDS: [&str; 6] = ["Hello", "Ġthere", "ĊĊ", "system", "user", "assistant"];
/// The same for the SentencePiece-like ones.
const PIECES: [&str; 6] = ["Hello", "▁Hello", "▁there", "system", "user", "model"];

pub(crate) fn llama(template: &str) -> Model {
    let specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ];
    let tokenizer = byte_level(&WORDS, &specials, Some("<|begin_of_text|>"), false);
    Model::new(
        &tokenizer,
        &json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
        template,
    )
}

pub(crate) fn qwen(template: &str) -> Model {
    let tokenizer = byte_level(
        &WORDS,
        &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        None,
        false,
    );
    let config = json!({"add_bos_token": false, "bos_token": null, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"});
    Model::new(&tokenizer, &config, template)
}

pub(crate) fn phi(template: &str) -> Model {
    let specials = [
        "<|endoftext|>",
        "<|dummy_85|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_sep|>",
    ];
    let tokenizer = byte_level(&WORDS, &specials, None, true);
    let config = json!({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|dummy_85|>"});
    Model::new(&tokenizer, &config, template)
}

pub(crate) fn gemma(template: &str) -> Model {
    let specials = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
    ];
    let config = json!({"add_bos_token": true, "bos_token": {"content": "<bos>"}, "eos_token": "<eos>",
                        "pad_token": "<pad>", "unk_token": "<unk>"});
    Model::new(&sentencepiece(&PIECES, &specials, false), &config, template)
}

pub(crate) fn solar(template: &str) -> Model {
    let config = json!({"add_bos_token": true, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    Model::new(
        &sentencepiece(&PIECES, &["<unk>", "<s>", "</s>"], true),
        &config,
        template,
    )
}
