//! Training adapters, against PEFT's: its untrained adapter read, twenty steps of its curve, its trained adapter.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use sysgen_model::{Decoder, Device, Lora, Tokens, Weight};

use crate::golden::{FINAL, GRAD_NORM, Golden, LOSS, cases, close, micro_batches};

/// An adapter in PEFT's format: tensors by name.
fn read(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = view.data().as_chunks::<4>().0;
            let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (name, (view.shape().to_vec(), values))
        })
        .collect()
}

fn settings(golden: &Golden) -> Lora {
    let lora = &golden.json["lora"];
    let modules = lora["target_modules"].as_array().unwrap();
    Lora {
        rank: lora["r"].as_u64().unwrap() as usize,
        alpha: lora["lora_alpha"].as_f64().unwrap(),
        target_modules: modules
            .iter()
            .map(|module| module.as_str().unwrap().to_string())
            .collect(),
    }
}

#[test]
fn golden_lora_follows_the_curve_of_peft() {
    for golden in cases() {
        let initial = read(&golden.folder.join("adapter_init"));
        let (frozen, mut adapters) = golden.decoder().with_lora(settings(&golden), 0).split();
        assert_eq!(adapters.len(), initial.len(), "{}: adapters", golden.name);
        for adapter in &mut adapters {
            let (shape, values) = initial[&adapter.name].clone();
            assert_eq!(adapter.tensor.shape(), shape, "{}", adapter.name);
            adapter.tensor = Weight::from_values(values, &shape, &Device::flex());
        }
        let mut trainer = golden.trainer(frozen.join(adapters));

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

        let trained = read(&golden.folder.join("adapter_final"));
        for adapter in trainer.decoder().trainable() {
            let difference = close(&adapter.tensor.to_vec(), &trained[&adapter.name].1);
            assert!(difference <= FINAL, "{}: {difference:e}", adapter.name);
        }
        let base = golden.decoder();
        for (before, after) in base.parameters().iter().zip(trainer.decoder().parameters()) {
            assert_eq!(
                before.tensor.to_vec(),
                after.tensor.to_vec(),
                "the base is frozen"
            );
        }
    }
}

#[test]
fn an_untrained_adapter_changes_nothing() {
    for golden in cases() {
        let logits = |decoder: &Decoder| {
            let hidden = decoder.hidden(&Tokens::padded(&[&[3, 5, 7, 9]], 0));
            decoder
                .logits(hidden)
                .into_data()
                .try_to_vec::<f32>()
                .unwrap()
        };
        let all = Lora {
            target_modules: Vec::new(),
            ..settings(&golden)
        };
        let adapted = golden.decoder().with_lora(all, 3);
        assert_eq!(
            logits(&golden.decoder()),
            logits(&adapted),
            "{}",
            golden.name
        );
    }
}
