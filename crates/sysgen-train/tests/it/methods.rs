//! Ways of training against PEFT and bitsandbytes: rsLoRA, DoRA, fused projections, a base in four bits. The recipe is
//! `make/gen_methods.py`; cases are discovered in `methods/` of `$SYSGEN_GOLDEN` or of this repository.

use burn::tensor::{Tensor, TensorData};
use sysgen_model::{Decoder, Device, Tokens, WeightDtype};
use sysgen_ops::{AdamW, MomentOrder, Moments8, Nf4, adamw_8bit_step};

use crate::golden::{FINAL, GRAD_NORM, Golden, LOSS, close, micro_batches, root};
use crate::lora::merged;

fn cases() -> Vec<Golden> {
    let Ok(entries) = std::fs::read_dir(root().join("methods")) else {
        eprintln!("SKIPPED: {}/methods is absent", root().display());
        return Vec::new();
    };
    let folders = entries.map(|entry| entry.unwrap().path());
    let mut cases: Vec<Golden> = folders
        .filter(|path| path.join("case.json").exists())
        .map(|folder| {
            let json: serde_json::Value =
                serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
            Golden {
                name: folder.file_name().unwrap().to_str().unwrap().to_string(),
                base: root().join(json["base"].as_str().unwrap()),
                bytes: std::fs::read(folder.join("case.safetensors")).unwrap(),
                json: with_recipe(json),
                folder,
            }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(cases.len() >= 4, "cases of methods/");
    cases
}

/// The recipe of `gen_train.py` in the form in which its own cases have it.
fn with_recipe(mut json: serde_json::Value) -> serde_json::Value {
    let steps = json["steps"].as_array().unwrap().len();
    json["recipe"] = serde_json::json!({
        "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-3, "warmup_steps": 4, "steps": steps
    });
    json
}

fn base(golden: &Golden) -> Decoder {
    match golden.json["nf4"].as_bool().unwrap() {
        true => Decoder::load_nf4(&golden.base, &Device::flex(), WeightDtype::F32).unwrap(),
        false => golden.decoder(),
    }
}

fn logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let hidden = decoder.hidden(&Tokens::padded(&[ids], 0));
    decoder.logits(hidden).try_into_vec_as::<f32>().unwrap()
}

#[test]
fn golden_methods_follow_the_curves_of_peft() {
    for golden in cases() {
        let initial = golden.folder.join("adapter_init");
        for gradient_checkpointing in [false, true] {
            let mut trainer = golden.trainer(base(&golden).with_adapter(&initial).unwrap());
            trainer.gradient_checkpointing = gradient_checkpointing;
            let (schedule, steps) = (golden.schedule(), golden.steps());
            let expected = golden.json["steps"].as_array().unwrap();
            for (step, (rows, expected)) in steps.iter().zip(expected).enumerate() {
                let batches = micro_batches(rows, 1, rows.len());
                let report = trainer.step(&batches, schedule.learning_rate(step));
                let number = |key: &str| expected[key].as_f64().unwrap();
                let loss = (report.loss - number("loss")).abs();
                let norm = (report.grad_norm / number("grad_norm") - 1.0).abs();
                assert!(
                    loss <= LOSS && norm <= GRAD_NORM,
                    "{} step {step}: loss differs by {loss:e}, gradient norm by {norm:e}",
                    golden.name
                );
            }
            let trained = base(&golden).with_adapter(&golden.folder.join("adapter_final"));
            let trained = trained.unwrap().trainable();
            for (ours, theirs) in trainer.decoder().trainable().iter().zip(&trained) {
                assert_eq!(ours.name, theirs.name);
                let difference = close(&ours.tensor.to_vec(), &theirs.tensor.to_vec());
                assert!(
                    difference <= FINAL,
                    "{} {}: {difference:e}",
                    golden.name,
                    ours.name
                );
            }
        }
    }
}

#[test]
fn golden_methods_merge_as_peft_merges() {
    for golden in cases() {
        let trained = golden.folder.join("adapter_final");
        let beside = base(&golden).with_adapter(&trained).unwrap();
        let probe = golden.steps()[0][0].ids.clone();
        // PEFT merged into what the four bits stand for; so does this, unlike an export, which asks for the base.
        let merged = beside.clone().merged();
        for (name, decoder) in [
            ("final_probe_logits", &beside),
            ("merged_probe_logits", &merged),
        ] {
            let expected = golden.floats_starting(name);
            let difference = close(&logits(decoder, &probe), &expected[0].1);
            assert!(
                difference <= FINAL,
                "{} {name}: {difference:e}",
                golden.name
            );
        }
        for (name, values) in golden.floats_starting("merged.") {
            let name = name.trim_start_matches("merged.");
            let parameters = merged.parameters();
            let ours = parameters.iter().find(|p| p.name == name).unwrap();
            let difference = close(&ours.tensor.to_vec(), &values);
            assert!(difference <= 2e-6, "{} {name}: {difference:e}", golden.name);
        }
    }
}

#[test]
fn an_adapter_of_four_bits_is_merged_into_the_whole_base() {
    let cases = cases();
    let golden = cases.iter().find(|case| case.name.starts_with("qlora"));
    let golden = golden.unwrap();
    let trained = golden.folder.join("adapter_final");
    let beside = base(golden).with_adapter(&trained).unwrap();
    let merged = merged(&beside, Some(&golden.base));
    let expected = golden.decoder().with_adapter(&trained).unwrap().merged();
    for (a, b) in merged.parameters().iter().zip(expected.parameters()) {
        assert_eq!(a.tensor.to_vec(), b.tensor.to_vec(), "{}", a.name);
    }
}

#[test]
fn golden_nf4_is_that_of_bitsandbytes() {
    let path = root().join("methods/nf4.safetensors");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {} is absent", path.display());
        return;
    };
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in ["small", "wide"] {
        let tensor = |part: &str| file.tensor(&format!("{name}.{part}")).unwrap();
        let floats = |part: &str| -> Vec<f32> {
            let (values, _) = tensor(part).data().as_chunks::<4>();
            values.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let weight = tensor("weight");
        let [output, input] = weight.shape() else {
            panic!("a matrix")
        };
        let ours = Nf4::quantise(&floats("weight"), [*output, *input], &Device::flex());
        let difference = close(&ours.to_vec(), &floats("dequantised"));
        assert!(difference <= 1e-6, "{name}: {difference:e}");
        // The second half of the last byte stands for nothing where the number of values is odd.
        let whole = output * input / 2;
        assert_eq!(ours.codes()[..whole], tensor("codes").data()[..whole]);
    }
}

#[test]
fn golden_adamw_8bit_takes_the_steps_of_its_definition() {
    let path = root().join("methods/adamw_8bit.safetensors");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {} is absent", path.display());
        return;
    };
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let view = file.tensor(name).unwrap();
        let (values, _) = view.data().as_chunks::<4>();
        values.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let codes = |name: &str| file.tensor(name).unwrap().data().to_vec();
    let settings: Vec<f64> = floats("settings").into_iter().map(f64::from).collect();
    let settings = AdamW {
        learning_rate: settings[0],
        beta1: settings[1],
        beta2: settings[2],
        epsilon: settings[3],
        weight_decay: settings[4],
        rounding_seed: 0,
    };
    let (start, gradients) = (floats("start"), floats("gradients"));
    let count = start.len();
    let tensor = |values: &[f32]| -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [count]), &Device::flex())
    };
    let mut parameter = tensor(&start);
    let mut moments = Moments8::zeros(count, &Device::flex());
    for (step, gradient) in (1..).zip(gradients.chunks(count)) {
        parameter = adamw_8bit_step(parameter, tensor(gradient), &mut moments, &settings, step);
    }
    let ours = parameter.try_into_vec_as::<f32>().unwrap();
    // A number in the middle of two codes may fall to either side: one in a thousand may differ.
    let far = |theirs: &[f32]| {
        let differing = ours
            .iter()
            .zip(theirs)
            .filter(|(a, b)| (*a - *b).abs() > 1e-5);
        differing.count() as f64 / count as f64
    };
    assert!(far(&floats("final")) <= 1e-3, "{}", far(&floats("final")));
    assert!(far(&floats("bitsandbytes")) <= 0.06);
    for (order, name) in [
        (MomentOrder::First, "first"),
        (MomentOrder::Second, "second"),
    ] {
        let theirs = codes(&format!("{name}_codes"));
        let ours = moments.codes(order);
        let differing = ours.iter().zip(&theirs).filter(|(a, b)| a != b);
        assert!(differing.count() <= count / 1000, "{name}");
        let scales = floats(&format!("{name}_scales"));
        assert!(close(&moments.scales(order), &scales) <= 1e-6, "{name}");
    }
}
