//! What saves memory: parameters updated on the way back, which changes nothing, and weights in bf16.

use serde_json::{Value, json};
use sysgen_core::config::Optim;
use sysgen_model::{Decoder, Device, ExportDtype, Lora, ModelConfig, Weight, WeightDtype};
use sysgen_ops::{AdamW, MomentOrder};
use sysgen_train::batch::Batch;
use sysgen_train::example::Example;
use sysgen_train::optim::{Optimizer, State};
use sysgen_train::trainer::{StepReport, Trainer};

use crate::fixture;

/// Shapes that differ in what is tied, fused, biased and scaled.
pub(crate) fn configs() -> Vec<ModelConfig> {
    let of = |changes: Value| {
        let mut json = json!({
            "model_type": "llama", "vocab_size": fixture::VOCAB, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
            "initializer_range": 0.05, "torch_dtype": "float32"
        });
        let keys = changes.as_object().unwrap().clone();
        json.as_object_mut().unwrap().extend(keys);
        ModelConfig::from_json(&json).unwrap()
    };
    vec![
        of(json!({})),
        of(json!({"tie_word_embeddings": true})),
        of(json!({"model_type": "qwen2"})),
        of(json!({"model_type": "phi3"})),
        of(json!({
            "model_type": "gemma2", "tie_word_embeddings": true, "head_dim": 8, "query_pre_attn_scalar": 8,
            "sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh"
        })),
    ]
}

fn lora(dora: bool) -> Lora {
    Lora {
        rank: 4,
        alpha: 8.0,
        dropout: 0.1,
        target_modules: Vec::new(),
        rslora: false,
        dora,
    }
}

fn examples() -> Vec<Example> {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    fixture::examples(&fixture::chat(dir.path()), &fixture::rows(12))
}

fn trainer(decoder: Decoder, optim: Optim) -> Trainer {
    let settings = AdamW {
        learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
        rounding_seed: 0,
    };
    let optimizer = Optimizer::of(optim, &decoder.trainable(), settings);
    Trainer::new(decoder, optimizer, 0.0)
}

/// Weights and moments as bits.
fn bits(trainer: &Trainer) -> Vec<u32> {
    let words = |values: Vec<f32>| values.into_iter().map(f32::to_bits);
    let mut all = Vec::new();
    for parameter in trainer.decoder().trainable() {
        all.extend(words(parameter.tensor.to_vec()));
    }
    for state in &trainer.optimizer.states {
        match state {
            State::Vector(moments) => {
                for moment in [&moments.first, &moments.second] {
                    all.extend(words(Weight::Vector(moment.clone()).to_vec()));
                }
            }
            State::Matrix(moments) => {
                for moment in [&moments.first, &moments.second] {
                    all.extend(words(Weight::Matrix(moment.clone()).to_vec()));
                }
            }
            State::Quantised(moments) => {
                for order in [MomentOrder::First, MomentOrder::Second] {
                    all.extend(moments.codes(order).iter().map(|&code| u32::from(code)));
                    all.extend(words(moments.scales(order).into_owned()));
                }
            }
        }
    }
    all
}

/// Four steps over packed rows.
fn steps(trainer: &mut Trainer, examples: &[Example]) -> Vec<StepReport> {
    let rows = [
        vec![vec![0, 3, 1], vec![5]],
        vec![vec![2, 4]],
        vec![vec![6, 7], vec![8, 9]],
        vec![vec![11, 10]],
    ];
    let rates = [1e-3, 3e-3, 2e-3, 1e-3];
    let steps = rows.iter().zip(rates);
    steps
        .map(|(rows, rate)| trainer.step(&[Batch::new(examples, rows, 2)], rate))
        .collect()
}

#[test]
fn updating_on_the_way_back_changes_no_bit() {
    let examples = examples();
    for config in configs() {
        for adapters in [None, Some(lora(false)), Some(lora(true))] {
            for (optim, gradient_checkpointing, dtype) in [
                (Optim::Adamw, false, WeightDtype::F32),
                (Optim::Adamw8bit, true, WeightDtype::F32),
                (Optim::Adamw, true, WeightDtype::Bf16),
                (Optim::Adamw8bit, false, WeightDtype::Bf16),
            ] {
                let train = |optimizer_in_backward: bool| {
                    let base = Decoder::random_as(config.clone(), 1, &Device::flex(), dtype);
                    let decoder = match &adapters {
                        None => base,
                        Some(lora) => base.with_lora(lora.clone(), 3).unwrap(),
                    };
                    let mut trainer = trainer(decoder, optim);
                    trainer.gradient_checkpointing = gradient_checkpointing;
                    trainer.optimizer_in_backward = optimizer_in_backward;
                    let before = bits(&trainer);
                    let reports = steps(&mut trainer, &examples);
                    let after = bits(&trainer);
                    assert_ne!(before, after);
                    (reports, after, trainer.optimizer.updates)
                };
                let what = format!(
                    "{}, {optim:?}, {dtype:?}, adapters {:?}",
                    config.json["model_type"], adapters
                );
                let (plain, in_backward) = (train(false), train(true));
                assert!(plain.0.iter().all(|report| report.applied), "{what}");
                assert_eq!(plain.0, in_backward.0, "{what}");
                assert!(plain.1 == in_backward.1, "{what}: weights or moments");
                assert_eq!((plain.2, in_backward.2), (4, 4));
            }
        }
    }
}

/// The first shape with some matrices filled with one number, updated on the way back.
fn filled(changes: &[(&str, f32)]) -> Trainer {
    let decoder = Decoder::random(configs().remove(0), 1, &Device::flex());
    let (config, mut parameters) = decoder.into_parameters();
    for (name, value) in changes {
        let found = parameters.iter_mut().find(|p| p.name == *name).unwrap();
        let values = vec![*value; found.tensor.len()];
        found.tensor = Weight::from_values(values, &found.tensor.shape(), &Device::flex());
    }
    let mut trainer = trainer(Decoder::from_parameters(config, parameters), Optim::Adamw);
    trainer.optimizer_in_backward = true;
    trainer
}

#[test]
fn a_loss_that_is_not_finite_updates_nothing() {
    let batch = [Batch::new(&examples(), &[vec![0, 3, 1]], 2)];
    let mut trainer = filled(&[("lm_head.weight", f32::NAN)]);
    let before = bits(&trainer);
    let report = trainer.step(&batch, 1e-3);
    assert!(!report.applied && !report.partly_applied && !report.loss.is_finite());
    assert!(bits(&trainer) == before && trainer.optimizer.updates == 0);
}

#[test]
fn a_gradient_that_overflows_late_is_not_used_and_the_step_is_known_to_be_torn() {
    let batch = [Batch::new(&examples(), &[vec![0, 3, 1]], 2)];
    // Forward these make nothing; going back their product does not fit into f32.
    let mut trainer = filled(&[
        ("model.layers.0.mlp.gate_proj.weight", 1e12),
        ("model.layers.0.mlp.up_proj.weight", 0.0),
        ("model.layers.0.mlp.down_proj.weight", 3e38),
    ]);
    let before = trainer.decoder().parameters();
    let report = trainer.step(&batch, 1e-3);
    assert!(report.loss.is_finite() && !report.grad_norm.is_finite());
    assert!(!report.applied && report.partly_applied);
    for (before, after) in before.iter().zip(trainer.decoder().parameters()) {
        let same = before.tensor.to_vec() == after.tensor.to_vec();
        let late = before.name.contains("layers.0.") || before.name.contains("embed");
        assert_eq!(same, late, "{}", before.name);
    }
}

#[test]
fn a_model_in_bf16_learns_like_one_in_f32_and_keeps_its_format() {
    let examples = examples();
    let config = configs().remove(1);
    let train = |dtype| {
        let decoder = Decoder::random_as(config.clone(), 1, &Device::flex(), dtype);
        let mut trainer = trainer(decoder, Optim::Adamw);
        let losses: Vec<f64> = (0..6)
            .flat_map(|_| steps(&mut trainer, &examples))
            .map(|report| report.loss)
            .collect();
        (trainer, losses)
    };
    let ((_, wide), (trainer, rounded)) = (train(WeightDtype::F32), train(WeightDtype::Bf16));
    let last = wide.len() - 1;
    assert!(wide[last] < 0.7 * wide[0], "{wide:?}");
    for (step, (wide, rounded)) in wide.iter().zip(&rounded).enumerate() {
        let difference = (wide - rounded).abs();
        assert!(
            difference < 0.02,
            "step {step}: {rounded} instead of {wide}"
        );
    }

    let dir = tempfile::tempdir().unwrap();
    let kept = trainer.decoder();
    kept.save(dir.path(), ExportDtype::Kept, None).unwrap();
    let again = Decoder::load_as(dir.path(), &Device::flex(), WeightDtype::Auto).unwrap();
    for (kept, again) in kept.parameters().iter().zip(again.parameters()) {
        let matrix = kept.tensor.shape().len() == 2;
        assert_eq!([kept.tensor.is_bf16(), again.tensor.is_bf16()], [matrix; 2]);
        assert!(
            kept.tensor.to_vec() == again.tensor.to_vec(),
            "{}",
            kept.name
        );
    }
}
