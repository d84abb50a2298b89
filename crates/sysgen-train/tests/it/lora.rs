//! Training adapters, against PEFT's: its untrained adapter read, twenty steps of its curve, its trained adapter, its
//! merged weights.

use std::path::Path;

use sysgen_model::{Decoder, Device, ExportDtype, Lora, StoredDtype, Tokens, Weight};
use sysgen_train::method::check_merge;

use crate::golden::{FINAL, GRAD_NORM, Golden, LOSS, cases, close, micro_batches};

fn settings() -> Lora {
    Lora {
        rank: 8,
        alpha: 16.0,
        dropout: 0.0,
        target_modules: Vec::new(),
        rslora: false,
        dora: false,
    }
}

fn logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let hidden = decoder.hidden(&Tokens::padded(&[ids], 0));
    decoder.logits(hidden).try_into_vec_as::<f32>().unwrap()
}

#[test]
fn golden_lora_follows_the_curve_of_peft() {
    for golden in cases() {
        let initial = golden.folder.join("adapter_init");
        let mut trainer = golden.trainer(golden.decoder().with_adapter(&initial).unwrap());

        let (schedule, steps) = (golden.schedule(), golden.steps());
        let expected = golden.json["lora"]["steps"].as_array().unwrap();
        assert_eq!(steps.len(), expected.len());
        for (step, (rows, expected)) in steps.iter().zip(expected).enumerate() {
            let batches = micro_batches(rows, 1, rows.len());
            let report = trainer.step(&batches, schedule.learning_rate(step));
            let at = format!("{} step {step}", golden.name);
            let loss = expected["loss"].as_f64().unwrap();
            assert!(
                (report.loss - loss).abs() <= LOSS,
                "{at}: loss {} instead of {loss}",
                report.loss
            );
            let norm = expected["grad_norm"].as_f64().unwrap();
            assert!(
                (report.grad_norm / norm - 1.0).abs() <= GRAD_NORM,
                "{at}: gradient norm {} instead of {norm}",
                report.grad_norm
            );
        }

        let trained = golden.folder.join("adapter_final");
        let trained = golden.decoder().with_adapter(&trained).unwrap();
        for (ours, theirs) in trainer
            .decoder()
            .trainable()
            .iter()
            .zip(trained.trainable())
        {
            let difference = close(&ours.tensor.to_vec(), &theirs.tensor.to_vec());
            assert!(difference <= FINAL, "{}: {difference:e}", ours.name);
        }
        let base = golden.decoder();
        for (before, after) in base.parameters().iter().zip(trainer.decoder().parameters()) {
            assert_eq!(
                before.tensor.to_vec(),
                after.tensor.to_vec(),
                "the base is frozen"
            );
        }
        golden_merge(&golden, &trained);
    }
}

/// A decoder with its adapters merged on the way to the disk, loaded from there.
pub(crate) fn merged(decoder: &Decoder, like: Option<&Path>) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    let (dtype, look) = (ExportDtype::Of(StoredDtype::F32), |merge: &_| {
        check_merge(merge).map(drop)
    });
    decoder.save_merged(dir.path(), dtype, like, &look).unwrap();
    decoder.compare_saved(dir.path(), dtype, like).unwrap();
    Decoder::load(dir.path(), &Device::flex()).unwrap()
}

/// PEFT's trained adapter merged by us: PEFT's merged weights, and its logits.
fn golden_merge(golden: &Golden, trained: &Decoder) {
    let merged = merged(trained, None);
    assert!(merged.lora().is_none());
    let stored = golden.floats_starting("lora.merged.");
    assert!(!stored.is_empty(), "{}: no merged weight", golden.name);
    for (name, values) in stored {
        let name = name.trim_start_matches("lora.merged.");
        let parameters = merged.parameters();
        let ours = parameters.iter().find(|p| p.name == name).unwrap();
        let difference = close(&ours.tensor.to_vec(), &values);
        assert!(difference <= 1e-6, "{name}: {difference:e}");
    }
    let probe = golden.steps()[0][0].ids.clone();
    for (name, values) in golden.floats_starting("lora.final_probe_logits") {
        let difference = close(&logits(&merged, &probe), &values);
        assert!(difference <= FINAL, "{name}: {difference:e}");
    }
}

#[test]
fn an_untrained_adapter_changes_nothing() {
    for golden in cases() {
        let ids = [3, 5, 7, 9];
        let adapted = golden.decoder().with_lora(settings(), 3).unwrap();
        let (base, beside) = (logits(&golden.decoder(), &ids), logits(&adapted, &ids));
        assert_eq!(base, beside, "{}", golden.name);
    }
}

#[test]
fn an_adapter_is_read_back_as_it_was_written() {
    let golden = &cases()[0];
    for dora in [false, true] {
        let lora = Lora {
            target_modules: vec!["q_proj".into(), "down_proj".into()],
            rslora: dora,
            dora,
            ..settings()
        };
        let adapted = golden.decoder().with_lora(lora.clone(), 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        adapted
            .save_adapter(dir.path(), "base", StoredDtype::F32)
            .unwrap();
        let again = golden.decoder().with_adapter(dir.path()).unwrap();
        assert_eq!(again.lora(), Some(&lora));
        let values = |decoder: &Decoder| -> Vec<(String, Vec<f32>)> {
            let parameters = decoder.trainable().into_iter();
            parameters.map(|p| (p.name, p.tensor.to_vec())).collect()
        };
        assert_eq!(values(&adapted), values(&again));
        let magnitudes = adapted.trainable();
        let magnitudes = magnitudes
            .iter()
            .filter(|p| matches!(p.tensor, Weight::Vector(_)));
        assert_eq!(magnitudes.count() > 0, dora);
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_with_the_reason() {
    let golden = &cases()[0];
    let unknown = Lora {
        target_modules: vec!["q_proj".into(), "qkv_proj".into()],
        ..settings()
    };
    let said = golden.decoder().with_lora(unknown, 0).unwrap_err();
    let said = format!("{said:#}");
    assert!(
        said.contains("qkv_proj") && said.contains("gate_proj"),
        "{said}"
    );

    let dir = tempfile::tempdir().unwrap();
    let adapted = golden.decoder().with_lora(settings(), 0).unwrap();
    adapted
        .save_adapter(dir.path(), "base", StoredDtype::F32)
        .unwrap();
    let path = dir.path().join("adapter_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("\"LORA\"", "\"IA3\"", "IA3"),
        ("\"none\"", "\"all\"", "bias"),
        ("\"r\": 8", "\"r\": 4", "shape"),
        (
            "\"use_dora\": false",
            "\"use_dora\": true",
            "lora_magnitude_vector",
        ),
        (
            "\"modules_to_save\": null",
            "\"modules_to_save\": [\"lm_head\"]",
            "modules_to_save",
        ),
    ] {
        assert!(config.contains(from), "{config}");
        std::fs::write(&path, config.replace(from, to)).unwrap();
        let said = golden.decoder().with_adapter(dir.path()).unwrap_err();
        let said = format!("{said:#}");
        assert!(said.contains(expected), "{to}: {said}");
    }
}
