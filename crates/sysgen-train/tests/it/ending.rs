//! How a run ends, early or at its last step, and which checkpoints it leaves.

use sysgen_core::config::{SaveStrategy, TrainSection};
use sysgen_train::checkpoint;
use sysgen_train::metrics::Line;
use sysgen_train::run::Outcome;

use crate::fixture;
use crate::running::{World, bits, train};

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
    // Skipped steps change no weight: what came before them is not lost.
    let mut found = checkpoint::find(world.output.path()).unwrap().complete;
    let newest = found.pop().unwrap();
    assert_eq!(newest.state.progress.step, skipped[1].step);
    assert_eq!(newest.state.progress.nonfinite_steps, 2);
    let name = format!("checkpoint-{} is whole", skipped[1].step);
    assert!(error.contains(&name), "{error}");
}

#[test]
fn a_loss_that_jumps_names_the_row_that_made_it_jump() {
    let mut world = World::new(TrainSection {
        packing: false,
        max_steps: 60,
        num_train_epochs: 60.0,
        per_device_train_batch_size: 2,
        gradient_accumulation_steps: 2,
        logging_steps: 60,
        save_steps: 0,
        eval_steps: 0,
        ..train()
    });
    // Learnt well by then, and one row that is no words at all, once among rows that are alike.
    let whole = world.examples.clone();
    world.examples = (0..220)
        .map(|n| {
            let mut example = whole[n % 2].clone();
            example.id = format!("row-{n}");
            example
        })
        .collect();
    let strange = world.run().order().step(45)[1][0][0];
    world.examples[strange].id = "strange".to_string();
    let learnt = world.examples[strange].learn.clone();
    for (at, id) in world.examples[strange].ids.iter_mut().enumerate() {
        if learnt[at] && *id != fixture::END {
            *id = 200 + (at % 20) as u32;
        }
    }
    world.finish();
    let lines = world.lines();
    let spikes: Vec<&Line> = lines
        .iter()
        .filter(|line| line.spike_rows.is_some())
        .collect();
    assert_eq!(
        spikes.iter().map(|line| line.step).collect::<Vec<_>>(),
        [46]
    );
    let rows = spikes[0].spike_rows.as_ref().unwrap();
    assert_eq!(rows[0], "strange", "{rows:?}");
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
fn a_run_that_stopped_early_goes_on_with_more_patience() {
    let patient = |early_stopping_patience| TrainSection {
        early_stopping_patience,
        max_steps: 14,
        ..worsening()
    };
    let mut world = World::new(patient(3));
    let first = world.finish().progress;
    assert!(first.stopped_early && first.step < 14, "{first:?}");
    world.config.train = Some(patient(0));
    let finished = world.finish();
    assert_eq!(finished.progress.step, 14);
    assert!(!finished.progress.stopped_early);
    assert_eq!(bits(&finished), bits(&World::new(patient(0)).finish()));
}

#[test]
fn the_best_model_may_be_asked_for_after_a_stop() {
    let asked = |load_best_model_at_end| TrainSection {
        load_best_model_at_end,
        max_steps: 14,
        ..worsening()
    };
    let best = World::new(asked(false)).finish().progress.best.step;
    let mut world = World::new(asked(false));
    let Outcome::Interrupted(_) = world.go_on(Some(best + 1)).unwrap() else {
        panic!("did not stop")
    };
    world.config.train = Some(asked(true));
    // The best one was not saved then, so it is one of those since.
    let finished = world.finish();
    let lines = world.lines();
    let later = lines.iter().filter(|line| line.step > best + 1);
    let lowest = later.min_by(|a, b| a.eval_loss.partial_cmp(&b.eval_loss).unwrap());
    assert_eq!(finished.best_step.unwrap_or(14), lowest.unwrap().step);
    assert_eq!(world.finish().best_step, finished.best_step);
}
