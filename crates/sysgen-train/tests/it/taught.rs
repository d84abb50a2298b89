//! A student and a teacher on disk, with rows to distil from.

use std::path::Path;

use serde_json::{Value, json};
use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::config::{DataSection, DistillSection, ModelSection};
use sysgen_model::{Decoder, Device, ExportDtype, StoredDtype, Tokens};
use sysgen_ops::AdamW;
use sysgen_train::batch::Batch;
use sysgen_train::distill::{Distiller, TeacherChat, distiller};
use sysgen_train::example::{Example, Examples};
use sysgen_train::optim::Optimizer;
use sysgen_train::stored_teacher::{self, Stored};
use sysgen_train::trainer::{StepReport, Trainer};

use crate::fixture;

pub(crate) fn trainer(decoder: Decoder, distiller: Option<Distiller>) -> Trainer {
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

/// A student and a teacher of the fixture's tokenizer on disk, and rows.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: RunConfig,
    pub(crate) chat: Chat,
    pub(crate) rows: Vec<sysgen_train::rows::Row>,
    pub(crate) examples: Vec<Example>,
}

impl World {
    pub(crate) fn new() -> World {
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

    pub(crate) fn decoder(&self, name: &str) -> Decoder {
        Decoder::load(&self.dir.path().join(name), &Device::flex()).unwrap()
    }

    pub(crate) fn teacher(&self, distill: &DistillSection) -> TeacherChat {
        let student_rows = self.decoder("student").config.vocab_size;
        TeacherChat::load(&self.config, distill, &self.chat, student_rows, &self.rows).unwrap()
    }

    pub(crate) fn distiller(&self, distill: &DistillSection) -> anyhow::Result<Distiller> {
        self.distiller_of(distill, &self.teacher(distill))
    }

    pub(crate) fn distiller_of(
        &self,
        distill: &DistillSection,
        teacher: &TeacherChat,
    ) -> anyhow::Result<Distiller> {
        let (rows, examples) = (&self.rows, &self.examples);
        distiller(
            distill,
            &self.chat,
            teacher,
            rows,
            examples,
            &Device::flex(),
        )
    }

    /// What is stored with the rows, and the examples it fits.
    pub(crate) fn stored(&self, strict: bool) -> anyhow::Result<(Stored, Examples)> {
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
    pub(crate) fn batch(&self) -> Batch {
        Batch::new(&self.examples, &[vec![0, 1], vec![2, 3], vec![4, 5]], 2)
    }

    pub(crate) fn step(&self, distiller: Distiller) -> StepReport {
        trainer(self.decoder("student"), Some(distiller)).step(&[self.batch()], 1e-3)
    }

    /// Writes the rows with the teacher's `k` most likely words.
    pub(crate) fn store(&self, k: usize, change: impl Fn(&mut Value)) {
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

/// Random weights.
pub(crate) fn save(folder: &Path, seed: u64) {
    let config = sysgen_model::ModelConfig::from_directory(folder).unwrap();
    Decoder::random(config, seed, &Device::flex())
        .save(folder, ExportDtype::Of(StoredDtype::F32), None)
        .unwrap();
}
