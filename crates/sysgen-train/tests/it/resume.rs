//! A run that was stopped and gone on with is the run that was never stopped, bit for bit.

use sysgen_core::config::{
    DeviceChoice, DistillSection, Optim, TrainDtype, TrainMethod, TrainSection,
};
use sysgen_model::Device;
use sysgen_train::checkpoint::{self, Progress};
use sysgen_train::method;
use sysgen_train::row_losses;
use sysgen_train::run::Outcome;

use crate::running::{World, bits, train};

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

/// What is trained on one row from one beginning, by the seed alone.
fn trained(train: TrainSection, seed: u64) -> Vec<Vec<u32>> {
    let mut world = World::new(train);
    world.config.seed = seed;
    world.examples.truncate(1);
    let run = world.run();
    let base = method::load_base(&world.config, &Device::flex()).unwrap();
    let decoder = method::with_adapters(base, run.train, 0).unwrap();
    let ended = run.train(run.start(decoder), Progress::default(), None);
    let Outcome::Finished(finished) = ended.unwrap() else {
        panic!("it was stopped");
    };
    let parameters = finished.decoder.trainable();
    let values = parameters.iter().map(|p| p.tensor.to_vec());
    values
        .map(|values| values.into_iter().map(f32::to_bits).collect())
        .collect()
}

#[test]
fn what_is_dropped_and_how_bf16_is_rounded_is_drawn_from_the_seed() {
    let lora = |lora_dropout: f64| TrainSection {
        method: TrainMethod::Lora,
        lora_dropout,
        ..train()
    };
    let full = |dtype: TrainDtype| TrainSection { dtype, ..train() };
    // Nothing else of a run of one row is.
    assert!(trained(lora(0.0), 1) == trained(lora(0.0), 2));
    assert!(trained(full(TrainDtype::F32), 1) == trained(full(TrainDtype::F32), 2));
    assert!(trained(lora(0.1), 1) != trained(lora(0.1), 2));
    assert!(trained(full(TrainDtype::Bf16), 1) != trained(full(TrainDtype::Bf16), 2));
    assert!(trained(full(TrainDtype::Bf16), 1) == trained(full(TrainDtype::Bf16), 1));
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
    let teacher = || Some(DistillSection::default());
    let (full, lora) = (TrainMethod::Full, TrainMethod::Lora);
    for (method, optim, dtype, distill) in [
        (full, Optim::Adamw, TrainDtype::Auto, None),
        (lora, Optim::Adamw, TrainDtype::Auto, None),
        (full, Optim::Adamw8bit, TrainDtype::Auto, teacher()),
        (full, Optim::Adamw, TrainDtype::Bf16, None),
        (full, Optim::Adamw8bit, TrainDtype::Bf16, None),
        (lora, Optim::Adamw8bit, TrainDtype::Bf16, teacher()),
    ] {
        let with = |devices: usize, accumulation: usize| TrainSection {
            devices: vec![DeviceChoice::Cpu; devices],
            gradient_accumulation_steps: accumulation,
            method,
            optim,
            dtype,
            lora_dropout: 0.1,
            ..train()
        };
        let world = |train: TrainSection| {
            let mut world = World::new(train);
            world.config.distill = distill.clone();
            world.config.seed = 7; // not the default, so that one that is forgotten shows
            world
        };
        let alone = world(with(1, 4));
        let expected = alone.finish();
        let mut changing = world(with(2, 2));
        let identity = |world: &World| {
            let examples = &world.examples;
            sysgen_train::identity::identity(&world.config, &world.chat, examples, &[], None)
                .unwrap()
        };
        let started = identity(&changing);
        changing.go_on(Some(5)).unwrap();
        changing.config.train = Some(with(4, 1));
        assert_eq!(started, identity(&changing));
        changing.go_on(Some(9)).unwrap();
        changing.config.train = Some(with(1, 4));
        assert_eq!(bits(&changing.finish()), bits(&expected));
        assert_eq!(changing.lines(), alone.lines());
        changing.config.train = Some(with(2, 4));
        let differs = sysgen_train::identity::differences(&started, &identity(&changing));
        assert_eq!(differs, ["micro-batches of a step was 4, is 8"]);
    }
}
