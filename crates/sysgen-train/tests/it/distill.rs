//! Distillation: losses and gradients of TRL's definitions (`kd/` of the golden numbers), stored probabilities against a
//! teacher that is run, tokenizers compared, two tokenizations aligned.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::config::{CrossTokenizer, DataSection, DistillSection, ModelSection};
use sysgen_model::{Decoder, Device, ExportDtype, StoredDtype, Tokens};
use sysgen_ops::{AdamW, Distillation, Divergence, Teacher, linear_distillation};
use sysgen_train::align::align;
use sysgen_train::batch::Batch;
use sysgen_train::distill::{Distiller, Vocabularies, compare, distiller};
use sysgen_train::example::{Example, Examples};
use sysgen_train::optim::Optimizer;
use sysgen_train::stored_teacher::{self, Stored};
use sysgen_train::trainer::{StepReport, Trainer};

use crate::fixture;
use crate::golden::{close, root};

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

fn trainer(decoder: Decoder, distiller: Option<Distiller>) -> Trainer {
    let settings = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        rounding_seed: 0,
    };
    let optimizer = Optimizer::new(&decoder.trainable(), settings);
    let mut trainer = Trainer::new(decoder, optimizer, 0.0);
    trainer.distiller = distiller;
    trainer
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

/// A student and a teacher of the fixture's tokenizer on disk, and rows.
struct World {
    dir: tempfile::TempDir,
    config: RunConfig,
    chat: Chat,
    rows: Vec<sysgen_train::rows::Row>,
    examples: Vec<Example>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        for name in ["student", "teacher"] {
            let folder = dir.path().join(name);
            fixture::model_folder(&folder);
            save(&folder, if name == "student" { 1 } else { 2 });
        }
        let chat = fixture::chat(&dir.path().join("student"));
        let rows = fixture::rows(6);
        World {
            config: RunConfig {
                model: ModelSection {
                    path: dir.path().join("student"),
                    ..ModelSection::default()
                },
                data: DataSection {
                    path: vec![dir.path().join("rows.jsonl")],
                    ..DataSection::default()
                },
                ..RunConfig::default()
            },
            examples: fixture::examples(&chat, &rows),
            chat,
            rows,
            dir,
        }
    }

    fn decoder(&self, name: &str) -> Decoder {
        Decoder::load(&self.dir.path().join(name), &Device::flex()).unwrap()
    }

    fn distiller(&self, distill: &DistillSection) -> anyhow::Result<Distiller> {
        let rows = self.decoder("student").config.vocab_size;
        distiller(
            &self.config,
            distill,
            &self.chat,
            rows,
            &self.rows,
            &self.examples,
            &Device::flex(),
        )
    }

    /// What is stored with the rows, and the examples it fits.
    fn stored(&self, strict: bool) -> anyhow::Result<(Stored, Examples)> {
        let mut examples = Examples {
            examples: self.examples.clone(),
            ..Examples::default()
        };
        let mut config = self.config.clone();
        config.data.strict = strict;
        let stored = stored_teacher::read(&config, &mut examples, fixture::VOCAB)?;
        Ok((stored, examples))
    }

    /// Conversations packed two in a row.
    fn batch(&self) -> Batch {
        Batch::new(&self.examples, &[vec![0, 1], vec![2, 3], vec![4, 5]], 2)
    }

    fn step(&self, distiller: Distiller) -> StepReport {
        trainer(self.decoder("student"), Some(distiller)).step(&[self.batch()], 1e-3)
    }

    /// Writes the rows with the teacher's `k` most likely words.
    fn store(&self, k: usize, change: impl Fn(&mut Value)) {
        let teacher = self.decoder("teacher");
        let mut lines = String::new();
        for (row, example) in self.rows.iter().zip(&self.examples) {
            let tokens = Tokens::padded(&[&example.ids], 0);
            let logits = teacher.logits(teacher.hidden(&tokens));
            let logs = burn::tensor::activation::log_softmax(logits, 2);
            let logs = logs.try_into_vec_as::<f32>().unwrap();
            let vocab = teacher.config.vocab_size;
            let (mut ids, mut values) = (Vec::new(), Vec::new());
            for at in (1..example.ids.len()).filter(|&at| example.learn[at]) {
                let logs = &logs[(at - 1) * vocab..at * vocab];
                let mut order: Vec<usize> = (0..vocab).collect();
                order.sort_by(|&a, &b| logs[b].total_cmp(&logs[a]));
                order.truncate(k);
                values.push(order.iter().map(|&id| logs[id]).collect::<Vec<f32>>());
                ids.push(order);
            }
            let mut line = json!({
                "id": row.id, "messages": row.messages,
                "sysgen": {"teacher": {"top_k": k, "ids": ids, "log_probabilities": values}},
            });
            change(&mut line["sysgen"]["teacher"]);
            lines += &format!("{line}\n");
        }
        std::fs::write(self.dir.path().join("rows.jsonl"), lines).unwrap();
    }
}

fn save(folder: &Path, seed: u64) {
    let config = sysgen_model::ModelConfig::from_directory(folder).unwrap();
    Decoder::random(config, seed, &Device::flex())
        .save(folder, ExportDtype::Of(StoredDtype::F32), None)
        .unwrap();
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

/// The fixture's tokenizer with one more token, `re`.
fn with_a_merge(folder: &Path) {
    let path = folder.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["model"]["vocab"]["re"] = json!(fixture::VOCAB);
    json["model"]["merges"] = json!([["r", "e"]]);
    std::fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn the_vocabularies_are_compared_by_what_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, rows: usize| {
        let path = dir.path().join(name);
        fixture::model_folder_with(&path, fixture::TEMPLATE, rows);
        path
    };
    let one = fixture::chat(&folder("one", fixture::VOCAB));
    let foreign = folder("foreign", fixture::VOCAB + 1);
    with_a_merge(&foreign);
    let foreign = fixture::chat(&foreign);
    let sizes = [fixture::VOCAB; 2];
    assert_eq!(compare(&one, &one, sizes, ["text"]), Vocabularies::Same);
    let padded = compare(&one, &one, [fixture::VOCAB, fixture::VOCAB + 12], ["text"]);
    assert!(matches!(padded, Vocabularies::Padded { .. }));
    let different = compare(&one, &foreign, sizes, ["text"]);
    assert!(
        matches!(different, Vocabularies::Different { .. }),
        "{different}"
    );
}

#[test]
fn a_teacher_of_another_tokenizer_is_refused_or_aligned() {
    let world = World::new();
    let teacher = world.dir.path().join("teacher");
    std::fs::remove_dir_all(&teacher).unwrap();
    fixture::model_folder_with(&teacher, fixture::TEMPLATE, fixture::VOCAB + 1);
    with_a_merge(&teacher);
    save(&teacher, 2);
    let refused = DistillSection {
        teacher: teacher.clone(),
        alpha: 1.0,
        ..DistillSection::default()
    };
    let said = format!("{:#}", world.distiller(&refused).err().unwrap());
    assert!(said.contains("cross_tokenizer = \"uld\""), "{said}");

    let aligned = align(
        &world.chat,
        &fixture::chat(&teacher),
        &world.rows,
        &world.examples,
    );
    let aligned = aligned.unwrap();
    for (row, example) in world.rows.iter().zip(&world.examples) {
        let (row_aligned, answer) = (&aligned[&row.id], &row.messages[2].content);
        // Bytes on the student's side: the `e` of every `re` begins inside a token of the teacher.
        let inside: Vec<bool> = (0..=answer.len())
            .map(|at| {
                at > 0 && answer.as_bytes()[..at].ends_with(b"r") && answer[at..].starts_with('e')
            })
            .collect();
        let missing: Vec<bool> = row_aligned.teacher_at.iter().map(Option::is_none).collect();
        assert_eq!(missing, inside, "{answer}");
        assert_eq!(example.supervised(), inside.len());
    }

    let uld = DistillSection {
        cross_tokenizer: CrossTokenizer::Uld,
        ..refused
    };
    let mut trainer = trainer(
        world.decoder("student"),
        Some(world.distiller(&uld).unwrap()),
    );
    let losses: Vec<f64> = (0..30)
        .map(|_| trainer.step(&[world.batch()], 5e-3).loss)
        .collect();
    assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
}
