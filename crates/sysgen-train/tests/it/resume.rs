//! A run that was stopped and gone on with is the run that was never stopped, bit for bit.

use std::collections::BTreeMap;

use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::config::{
    DeviceChoice, DistillSection, ModelSection, Optim, SaveStrategy, TrainDtype, TrainMethod,
    TrainSection,
};
use sysgen_model::{Decoder, Device, ExportDtype, ModelConfig, StoredDtype, Weight};
use sysgen_ops::Divergence;
use sysgen_train::batch::Batch;
use sysgen_train::checkpoint::{self, Progress};
use sysgen_train::distill::Distiller;
use sysgen_train::example::Example;
use sysgen_train::identity::Identity;
use sysgen_train::method;
use sysgen_train::metrics::{self, Line};
use sysgen_train::on_policy::{Question, Written};
use sysgen_train::row_losses;
use sysgen_train::run::{Finished, Outcome, Run, checkpoint_to_resume, held_out_batches};

use crate::fixture;

/// Answers questions, for runs whose student writes.
type Writer = Box<dyn Fn(&Decoder, &[Question]) -> anyhow::Result<Vec<Written>>>;

pub(crate) struct World {
    _model: tempfile::TempDir, // removed at the end
    output: tempfile::TempDir,
    pub(crate) config: RunConfig,
    pub(crate) chat: Chat,
    pub(crate) examples: Vec<Example>,
    held_out: Vec<Batch>,
    identity: Identity,
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

    fn run(&self) -> Run<'_> {
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
        ..fixture::train_section()
    }
}

#[test]
fn a_resumed_run_is_the_undisturbed_run_bit_for_bit() {
    resumed_is_undisturbed(train, None);
}

#[test]
fn so_is_one_with_moments_in_eight_bits() {
    let train = || TrainSection {
        optim: Optim::Adamw8bit,
        ..train()
    };
    resumed_is_undisturbed(train, None);
}

#[test]
fn so_is_one_that_updates_on_the_way_back() {
    for (method, optim) in [
        (TrainMethod::Full, Optim::Adamw),
        (TrainMethod::Full, Optim::Adamw8bit),
        (TrainMethod::Lora, Optim::Adamw),
    ] {
        let train = || TrainSection {
            method,
            optim,
            lora_dropout: 0.1,
            optimizer_in_backward: true,
            gradient_accumulation_steps: 1,
            max_grad_norm: 0.0,
            ..train()
        };
        resumed_is_undisturbed(train, None);
    }
}

#[test]
fn so_is_one_with_weights_in_bf16() {
    for (method, optim, optimizer_in_backward) in [
        (TrainMethod::Full, Optim::Adamw, false),
        (TrainMethod::Full, Optim::Adamw8bit, true),
        (TrainMethod::Lora, Optim::Adamw, false),
    ] {
        let train = || TrainSection {
            method,
            optim,
            dtype: TrainDtype::Bf16,
            optimizer_in_backward,
            gradient_accumulation_steps: if optimizer_in_backward { 1 } else { 2 },
            max_grad_norm: if optimizer_in_backward { 0.0 } else { 1.0 },
            ..train()
        };
        resumed_is_undisturbed(train, None);
    }
}

#[test]
fn so_is_one_with_a_teacher() {
    resumed_is_undisturbed(train, Some(DistillSection::default()));
}

#[test]
fn so_is_one_with_adapters_that_drop_their_input() {
    for (method, use_dora) in [
        (TrainMethod::Lora, false),
        (TrainMethod::Lora, true),
        (TrainMethod::Qlora, false),
    ] {
        let train = || TrainSection {
            method,
            use_dora,
            lora_r: 4,
            lora_dropout: 0.1,
            gradient_checkpointing: use_dora,
            ..train()
        };
        resumed_is_undisturbed(train, None);
    }
}

fn resumed_is_undisturbed(train: impl Fn() -> TrainSection, distill: Option<DistillSection>) {
    let mut undisturbed = World::new(train());
    undisturbed.config.distill = distill.clone();
    undisturbed.config.seed = 7; // not the default, so that one that is forgotten shows
    let expected = undisturbed.finish();
    assert_eq!(expected.progress.step, 12);
    assert!(
        expected.held_out_after.unwrap() < expected.held_out_before.unwrap(),
        "it should have learnt something"
    );

    let mut stopped = World::new(train());
    stopped.config.distill = distill;
    stopped.config.seed = 7;
    for stop_after in [3, 4, 7] {
        let Outcome::Interrupted(saved) = stopped.go_on(Some(stop_after)).unwrap() else {
            panic!("did not stop")
        };
        assert_eq!(
            saved,
            stopped
                .output
                .path()
                .join(format!("checkpoint-{stop_after}"))
        );
    }
    let found = stopped.finish();
    assert_eq!(bits(&expected), bits(&found));
    assert_eq!(undisturbed.lines(), stopped.lines());
    let same = |a: &Progress, b: &Progress| {
        (a.step, a.updates, a.num_tokens, a.supervised_tokens)
            == (b.step, b.updates, b.num_tokens, b.supervised_tokens)
    };
    assert!(same(&expected.progress, &found.progress));
}

#[test]
fn steps_after_the_last_checkpoint_are_done_again_and_logged_once() {
    let world = World::new(train());
    let _ = world.go_on(Some(6)).unwrap();
    // As after `kill -9` at step 6: the checkpoint of step 6 is not there, the metrics are.
    std::fs::remove_dir_all(world.output.path().join("checkpoint-6")).unwrap();
    world.finish();
    let steps: Vec<usize> = world.lines().iter().map(|line| line.step).collect();
    assert_eq!(steps, (0..=12).collect::<Vec<_>>());
}

#[test]
fn an_incomplete_checkpoint_is_ignored() {
    let world = World::new(train());
    let _ = world.go_on(Some(8)).unwrap();
    let newest = world.output.path().join("checkpoint-8");
    let moments = newest.join("optimizer.safetensors");
    let whole = std::fs::read(&moments).unwrap();
    std::fs::write(&moments, &whole[..whole.len() / 2]).unwrap();
    let found = checkpoint::find(world.output.path()).unwrap();
    assert_eq!(found.complete.last().unwrap().state.progress.step, 4);
    assert_eq!(found.incomplete[0].0, newest);
    assert!(
        found.incomplete[0].1.contains("optimizer.safetensors has"),
        "{}",
        found.incomplete[0].1
    );

    std::fs::remove_file(newest.join("trainer_state.json")).unwrap();
    let found = checkpoint::find(world.output.path()).unwrap();
    assert!(
        found.incomplete[0].1.contains("no trainer_state.json"),
        "{}",
        found.incomplete[0].1
    );
    assert_eq!(world.finish().progress.step, 12);
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let world = World::new(TrainSection {
        save_steps: 3,
        save_total_limit: 2,
        ..train()
    });
    world.finish();
    let steps: Vec<usize> = checkpoint::find(world.output.path())
        .unwrap()
        .complete
        .iter()
        .map(|c| c.state.progress.step)
        .collect();
    assert_eq!(steps, [9, 12]);
}

#[test]
fn every_epoch_can_be_kept() {
    let world = World::new(TrainSection {
        save_strategy: SaveStrategy::Epoch,
        save_steps: 0,
        save_total_limit: 0,
        max_steps: 0,
        num_train_epochs: 2.5,
        ..train()
    });
    let steps = world.run().order().steps_per_epoch();
    let last = world.finish().progress.step;
    assert!(
        steps > 1 && last > 2 * steps,
        "{last} steps, {steps} an epoch"
    );
    let found = checkpoint::find(world.output.path()).unwrap().complete;
    let saved: Vec<usize> = found.iter().map(|c| c.state.progress.step).collect();
    assert_eq!(saved, [steps, 2 * steps, last]);
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_what_differs() {
    let mut world = World::new(train());
    let _ = world.go_on(Some(4)).unwrap();
    world.identity.insert("seed".into(), "1".into());
    let error = world.go_on(None).err().unwrap().to_string();
    assert!(
        error.contains("seed was 0, is 1") && error.contains("output_dir"),
        "{error}"
    );
}

#[test]
fn a_finished_run_is_not_trained_again() {
    let world = World::new(train());
    let first = world.finish();
    let again = world.finish();
    assert_eq!(bits(&first), bits(&again));
    assert_eq!(first.held_out_after, again.held_out_after);
    assert_eq!(world.lines().len(), 13);
}

#[test]
fn too_many_steps_that_are_not_finite_stop_the_run_and_name_the_rows() {
    let world = World::new(TrainSection {
        learning_rate: 1e30,
        max_grad_norm: 0.0,
        warmup_steps: 0,
        max_nonfinite_steps: 2,
        ..train()
    });
    let error = world.go_on(None).err().unwrap().to_string();
    assert!(
        error.contains("2 steps")
            && error.contains("row-")
            && error.contains("max_nonfinite_steps = 2"),
        "{error}"
    );
    let skipped: Vec<Line> = world
        .lines()
        .into_iter()
        .filter(|line| line.skipped_rows.is_some())
        .collect();
    assert_eq!(skipped.len(), 2);
    assert!(
        skipped
            .iter()
            .all(|line| !line.skipped_rows.as_ref().unwrap().is_empty())
    );
}

/// A run whose evaluations get worse from some step on: far too high a learning rate.
fn worsening() -> TrainSection {
    TrainSection {
        learning_rate: 0.3,
        warmup_steps: 0,
        max_steps: 30,
        eval_steps: 1,
        save_steps: 0,
        save_total_limit: 1,
        ..train()
    }
}

#[test]
fn a_run_whose_evaluations_get_worse_stops_early_and_stays_stopped() {
    let world = World::new(TrainSection {
        early_stopping_patience: 3,
        ..worsening()
    });
    let finished = world.finish();
    let progress = &finished.progress;
    assert!(progress.stopped_early && progress.step < 30, "{progress:?}");
    assert_eq!(progress.step, progress.best.step + 3);
    assert_eq!(world.finish().progress.step, progress.step);
}

#[test]
fn the_best_model_is_kept_beyond_the_limit_and_taken_at_the_end() {
    let world = World::new(TrainSection {
        load_best_model_at_end: true,
        max_steps: 12,
        ..worsening()
    });
    let finished = world.finish();
    let best = finished.best_step.expect("the last step is not the best");
    let lowest = world
        .lines()
        .into_iter()
        .filter(|line| line.step > 0)
        .min_by(|a, b| a.eval_loss.partial_cmp(&b.eval_loss).unwrap())
        .unwrap();
    assert_eq!(best, lowest.step);
    assert_eq!(finished.held_out_after, lowest.eval_loss);
    let of_finished = sysgen_train::trainer::mean_loss(&finished.decoder, &world.held_out);
    assert_eq!(Some(of_finished), lowest.eval_loss);
    // Interrupted in between, the same model comes out.
    let stopped = World::new(TrainSection {
        load_best_model_at_end: true,
        max_steps: 12,
        ..worsening()
    });
    stopped.go_on(Some(best + 1)).unwrap();
    assert_eq!(bits(&stopped.finish()), bits(&finished));
}

#[test]
fn every_step_leads_to_its_rows_and_their_losses_also_after_a_resume() {
    let undisturbed = World::new(train());
    undisturbed.finish();
    let stopped = World::new(train());
    stopped.go_on(Some(5)).unwrap();
    stopped.finish();
    let rows =
        |world: &World| row_losses::read(&world.output.path().join(row_losses::FILE)).unwrap();
    let steps = rows(&undisturbed);
    assert_eq!(steps, rows(&stopped));
    assert_eq!(steps.len(), 12);
    for (step, line) in steps.iter().zip(&undisturbed.lines()[1..]) {
        assert_eq!(step.step, line.step);
        assert_eq!(
            step.supervised_tokens.iter().sum::<usize>(),
            line.supervised_tokens.unwrap()
        );
        let difference = (step.loss() - line.loss.unwrap()).abs();
        assert!(
            difference < 1e-5,
            "the rows' losses do not add up to the step's: {difference}"
        );
    }
    let seen: std::collections::BTreeSet<&String> =
        steps.iter().flat_map(|step| &step.rows).collect();
    assert_eq!(seen.len(), undisturbed.examples.len());
}

#[test]
fn a_run_goes_on_with_another_number_of_devices_to_the_bit() {
    let with = |devices: usize, accumulation: usize, method: TrainMethod| TrainSection {
        devices: vec![DeviceChoice::Cpu; devices],
        gradient_accumulation_steps: accumulation,
        method,
        lora_dropout: 0.1,
        ..train()
    };
    for method in [TrainMethod::Full, TrainMethod::Lora] {
        let alone = World::new(with(1, 4, method));
        let expected = alone.finish();
        let mut changing = World::new(with(2, 2, method));
        let identity = |world: &World| {
            let examples = &world.examples;
            sysgen_train::identity::identity(&world.config, &world.chat, examples, &[]).unwrap()
        };
        let started = identity(&changing);
        changing.go_on(Some(5)).unwrap();
        changing.config.train = Some(with(4, 1, method));
        assert_eq!(started, identity(&changing));
        changing.go_on(Some(9)).unwrap();
        changing.config.train = Some(with(1, 4, method));
        assert_eq!(bits(&changing.finish()), bits(&expected));
        assert_eq!(changing.lines(), alone.lines());
        changing.config.train = Some(with(2, 4, method));
        let differs = sysgen_train::identity::differences(&started, &identity(&changing));
        assert_eq!(differs, ["micro-batches of a step was 4, is 8"]);
    }
}
