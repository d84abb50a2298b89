//! Hidden states, logits and losses.

use serde_json::Value;
use sysgen_model::{Decoder, Device, ModelConfig};

use crate::case::{ACTIVATION, MEAN_LOSS, TOKEN_LOSS, assert_close, cases, values};

#[test]
fn golden_hidden_states_and_logits() {
    for case in cases() {
        let decoder = case.decoder();
        let stages = decoder.hidden_states(&case.tokens("a"));
        let layers = decoder.config.layers;
        for (stage, x) in stages.iter().enumerate() {
            let name = match stage {
                0 => "embed".to_owned(),
                stage if stage == layers + 1 => "final_norm".to_owned(),
                stage => format!("layer{}", stage - 1),
            };
            assert_close(
                &format!("{}: {name}", case.name),
                &values(x.clone()),
                &case.floats(&format!("a.hidden.{name}")),
                ACTIVATION,
            );
        }
        for key in ["a", "b"] {
            let logits = values(decoder.logits(decoder.hidden(&case.tokens(key))));
            assert_close(
                &format!("{}: logits of {key}", case.name),
                &logits,
                &case.floats(&format!("{key}.logits")),
                ACTIVATION,
            );
        }
    }
}

#[test]
fn golden_losses_of_single_padded_and_packed_rows() {
    for case in cases() {
        let decoder = case.decoder();
        for batch in ["a", "b", "batch_right", "batch_left", "packed"] {
            let what = format!("{}: {batch}", case.name);
            let (mean, losses) = case.loss(&decoder, batch);
            assert_close(
                &what,
                &losses,
                &case.floats(&format!("{batch}.token_loss")),
                TOKEN_LOSS,
            );
            let (mean, reference) = (
                f64::from(mean.into_scalar::<f32>()),
                case.number(&format!("/{batch}/mean_loss")),
            );
            assert!(
                (mean - reference).abs() <= MEAN_LOSS,
                "{what}: mean loss {mean}, reference {reference}"
            );
        }
    }
}

#[test]
fn golden_padding_and_packing_do_not_change_logits() {
    for case in cases() {
        let decoder = case.decoder();
        let vocab = decoder.config.vocab_size;
        let separate = [case.floats("a.logits"), case.floats("b.logits")];
        for batch in ["batch_right", "batch_left", "packed"] {
            let tokens = case.tokens(batch);
            let logits = values(decoder.logits(decoder.hidden(&tokens)));
            for (row, reference) in separate.iter().enumerate() {
                // A packed row holds both sequences, segments 1 and 2; a padded batch one per row.
                let wanted = |at: usize| {
                    if batch == "packed" {
                        tokens.segments[at] == row as u32 + 1
                    } else {
                        at / tokens.time == row && tokens.segments[at] == 1
                    }
                };
                let real: Vec<f32> = (0..tokens.ids.len())
                    .filter(|at| wanted(*at))
                    .flat_map(|at| logits[at * vocab..(at + 1) * vocab].to_vec())
                    .collect();
                assert_close(
                    &format!("{}: {batch}, sequence {row}", case.name),
                    &real,
                    reference,
                    ACTIVATION,
                );
            }
        }
    }
}

#[test]
fn golden_classic_and_transformers_5_configs_describe_the_same_model() {
    for case in cases() {
        let path = case.dir.join("config.transformers5.json");
        let json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let newer = ModelConfig::from_json(&json).unwrap();
        let decoder = case.decoder();
        let logits = |decoder: &Decoder| values(decoder.logits(decoder.hidden(&case.tokens("b"))));
        let (before, parameters) = decoder.clone().into_parameters();
        assert_eq!(before.stored_dtype, newer.stored_dtype, "{}", case.name);
        assert_eq!(before.eos_token_ids, newer.eos_token_ids, "{}", case.name);
        let again = Decoder::from_parameters(newer, parameters);
        assert_eq!(logits(&decoder), logits(&again), "{}", case.name);
    }
}

#[test]
fn golden_number_of_parameters() {
    for case in cases() {
        let count: usize = case
            .decoder()
            .parameters()
            .iter()
            .map(|parameter| parameter.tensor.len())
            .sum();
        assert_eq!(
            count as f64,
            case.number("/num_parameters"),
            "{}",
            case.name
        );
        let random = Decoder::random(case.decoder().config, 1, &Device::flex());
        assert_eq!(
            random
                .parameters()
                .iter()
                .map(|parameter| parameter.tensor.len())
                .sum::<usize>(),
            count
        );
    }
}
