//! Rules of the families that a configuration only implies.
#![allow(missing_docs, clippy::unwrap_used)]

use serde_json::{Value, json};
use sysgen_model::{Activation, ModelConfig};

/// A configuration of four layers with `changes`.
fn config(model_type: &str, changes: Value) -> ModelConfig {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config).unwrap()
}

#[track_caller]
fn check_windows(model_type: &str, changes: Value, expected: [Option<usize>; 4]) {
    assert_eq!(
        config(model_type, changes).windows,
        expected,
        "{model_type}"
    );
}

#[test]
fn windows_follow_each_familys_rule() {
    let (full, eight) = (None, Some(8));
    check_windows("gemma2", json!({}), [Some(4096), full, Some(4096), full]);
    check_windows(
        "gemma2",
        json!({"sliding_window": 8}),
        [eight, full, eight, full],
    );
    check_windows("mistral", json!({"sliding_window": 8}), [eight; 4]);
    check_windows("mistral", json!({"sliding_window": null}), [full; 4]);
    check_windows("phi3", json!({"sliding_window": 8}), [eight; 4]);
    check_windows("llama", json!({"sliding_window": 8}), [full; 4]);
    check_windows(
        "qwen2",
        json!({"sliding_window": 8, "max_window_layers": 1}),
        [full; 4],
    );
    let used = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1});
    check_windows("qwen2", used, [full, eight, eight, eight]);
}

#[test]
fn layer_types_decide_where_they_are_given() {
    let types = json!({"sliding_window": 8, "layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]});
    check_windows("gemma2", types.clone(), [None, None, Some(8), None]);
    check_windows("mistral", types, [None, None, Some(8), None]);
}

#[test]
fn gemma_2_has_its_caps_scales_and_tied_head_without_being_told() {
    let gemma = config("gemma2", json!({"hidden_size": 3584}));
    assert_eq!(
        (gemma.head_dim, gemma.tied, gemma.activation),
        (256, true, Activation::GeGluTanh)
    );
    assert_eq!(
        (gemma.attention_softcap, gemma.final_softcap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(
        (gemma.attention_scale, gemma.embedding_scale),
        (1.0 / 16.0, Some(3584_f32.sqrt()))
    );
    let uncapped = config(
        "gemma2",
        json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}),
    );
    assert_eq!(
        (uncapped.attention_softcap, uncapped.final_softcap),
        (None, None)
    );
    let llama = config("llama", json!({"attn_logit_softcapping": 50.0}));
    assert_eq!(
        (llama.attention_softcap, llama.embedding_scale, llama.tied),
        (None, None, false)
    );
}

#[test]
fn biases_follow_each_familys_rule() {
    let qwen = config("qwen2", json!({})).biases;
    assert_eq!(
        (qwen.qkv, qwen.output, qwen.feed_forward),
        (true, false, false)
    );
    let llama = config("llama", json!({"attention_bias": true, "mlp_bias": true})).biases;
    assert_eq!(
        (llama.qkv, llama.output, llama.feed_forward),
        (true, true, true)
    );
    assert_eq!(config("mistral", json!({})).biases, Default::default());
}

#[test]
fn a_missing_number_of_kv_heads_means_as_many_as_heads_for_llama() {
    assert_eq!(
        config("llama", json!({"num_key_value_heads": null})).kv_heads,
        2
    );
}
