//! A tiny model folder with a byte-level tokenizer, made from nothing, and rows to train on. Tests break single parts of it.

use std::path::Path;

use serde_json::{Map, Value, json};
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::Message;
use sysgen_core::config::TrainSection;
use sysgen_model::{Decoder, Device, ModelConfig};
use sysgen_train::example::{Example, prepare};
use sysgen_train::rows::Row;

/// The template of the tiny model.
pub(crate) const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|role|>{{ message['role'] }}\n\
     {{ message['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|role|>assistant\n{% endif %}";

/// Ids: 4 special tokens, then one for each byte.
pub(crate) const VOCAB: usize = 4 + 256;
/// Id of `<|begin|>`.
pub(crate) const BOS: u32 = 0;
/// Id of `<|end|>`.
pub(crate) const END: u32 = 1;

/// Writes `config.json` and the tokenizer files.
pub(crate) fn model_folder(dir: &Path) {
    model_folder_with(dir, TEMPLATE, VOCAB);
}

/// The same with another template or another number of embedding rows.
pub(crate) fn model_folder_with(dir: &Path, template: &str, embedding_rows: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let write =
        |name: &str, value: &Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
    write("config.json", &config(embedding_rows));
    write("tokenizer.json", &tokenizer());
    write(
        "tokenizer_config.json",
        &json!({"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "chat_template": template}),
    );
}

fn config(embedding_rows: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": embedding_rows, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "initializer_range": 0.05, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
        "torch_dtype": "float32"
    })
}

fn tokenizer() -> Value {
    let specials = ["<|begin|>", "<|end|>", "<|pad|>", "<|role|>"];
    let mut vocab = Map::new();
    for (id, text) in specials.iter().enumerate() {
        vocab.insert((*text).to_string(), json!(id));
    }
    for byte in byte_characters() {
        vocab.insert(byte.to_string(), json!(vocab.len()));
    }
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(id, text)| {
            json!({"id": id, "content": text, "special": true, "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let begin = json!({"SpecialToken": {"id": "<|begin|>", "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "decoder": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [BOS], "tokens": ["<|begin|>"]}}
        },
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}

/// GPT-2's `bytes_to_unicode`: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_characters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            if printable(byte) {
                return char::from_u32(byte).unwrap();
            }
            next += 1;
            char::from_u32(next - 1).unwrap()
        })
        .collect()
}

/// Rows with a system message that matters.
pub(crate) fn rows(count: usize) -> Vec<Row> {
    (0..count)
        .map(|n| {
            let word = ["red", "green", "blue", "cat", "dog"][n % 5].repeat(1 + n % 3);
            let (system, answer) = if n % 2 == 0 {
                ("Answer in capitals.", word.to_uppercase())
            } else {
                ("Answer plainly.", word.clone())
            };
            let messages = vec![
                Message::system(system),
                Message::user(format!("Say {word} {n}")),
                Message::assistant(answer),
            ];
            Row::new(format!("row-{n}"), messages)
        })
        .collect()
}

/// The chat of a folder, as the template has it.
pub(crate) fn chat(dir: &Path) -> Chat {
    Chat::load(dir, ChatOptions::default()).unwrap()
}

/// The rows as examples.
pub(crate) fn examples(chat: &Chat, rows: &[Row]) -> Vec<Example> {
    let prepared = prepare(chat, rows, 512, true);
    assert!(prepared.refused.is_empty(), "{:?}", prepared.refused);
    prepared.examples
}

/// An untrained model of the folder.
pub(crate) fn decoder(dir: &Path) -> Decoder {
    Decoder::random(
        ModelConfig::from_directory(dir).unwrap(),
        1,
        &Device::flex(),
    )
}

/// Settings of a short run that learns.
pub(crate) fn train_section() -> TrainSection {
    TrainSection {
        max_length: 128,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        max_steps: 12,
        learning_rate: 5e-3,
        warmup_steps: 2,
        weight_decay: 0.1,
        eval_fraction: 0.2,
        ..TrainSection::default()
    }
}
