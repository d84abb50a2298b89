//! Data parallel: what two devices learn and measure together is what one does alone, to the bit.

use std::sync::{Arc, Mutex};

use sysgen_chat::Chat;
use sysgen_core::RunConfig;
use sysgen_core::config::{
    CrossTokenizer, DeviceChoice, DistillSection, Optim, TrainMethod, TrainSection,
};
use sysgen_model::{Decoder, Device, Lora, WeightDtype};
use sysgen_ops::{AdamW, Divergence, TopK};
use sysgen_train::batch::Batch;
use sysgen_train::distill::{Distiller, TeacherChat, Vocabularies, distiller};
use sysgen_train::example::Example;
use sysgen_train::optim::Optimizer;
use sysgen_train::rows::Row;
use sysgen_train::stored_teacher::Stored;
use sysgen_train::trainer::{StepReport, Trainer, mean_loss};

use crate::across::{MERGES, folder_with_merges};
use crate::fixture;
use crate::taught::save;

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
    /// By a teacher that is run.
    Distilled,
    /// By probabilities stored with the rows.
    Stored,
    /// By a teacher of another tokenizer.
    Foreign,
}

const CASES: [Case; 7] = [
    Case::Full,
    Case::Lora,
    Case::EightBit,
    Case::Bf16,
    Case::Distilled,
    Case::Stored,
    Case::Foreign,
];

fn trainer(world: &World, case: Case, workers: usize) -> Trainer {
    let decoder = world.decoder();
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
    let teacher = match case {
        Case::Distilled => {
            let teacher = Decoder::random(decoder.config.clone(), 9, &Device::flex());
            Some(Distiller::of_model(teacher, Divergence::Jsd(0.3), 2.0, 0.5))
        }
        Case::Stored => {
            let section = DistillSection {
                alpha: 0.7,
                ..DistillSection::default()
            };
            let stored = stored(&world.examples);
            Some(Distiller::of_stored(&section, Arc::new(stored)))
        }
        Case::Foreign => Some(foreign(world)),
        _ => None,
    };
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

/// A teacher whose tokenizer cuts the rows' words into other tokens, and their spans.
fn foreign(world: &World) -> Distiller {
    let folder = tempfile::tempdir().unwrap();
    folder_with_merges(folder.path(), &MERGES);
    save(folder.path(), 2);
    let distill = DistillSection {
        teacher: folder.path().to_path_buf(),
        cross_tokenizer: CrossTokenizer::Uld,
        alpha: 0.6,
        temperature: 1.5,
        ..DistillSection::default()
    };
    let World {
        chat,
        rows,
        examples,
        ..
    } = world;
    let config = RunConfig::default();
    let teacher = TeacherChat::load(&config, &distill, chat, fixture::VOCAB, rows).unwrap();
    assert!(matches!(
        teacher.vocabularies,
        Vocabularies::Different { .. }
    ));
    distiller(&distill, chat, &teacher, rows, examples, &Device::flex()).unwrap()
}

/// Three words for every learnt token, the token itself the likeliest.
fn stored(examples: &[Example]) -> Stored {
    let rows = examples.iter().map(|example| {
        let learnt = (1..example.ids.len()).filter(|&at| example.learn[at]);
        let learnt: Vec<u32> = learnt.map(|at| example.ids[at]).collect();
        let words = learnt
            .iter()
            .flat_map(|&id| [id, (id + 7) % 200, (id + 11) % 200]);
        let shares = [0.6f32, 0.2, 0.1].map(f32::ln).repeat(learnt.len());
        let top = TopK {
            k: 3,
            ids: words.collect(),
            log_probabilities: shares,
        };
        (example.id.clone(), top)
    });
    rows.collect()
}

/// Three steps of five micro-batches, one of which has nothing to learn, packed and not.
fn steps(examples: &[Example]) -> Vec<Vec<Batch>> {
    let rows: [Vec<usize>; 7] = [
        vec![0, 3, 1],
        vec![5, 2],
        vec![4],
        vec![6, 8],
        vec![7, 9],
        vec![10],
        vec![11],
    ];
    let batch = |rows: &[Vec<usize>]| Batch::new(examples, rows, 2);
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

/// A model, and rows, the last of which has nothing to learn.
struct World {
    folder: tempfile::TempDir,
    chat: Chat,
    rows: Vec<Row>,
    examples: Vec<Example>,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        fixture::model_folder(folder.path());
        let (chat, rows) = (fixture::chat(folder.path()), fixture::rows(12));
        let mut examples = fixture::examples(&chat, &rows);
        examples[11].learn.fill(false);
        World {
            folder,
            chat,
            rows,
            examples,
        }
    }

    fn decoder(&self) -> Decoder {
        fixture::decoder(self.folder.path())
    }
}

#[test]
fn any_number_of_workers_learns_the_same_to_the_bit() {
    let world = World::new();
    let examples = &world.examples;
    for case in CASES {
        let start = |workers| trainer(&world, case, workers);
        let train = |workers: usize| -> (Vec<StepReport>, Vec<Vec<u32>>) {
            let mut trainer = start(workers);
            let steps = steps(examples);
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
        assert!(alone.1 != learnt(&start(1)), "{case:?}: nothing was learnt");
    }
}

/// Between a batch of two rows and two batches of one: other sums of the same numbers, in f32.
const ROUNDING: f64 = 1e-6;

#[test]
fn two_workers_give_loss_and_gradient_of_one_with_twice_the_batch() {
    let world = World::new();
    let examples = &world.examples;
    let mut rows: Vec<Vec<usize>> = (0..8).map(|row| vec![row]).collect();
    rows.sort_by_key(|row| examples[row[0]].supervised());
    let batches = |size: usize| -> Vec<Batch> {
        let batches = rows.chunks(size);
        batches.map(|rows| Batch::new(examples, rows, 2)).collect()
    };
    // Divided twice, or by the tokens of a micro-batch, the sum would be another: the halves learn different counts.
    let halves = batches(4);
    assert_ne!(halves[0].targets.len(), halves[1].targets.len());
    for case in [Case::Full, Case::Distilled, Case::Stored, Case::Foreign] {
        let step =
            |workers: usize, size: usize| trainer(&world, case, workers).step(&batches(size), 1e-3);
        let (together, alone) = (step(2, 4), step(1, 8));
        assert!(
            (together.loss / alone.loss - 1.0).abs() <= ROUNDING,
            "{case:?}"
        );
        let norms = together.grad_norm / alone.grad_norm;
        assert!((norms - 1.0).abs() <= ROUNDING, "{case:?}");
        assert_eq!(together.supervised_tokens, alone.supervised_tokens);
    }
}

#[test]
fn the_held_out_loss_is_the_same_to_the_bit_on_any_number_of_devices() {
    let world = World::new();
    let examples = &world.examples;
    let batches = steps(examples).remove(0);
    for case in CASES {
        let start = |workers| trainer(&world, case, workers);
        let before = mean_loss(start(1).decoder(), &batches);
        for workers in [1, 2, 3, 8] {
            let mut trainer = start(workers);
            assert_eq!(trainer.mean_loss(&batches), before, "{case:?}, {workers}");
            // Of the weights of the moment, and a step still finds them free to be updated in place.
            trainer.step(&batches, 1e-2);
            let after = trainer.mean_loss(&batches);
            assert!(after < before, "{case:?}, {workers}");
            assert_eq!(after, mean_loss(trainer.decoder(), &batches));
        }
        assert!(
            start(3).mean_loss(&batches[2..3]).is_nan(),
            "nothing is learnt there"
        );
    }
}

#[test]
fn held_out_batches_are_computed_by_the_devices_in_turn() {
    let world = World::new();
    let examples = &world.examples;
    let whole = steps(examples).remove(0);
    for (broken, expected) in [(0, None), (1, Some("worker 1"))] {
        let mut trainer = trainer(&world, Case::Full, 2);
        let mut batches = vec![whole[0].clone(), whole[1].clone()];
        batches[broken].tokens.ids[0] = NO_TOKEN;
        let panicked = thread_that_panics(|| {
            trainer.mean_loss(&batches);
        });
        match expected {
            Some(name) => assert_eq!(panicked, name),
            None => assert!(!panicked.starts_with("worker "), "{panicked}"),
        }
    }
}

/// An id that no model has, and no other test.
const NO_TOKEN: u32 = 9_998;

/// The name of the thread on which `work` meets [`NO_TOKEN`].
fn thread_that_panics(work: impl FnOnce()) -> String {
    static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.to_string().contains(&NO_TOKEN.to_string()) {
            let name = std::thread::current()
                .name()
                .unwrap_or_default()
                .to_string();
            NAMES.lock().unwrap().push(name);
        }
        before(panic);
    }));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_err();
    NAMES.lock().unwrap().pop().unwrap()
}

#[test]
fn a_workers_panic_ends_the_step() {
    let world = World::new();
    let mut batches: Vec<Batch> = [0, 1]
        .map(|row| Batch::new(&world.examples, &[vec![row]], 2))
        .into();
    batches[1].tokens.ids[0] = 9_999; // no such token
    let mut trainer = trainer(&world, Case::Full, 2);
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
