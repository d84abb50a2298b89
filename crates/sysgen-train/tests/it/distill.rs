//! Distillation from the student's vocabulary: losses and gradients of TRL's definitions (`kd/` of the golden numbers), stored
//! probabilities against a teacher that is run.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sysgen_core::config::DistillSection;
use sysgen_model::{Decoder, Device};
use sysgen_ops::{Distillation, Divergence, Teacher, linear_distillation};
use sysgen_train::batch::Batch;
use sysgen_train::distill::Distiller;
use sysgen_train::example::Example;

use crate::fixture;
use crate::golden::{close, root};
use crate::taught::{World, trainer};

/// Absolute, on the loss of a token and on the gradient of a logit.
const TOKEN: f32 = 1e-5;

struct Kd {
    json: Value,
    bytes: Vec<u8>,
}

fn kd() -> Option<Kd> {
    let folder = root().join("kd");
    let Ok(bytes) = std::fs::read(folder.join("kd.safetensors")) else {
        eprintln!("SKIPPED: {} is absent", folder.display());
        return None;
    };
    let json = serde_json::from_slice(&std::fs::read(folder.join("kd.json")).unwrap()).unwrap();
    Some(Kd { json, bytes })
}

impl Kd {
    fn floats(&self, name: &str) -> Option<(Vec<f32>, Vec<usize>)> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).ok()?;
        let (values, _) = view.data().as_chunks::<4>();
        let values = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Some((values, view.shape().to_vec()))
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        let (values, _) = data.as_chunks::<8>();
        values.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }

    fn examples(&self) -> Vec<Example> {
        let (_, shape) = self.floats("teacher_logits").unwrap();
        let (ids, labels) = (self.integers("input_ids"), self.integers("labels"));
        let attended = self.integers("attention_mask");
        (0..shape[0])
            .map(|row| {
                let cells = row * shape[1]..(row + 1) * shape[1];
                let length = attended[cells.clone()].iter().sum::<i64>() as usize;
                let learn = labels[cells.clone()].iter().enumerate();
                Example {
                    id: row.to_string(),
                    set: 0,
                    ids: ids[cells]
                        .iter()
                        .take(length)
                        .map(|&id| id as u32)
                        .collect(),
                    learn: learn
                        .map(|(at, &label)| at > 0 && label != -100)
                        .take(length)
                        .collect(),
                }
            })
            .collect()
    }

    fn batch(&self) -> Batch {
        let examples = self.examples();
        let rows: Vec<Vec<usize>> = (0..examples.len()).map(|row| vec![row]).collect();
        Batch::new(&examples, &rows, 0)
    }

    /// Name, definition and temperature of every loss.
    fn losses(&self) -> Vec<(String, Divergence, f32)> {
        let losses = self.json["losses"].as_object().unwrap();
        losses
            .iter()
            .map(|(name, loss)| {
                let beta = loss["beta"].as_f64().unwrap() as f32;
                let divergence = match beta {
                    0.0 => Divergence::ForwardKl,
                    1.0 => Divergence::ReverseKl,
                    beta => Divergence::Jsd(beta),
                };
                let temperature = loss["temperature"].as_f64().unwrap() as f32;
                (name.clone(), divergence, temperature)
            })
            .collect()
    }
}

#[test]
fn golden_kd_losses_and_their_gradients_by_the_logits() {
    let Some(kd) = kd() else { return };
    let (batch, device) = (kd.batch(), Device::flex());
    let (student, shape) = kd.floats("student_logits").unwrap();
    let (teacher, _) = kd.floats("teacher_logits").unwrap();
    let vocab = shape[2];
    let at = |all: &[f32]| -> Vec<f32> {
        let rows = batch.predict_at.iter().map(|&at| at as usize * vocab);
        rows.flat_map(|from| all[from..from + vocab].to_vec())
            .collect()
    };
    let matrix = |values: Vec<f32>| -> Tensor<2> {
        let rows = values.len() / vocab;
        Tensor::from_data(TensorData::new(values, [rows, vocab]), &device)
    };
    // With a head that changes nothing, the hidden states are the logits.
    let head = || Tensor::<2>::eye(vocab, &device);
    let mut gradients = 0;
    for (name, divergence, temperature) in kd.losses() {
        let teacher = Teacher::Hidden {
            hidden: matrix(at(&teacher)),
            head: head(),
            softcap: None,
        };
        let settings = Distillation {
            divergence,
            temperature,
            weight: 1.0,
            cross_entropy_weight: 0.0,
            softcap: None,
        };
        let logits = matrix(at(&student)).autodiff().require_grad();
        let targets = &batch.targets;
        let losses = linear_distillation(
            logits.clone(),
            head().autodiff(),
            targets,
            &teacher,
            settings,
        );
        let count = targets.len() as f64;
        let all = losses.clone().sum().div_scalar(count).backward();
        let losses = losses.inner().try_into_vec_as::<f32>().unwrap();
        // The loss of a token is stored at the token, one after the position that predicts it.
        let (stored, _) = kd.floats(&format!("{name}.token_loss")).unwrap();
        let expected: Vec<f32> = batch
            .predict_at
            .iter()
            .map(|&at| stored[at as usize + 1])
            .collect();
        let difference = close(&losses, &expected);
        assert!(difference <= TOKEN, "{name}: {difference:e}");
        let mean = losses.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let expected = kd.json["losses"][&name]["mean_float64"].as_f64().unwrap();
        assert!((mean - expected).abs() < 1e-6, "{name}: mean {mean}");
        if let Some((stored, _)) = kd.floats(&format!("{name}.grad_student_logits")) {
            let ours = logits.grad(&all).unwrap().try_into_vec_as::<f32>().unwrap();
            let difference = close(&ours, &at(&stored));
            assert!(difference <= 1e-7, "{name}: gradient {difference:e}");
            gradients += 1;
        }
    }
    assert!(gradients >= 3, "gradients that were compared");
}

#[test]
fn golden_kd_of_two_models_has_the_gradient_norm_of_the_student() {
    let Some(kd) = kd() else { return };
    let load = |name: &str| Decoder::load(&root().join(name), &Device::flex()).unwrap();
    let own_words = Batch {
        on_policy: true,
        ..kd.batch()
    };
    // Of words the student wrote itself the distance alone counts, whatever its share elsewhere.
    for (alpha, batch) in [(1.0, kd.batch()), (0.3, own_words)] {
        for (name, divergence, temperature) in kd.losses() {
            let teacher = load("llama31");
            let distiller = Distiller::of_model(teacher, divergence, temperature, alpha);
            let mut trainer = trainer(load("kd/student"), Some(distiller));
            let report = trainer.step(std::slice::from_ref(&batch), 0.0);
            let expected = &kd.json["losses"][&name];
            let loss = report.loss - expected["mean"].as_f64().unwrap();
            let norm = report.grad_norm / expected["student_grad_norm"].as_f64().unwrap() - 1.0;
            assert!(
                loss.abs() <= 1e-5 && norm.abs() <= 1e-4,
                "{name}: loss differs by {loss:e}, gradient norm by {norm:e}"
            );
        }
    }
}

#[test]
fn stored_probabilities_of_all_words_are_the_teacher_itself() {
    let world = World::new();
    world.store(fixture::VOCAB, |_| {});
    let run = DistillSection {
        teacher: world.dir.path().join("teacher"),
        alpha: 0.6,
        ..DistillSection::default()
    };
    let stored = DistillSection {
        teacher: Default::default(),
        ..run.clone()
    };
    let online = world.step(world.distiller(&run).unwrap());
    let (probabilities, examples) = world.stored(false).unwrap();
    assert!(examples.unfit.is_empty());
    let offline = world.step(Distiller::of_stored(&stored, Arc::new(probabilities)));
    assert!(
        (online.loss - offline.loss).abs() < 1e-5,
        "{online:?} {offline:?}"
    );
    assert!((online.grad_norm / offline.grad_norm - 1.0).abs() < 1e-3);
    // It is not the data's loss alone.
    let plain = trainer(world.decoder("student"), None).step(&[world.batch()], 1e-3);
    assert!((plain.loss - online.loss).abs() > 1e-3);
}

#[test]
fn a_row_that_does_not_fit_its_stored_probabilities_is_counted_and_left_out() {
    let world = World::new();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 6] = [
        ("tokens with its stop token", |teacher| {
            teacher["ids"].as_array_mut().unwrap().pop();
        }),
        ("names the token 999", |teacher| {
            teacher["ids"][0][0] = json!(999);
        }),
        ("top_k = 9", |teacher| teacher["top_k"] = json!(9)),
        ("logarithms", |teacher| {
            teacher["log_probabilities"][0][0] = json!(0.5);
        }),
        ("other tokens than those the teacher wrote", |teacher| {
            teacher["answer_ids"] = json!([1, 2, 3]);
        }),
        ("no `sysgen.teacher`", |teacher| *teacher = Value::Null),
    ];
    for (expected, change) in cases {
        let number = std::cell::Cell::new(0);
        world.store(fixture::VOCAB, |teacher| {
            number.set(number.get() + 1);
            if number.get() == 3 {
                change(teacher);
            }
        });
        let (stored, examples) = world.stored(false).unwrap();
        assert_eq!([stored.len(), examples.examples.len()], [5, 5]);
        let (id, reason) = &examples.unfit[0];
        assert!(
            id == "row-2" && reason.contains(expected) && reason.contains("rows.jsonl:3"),
            "{id}: {reason}"
        );
        let said = format!("{:#}", world.stored(true).err().unwrap());
        assert!(said.contains(expected) && said.contains("strict"), "{said}");

        world.store(fixture::VOCAB, change);
        let said = format!("{:#}", world.stored(false).err().unwrap());
        assert!(said.contains("no row") && said.contains(expected), "{said}");
    }
}

/// `plan --measure` trains as a run does: with what is stored, and on all devices.
#[test]
fn a_plan_measures_with_stored_probabilities_and_further_devices() {
    let world = World::new();
    world.store(fixture::VOCAB, |_| ());
    let config = "output_dir = \"run\"\ndevice = \"cpu\"\n[model]\npath = \"student\"\n[data]\npath = \"rows.jsonl\"\n\
         existing_system = \"keep\"\n[train]\nmax_length = 128\nper_device_train_batch_size = 1\neval_fraction = 0.0\n\
         samples = 0\nmax_steps = 4\n[distill]\n";
    std::fs::write(world.dir.path().join("c.toml"), config).unwrap();
    for sets in [
        vec![],
        vec!["train.devices=[\"cpu\", \"cpu\"]"],
        vec![
            "train.devices=[\"cpu\", \"cpu\"]",
            "distill.teacher=teacher",
        ],
    ] {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_sysgen-train"));
        program.current_dir(world.dir.path());
        program.args(["plan", "--measure", "--json", "--config", "c.toml"]);
        for set in &sets {
            program.args(["--set", set]);
        }
        let output = program.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sets:?}: {said}");
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(plan["seconds_per_step"].as_f64().unwrap() > 0.0, "{plan}");
    }
}

#[test]
fn stored_probabilities_of_another_tokenizer_are_refused() {
    let world = World::new();
    world.store(8, |teacher| {
        for words in teacher["ids"].as_array_mut().unwrap() {
            *words = json!((0..8).map(|word| 200 + word).collect::<Vec<_>>());
        }
    });
    let said = format!("{:#}", world.stored(false).err().unwrap());
    assert!(said.contains("another tokenizer"), "{said}");
}
