//! Data parallel: what two devices learn together is what one learns alone, to the bit.

use sysgen_core::config::{DeviceChoice, Optim, TrainMethod, TrainSection};
use sysgen_model::{Decoder, Device, Lora, WeightDtype};
use sysgen_ops::{AdamW, Divergence};
use sysgen_train::batch::Batch;
use sysgen_train::distill::Distiller;
use sysgen_train::example::Example;
use sysgen_train::optim::Optimizer;
use sysgen_train::trainer::{StepReport, Trainer};

use crate::fixture;

const SETTINGS: AdamW = AdamW {
    learning_rate: 0.0,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    rounding_seed: 0,
};

/// What is trained, and by what.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    Full,
    Lora,
    EightBit,
    Bf16,
    Distilled,
}

fn trainer(decoder: Decoder, case: Case, workers: usize) -> Trainer {
    let decoder = match case {
        Case::Lora => {
            let lora = Lora {
                rank: 4,
                alpha: 8.0,
                dropout: 0.2,
                target_modules: Vec::new(),
                rslora: false,
                dora: true,
            };
            decoder.with_lora(lora, 3).unwrap()
        }
        Case::Bf16 => {
            let config = decoder.config.clone();
            Decoder::random_as(config, 1, &Device::flex(), WeightDtype::Bf16)
        }
        _ => decoder,
    };
    let teacher = (case == Case::Distilled).then(|| {
        let teacher = Decoder::random(decoder.config.clone(), 9, &Device::flex());
        Distiller::of_model(teacher, Divergence::Jsd(0.3), 2.0, 0.5)
    });
    let optim = match case {
        Case::EightBit => Optim::Adamw8bit,
        _ => Optim::Adamw,
    };
    let optimizer = Optimizer::of(optim, &decoder.trainable(), SETTINGS);
    let mut trainer = Trainer::new(decoder, optimizer, 1.0);
    trainer.distiller = teacher;
    trainer.use_devices(&vec![Device::flex(); workers]);
    trainer
}

/// Three steps of five micro-batches, one of which has nothing to learn, packed and not.
fn steps(examples: &[Example]) -> Vec<Vec<Batch>> {
    let mut examples = examples.to_vec();
    examples[11].learn.fill(false);
    let rows: [Vec<usize>; 7] = [
        vec![0, 3, 1],
        vec![5, 2],
        vec![4],
        vec![6, 8],
        vec![7, 9],
        vec![10],
        vec![11],
    ];
    let batch = |rows: &[Vec<usize>]| Batch::new(&examples, rows, 2);
    let step = || {
        vec![
            batch(&rows[..1]),
            batch(&rows[1..3]),
            batch(&rows[6..]),
            batch(&rows[3..5]),
            batch(&rows[5..6]),
        ]
    };
    vec![step(), step(), step()]
}

fn learnt(trainer: &Trainer) -> Vec<Vec<u32>> {
    let parameters = trainer.decoder().trainable().into_iter();
    parameters
        .map(|parameter| {
            parameter
                .tensor
                .to_vec()
                .into_iter()
                .map(f32::to_bits)
                .collect()
        })
        .collect()
}

#[test]
fn any_number_of_workers_learns_the_same_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(12));
    for case in [
        Case::Full,
        Case::Lora,
        Case::EightBit,
        Case::Bf16,
        Case::Distilled,
    ] {
        let train = |workers: usize| -> (Vec<StepReport>, Vec<Vec<u32>>) {
            let mut trainer = trainer(fixture::decoder(dir.path()), case, workers);
            let steps = steps(&examples);
            let reports = steps.iter().map(|step| trainer.step(step, 1e-2)).collect();
            (reports, learnt(&trainer))
        };
        let alone = train(1);
        assert!(alone.0.iter().all(|report| report.applied), "{case:?}");
        for workers in [2, 3, 8] {
            let together = train(workers);
            assert_eq!(alone.0, together.0, "{case:?}, {workers} workers");
            assert!(alone.1 == together.1, "{case:?}, {workers} workers");
        }
        let untrained = trainer(fixture::decoder(dir.path()), case, 1);
        assert!(
            alone.1 != learnt(&untrained),
            "{case:?}: nothing was learnt"
        );
    }
}

/// Between a batch of two rows and two batches of one: other sums of the same numbers, in f32.
const ROUNDING: f64 = 1e-6;

#[test]
fn two_workers_give_loss_and_gradient_of_one_with_twice_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(8));
    let rows: Vec<Vec<usize>> = (0..8).map(|row| vec![row]).collect();
    let batches = |size: usize| -> Vec<Batch> {
        let batches = rows.chunks(size);
        batches.map(|rows| Batch::new(&examples, rows, 2)).collect()
    };
    let step = |workers: usize, size: usize| {
        trainer(fixture::decoder(dir.path()), Case::Full, workers).step(&batches(size), 1e-3)
    };
    let (together, alone) = (step(2, 4), step(1, 8));
    assert!((together.loss / alone.loss - 1.0).abs() <= ROUNDING);
    assert!((together.grad_norm / alone.grad_norm - 1.0).abs() <= ROUNDING);
    assert_eq!(together.supervised_tokens, alone.supervised_tokens);
}

#[test]
fn a_workers_panic_ends_the_step() {
    let dir = tempfile::tempdir().unwrap();
    fixture::model_folder(dir.path());
    let examples = fixture::examples(&fixture::chat(dir.path()), &fixture::rows(2));
    let mut batches: Vec<Batch> = [0, 1]
        .map(|row| Batch::new(&examples, &[vec![row]], 2))
        .into();
    batches[1].tokens.ids[0] = 9_999; // no such token
    let mut trainer = trainer(fixture::decoder(dir.path()), Case::Full, 2);
    let step = std::panic::AssertUnwindSafe(|| trainer.step(&batches, 1e-3));
    let panic = std::panic::catch_unwind(step).unwrap_err();
    let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(said.contains("9999"), "{said}");
}

#[test]
fn the_micro_batches_of_a_step_are_those_of_all_devices() {
    let train = |devices: usize, accumulation: usize| TrainSection {
        devices: vec![DeviceChoice::Cpu; devices],
        gradient_accumulation_steps: accumulation,
        method: TrainMethod::Full,
        ..TrainSection::default()
    };
    assert_eq!(train(0, 4).micro_batches(), 4);
    assert_eq!(train(2, 2).micro_batches(), 4);
}
