//! What a step does: packing, counting by tokens, padding, and what is not finite.

use sysgen_model::{Decoder, Device, Weight};
use sysgen_ops::AdamW;
use sysgen_train::batch::Batch;
use sysgen_train::optim::Optimizer;
use sysgen_train::trainer::{StepReport, Trainer, mean_loss};

use crate::fixture;

/// Relative, between two ways to sum the same numbers in f32.
const ROUNDING: f64 = 1e-6;

const SETTINGS: AdamW = AdamW {
    learning_rate: 0.0,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    rounding_seed: 0,
};

fn trainer(dir: &std::path::Path) -> Trainer {
    let decoder = fixture::decoder(dir);
    let optimizer = Optimizer::new(&decoder.parameters(), SETTINGS);
    Trainer::new(decoder, optimizer, 1.0)
}

fn same(a: &StepReport, b: &StepReport) {
    assert_eq!(a.supervised_tokens, b.supervised_tokens);
    assert!(
        (a.loss / b.loss - 1.0).abs() < ROUNDING,
        "{} and {}",
        a.loss,
        b.loss
    );
    assert!(
        (a.grad_norm / b.grad_norm - 1.0).abs() < ROUNDING,
        "{} and {}",
        a.grad_norm,
        b.grad_norm
    );
}

fn values(trainer: &Trainer) -> Vec<Vec<u32>> {
    let bits = |weight: &Weight| weight.to_vec().into_iter().map(f32::to_bits).collect();
    trainer
        .decoder()
        .parameters()
        .iter()
        .map(|parameter| bits(&parameter.tensor))
        .collect()
}

#[test]
fn packed_rows_give_the_loss_and_gradient_of_separate_rows() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(6));
    let packed = trainer(dir.path()).step(
        &[Batch::new(&examples, &[vec![0, 3, 1], vec![5, 2, 4]], 2)],
        0.0,
    );
    let alone: Vec<Batch> = (0..6)
        .map(|example| Batch::new(&examples, &[vec![example]], 2))
        .collect();
    same(&packed, &trainer(dir.path()).step(&alone, 0.0));
}

#[test]
fn computing_layers_again_changes_no_bit_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(6));
    let train = |gradient_checkpointing: bool| {
        let mut trainer = trainer(dir.path());
        trainer.gradient_checkpointing = gradient_checkpointing;
        for rows in [vec![vec![0, 3, 1]], vec![vec![5, 2], vec![4]]] {
            let report = trainer.step(&[Batch::new(&examples, &rows, 2)], 1e-2);
            assert!(report.applied);
        }
        values(&trainer)
    };
    assert!(train(false) == train(true));
    assert!(train(false) != values(&trainer(dir.path())));
}

#[test]
fn accumulation_counts_tokens_not_micro_batches() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let mut examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(3));
    examples[0].learn.fill(true); // many learnt tokens beside rows with few
    examples[0].learn[0] = false;
    let together = Batch::new(&examples, &[vec![0], vec![1], vec![2]], 2);
    let split = [
        Batch::new(&examples, &[vec![0]], 2),
        Batch::new(&examples, &[vec![1], vec![2]], 2),
    ];
    let whole = trainer(dir.path()).step(std::slice::from_ref(&together), 0.0);
    same(&whole, &trainer(dir.path()).step(&split, 0.0));

    let decoder = fixture::decoder(dir.path());
    let mean_of_means = (mean_loss(&decoder, &split[..1]) + mean_loss(&decoder, &split[1..])) / 2.0;
    assert!(
        (whole.loss / mean_of_means - 1.0).abs() > 100.0 * ROUNDING,
        "the rows are too alike to tell"
    );
    assert!((whole.loss / mean_loss(&decoder, &[together]) - 1.0).abs() < ROUNDING);
}

#[test]
fn what_is_written_in_the_padding_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(6));
    let rows = [vec![0], vec![1, 2, 3]];
    let mut steps = [2, 77].map(|pad_id| {
        let mut trainer = trainer(dir.path());
        let report = trainer.step(&[Batch::new(&examples, &rows, pad_id)], 1e-3);
        (report, values(&trainer))
    });
    let (last, first) = (steps[1].clone(), &mut steps[0]);
    same(&first.0, &last.0);
    assert_eq!(first.1, last.1);
}

#[test]
fn a_pad_token_that_is_the_stop_token_hides_no_stop_token() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(6));
    let rows = [vec![0], vec![1, 2, 3], vec![4, 5]];
    let batch = |pad_id| Batch::new(&examples, &rows, pad_id);
    let (padded, alike) = (batch(2), batch(fixture::END));
    assert_ne!(padded.tokens.ids, alike.tokens.ids, "nothing is padded");
    assert_eq!(
        (&alike.predict_at, &alike.targets),
        (&padded.predict_at, &padded.targets)
    );
    let stops = alike.targets.iter().filter(|&&id| id == fixture::END);
    assert_eq!(stops.count(), examples.len());
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(4));
    let batch = [Batch::new(&examples, &[vec![0], vec![1]], 2)];

    let decoder = fixture::decoder(dir.path());
    let mut parameters = decoder.parameters();
    let last = parameters.len() - 1;
    let mut poisoned = parameters[last].tensor.to_vec();
    poisoned[0] = f32::NAN;
    let shape = parameters[last].tensor.shape();
    parameters[last].tensor = Weight::from_values(poisoned, &shape, &Device::flex());
    let decoder = Decoder::from_parameters(decoder.config, parameters);
    let optimizer = Optimizer::new(&decoder.parameters(), SETTINGS);
    let mut trainer = Trainer::new(decoder, optimizer, 1.0);

    let before = values(&trainer);
    let report = trainer.step(&batch, 1e-3);
    assert!(!report.applied && !report.loss.is_finite());
    assert_eq!(values(&trainer), before);
    assert_eq!(trainer.optimizer.updates, 0);
}

#[test]
fn a_batch_with_nothing_to_learn_is_no_step() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let mut examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(1));
    examples[0].learn.fill(false);
    let report = trainer(dir.path()).step(&[Batch::new(&examples, &[vec![0]], 2)], 1e-3);
    assert!(!report.applied);
}

#[test]
fn eight_rows_at_once_are_eight_rows_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(8));
    let rows: Vec<Vec<usize>> = (0..8).map(|row| vec![row]).collect();
    let step = |rows_in_batch: usize| {
        let decoder = fixture::decoder(dir.path());
        // With an epsilon far above the gradient an update is the gradient itself, not its sign.
        let settings = AdamW {
            epsilon: 1.0,
            ..SETTINGS
        };
        let optimizer = Optimizer::new(&decoder.parameters(), settings);
        let mut trainer = Trainer::new(decoder, optimizer, 1.0);
        let batches: Vec<Batch> = rows
            .chunks(rows_in_batch)
            .map(|rows| Batch::new(&examples, rows, 2))
            .collect();
        let report = trainer.step(&batches, 1.0);
        let parameters = trainer.decoder().parameters();
        let weights: Vec<f32> = parameters
            .iter()
            .flat_map(|parameter| parameter.tensor.to_vec())
            .collect();
        (report, weights)
    };
    let (whole, parts) = (step(8), step(1));
    same(&whole.0, &parts.0);
    let difference = crate::golden::close(&whole.1, &parts.1);
    assert!(
        f64::from(difference) <= ROUNDING,
        "a weight by {difference:e}"
    );
}
