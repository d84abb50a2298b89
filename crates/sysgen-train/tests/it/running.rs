//! A run in a folder of its own, to be stopped and gone on with.

use std::collections::BTreeMap;

use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::config::{ModelSection, TrainSection};
use sysgen_model::{Decoder, Device, ExportDtype, ModelConfig, StoredDtype, Weight};
use sysgen_ops::Divergence;
use sysgen_train::batch::Batch;
use sysgen_train::checkpoint::Progress;
use sysgen_train::distill::Distiller;
use sysgen_train::example::Example;
use sysgen_train::identity::Identity;
use sysgen_train::method;
use sysgen_train::metrics::{self, Line};
use sysgen_train::on_policy::{Question, Written};
use sysgen_train::resume::checkpoint_to_resume;
use sysgen_train::run::{Finished, Outcome, Run, held_out_batches};

use crate::fixture;

/// Answers questions, for runs whose student writes.
type Writer = Box<dyn Fn(&Decoder, &[Question]) -> anyhow::Result<Vec<Written>>>;

pub(crate) struct World {
    _model: tempfile::TempDir, // removed at the end
    pub(crate) output: tempfile::TempDir,
    pub(crate) config: RunConfig,
    pub(crate) chat: Chat,
    pub(crate) examples: Vec<Example>,
    pub(crate) held_out: Vec<Batch>,
    pub(crate) identity: Identity,
    pub(crate) write: Option<Writer>,
}

impl World {
    pub(crate) fn new(train: TrainSection) -> World {
        let model = tempfile::tempdir().unwrap();
        fixture::model_folder(model.path());
        let f32 = ExportDtype::Of(StoredDtype::F32);
        fixture::decoder(model.path())
            .save(model.path(), f32, None)
            .unwrap();
        let output = tempfile::tempdir().unwrap();
        let chat = fixture::chat(model.path());
        let examples = fixture::examples(&chat, &fixture::rows(24));
        let held_out = held_out_batches(&fixture::examples(&chat, &fixture::rows(4)), &train, 2);
        let config = RunConfig {
            output_dir: output.path().into(),
            model: ModelSection {
                path: model.path().into(),
                ..ModelSection::default()
            },
            train: Some(train),
            ..RunConfig::default()
        };
        let identity = BTreeMap::from([("seed".to_string(), "0".to_string())]);
        World {
            _model: model,
            output,
            config,
            chat,
            examples,
            held_out,
            identity,
            write: None,
        }
    }

    pub(crate) fn run(&self) -> Run<'_> {
        Run {
            config: &self.config,
            train: self.config.train.as_ref().unwrap(),
            chat: &self.chat,
            examples: &self.examples,
            held_out: &self.held_out,
            identity: &self.identity,
            observe: None,
            write: self.write.as_deref(),
        }
    }

    /// As the program does: from the newest checkpoint, or from the start.
    pub(crate) fn go_on(&self, stop_after: Option<usize>) -> anyhow::Result<Outcome> {
        let run = self.run();
        match checkpoint_to_resume(self.output.path(), &self.identity)? {
            Some(newest) => {
                let mut trainer = run.resume(&newest, &Device::flex())?;
                trainer.distiller = self.distiller();
                trainer.use_devices(&self.devices());
                run.train(trainer, newest.state.progress, stop_after)
            }
            None => {
                let base = method::load_base(&self.config, &Device::flex())?;
                let decoder = method::with_adapters(base, run.train, self.config.seed)?;
                let mut trainer = run.start(decoder);
                trainer.distiller = self.distiller();
                trainer.use_devices(&self.devices());
                run.train(trainer, Progress::default(), stop_after)
            }
        }
    }

    /// The CPU as often as the config names it.
    fn devices(&self) -> Vec<Device> {
        method::devices(&self.config).unwrap()
    }

    /// Another model of the same tokenizer, where the config asks for a teacher.
    fn distiller(&self) -> Option<Distiller> {
        self.config.distill.as_ref()?;
        let config = ModelConfig::from_directory(&self.config.model.path).unwrap();
        let teacher = Decoder::random(config, 5, &Device::flex());
        Some(Distiller::of_model(teacher, Divergence::Jsd(0.3), 2.0, 0.5))
    }

    pub(crate) fn finish(&self) -> Finished {
        match self.go_on(None).unwrap() {
            Outcome::Finished(finished) => *finished,
            Outcome::Interrupted(at) => panic!("stopped at {}", at.display()),
        }
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = metrics::read(&self.output.path().join("metrics.jsonl")).unwrap();
        for line in &mut lines {
            line.seconds = 0.0; // the only thing that may differ
            line.tokens_per_second = None;
            line.supervised_tokens_per_second = None;
        }
        lines
    }
}

pub(crate) fn bits(finished: &Finished) -> Vec<Vec<u32>> {
    let bits = |weight: &Weight| weight.to_vec().into_iter().map(f32::to_bits).collect();
    finished
        .decoder
        .trainable()
        .iter()
        .map(|parameter| bits(&parameter.tensor))
        .collect()
}

pub(crate) fn train() -> TrainSection {
    TrainSection {
        eval_steps: 5,
        save_steps: 4,
        save_total_limit: 2,
        ..fixture::train_section()
    }
}
