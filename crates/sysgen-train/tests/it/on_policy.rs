//! On-policy distillation: when the student writes, what it is asked, and that a stopped run writes the same.

use std::cell::RefCell;
use std::ops::ControlFlow;

use anyhow::Result;
use sysgen_core::config::{DeviceChoice, DistillSection, TrainMethod, TrainSection};
use sysgen_infer::{Answer, Engine, Finish, Options, Request, Sampling};
use sysgen_model::Decoder;
use sysgen_train::on_policy::{Question, Written};
use sysgen_train::row_losses;

use crate::fixture::END;
use crate::running::{World, bits, train};

/// The engine, as the program uses it.
pub(crate) fn write(decoder: &Decoder, questions: &[Question]) -> Result<Vec<Written>> {
    let mut written = vec![None; questions.len()];
    let requests = questions.iter().map(|question| {
        let sampling = Sampling {
            temperature: 0.9,
            seed: question.seed,
            ..Sampling::greedy(question.max_new_tokens)
        };
        Request::new(question.prompt.clone(), sampling, vec![END])
    });
    let options = Options {
        max_length: 128,
        ..Options::default()
    };
    Engine::new(decoder, options).generate(requests.collect(), &mut |index, answer| {
        let completion = answer.map(Answer::into_first).unwrap();
        written[index] = Some(Written {
            stopped: completion.finish == Finish::Stop,
            ids: completion.ids,
        });
        ControlFlow::Continue(())
    });
    Ok(written.into_iter().map(Option::unwrap).collect())
}

fn world(on_policy: f64, train: TrainSection) -> World {
    let mut world = World::new(train);
    world.config.distill = Some(DistillSection {
        on_policy,
        max_new_tokens: 12,
        ..DistillSection::default()
    });
    world.write = Some(Box::new(write));
    world
}

#[test]
fn a_share_of_zero_is_the_run_without_the_key_to_the_bit() {
    let mut silent = world(0.0, train());
    silent.write = Some(Box::new(|_, _| panic!("nothing is to be written")));
    let mut without = world(0.0, train());
    without.write = None;
    assert_eq!(bits(&silent.finish()), bits(&without.finish()));
    assert_eq!(silent.lines(), without.lines());
}

#[test]
fn a_share_of_one_learns_from_the_students_words_only() {
    let learnt = |change: bool| {
        let mut world = world(1.0, train());
        for example in world.examples.iter_mut().filter(|_| change) {
            // Other words in the answer, of the same length; the stop token stays.
            for (id, learn) in example.ids.iter_mut().zip(&example.learn) {
                if *learn && *id != END {
                    *id = 4 + (*id - 4 + 77) % 256;
                }
            }
        }
        let finished = world.finish();
        let lines = world.lines();
        assert!(lines[1..].iter().all(|line| line.on_policy == Some(true)));
        (
            bits(&finished),
            lines[1..].iter().map(|line| line.loss).collect::<Vec<_>>(),
        )
    };
    let (own, changed) = (learnt(false), learnt(true));
    assert_eq!(own.1, changed.1);
    assert!(own.0 == changed.0, "the data's answers were looked at");
    let half = world(0.5, train()).finish();
    assert!(bits(&half) != own.0);
}

#[test]
fn a_stopped_run_writes_the_same_words_and_so_do_two_devices() {
    for method in [TrainMethod::Full, TrainMethod::Lora] {
        let with = |devices: usize, accumulation: usize| {
            let train = TrainSection {
                method,
                devices: vec![DeviceChoice::Cpu; devices],
                gradient_accumulation_steps: accumulation,
                ..train()
            };
            world(0.5, train)
        };
        let undisturbed = with(1, 2);
        let expected = undisturbed.finish();
        let shares: Vec<bool> = undisturbed.lines()[1..]
            .iter()
            .map(|line| line.on_policy == Some(true))
            .collect();
        assert!(
            shares.contains(&true) && shares.contains(&false),
            "{shares:?}"
        );

        let stopped = with(2, 1);
        stopped.go_on(Some(3)).unwrap();
        stopped.go_on(Some(8)).unwrap();
        assert_eq!(bits(&stopped.finish()), bits(&expected));
        assert_eq!(stopped.lines(), undisturbed.lines());
        let rows = |world: &World| {
            row_losses::read(&world.config.output_dir.join(row_losses::FILE)).unwrap()
        };
        assert_eq!(rows(&stopped), rows(&undisturbed));
    }
}

#[test]
fn questions_end_where_the_answer_begins_and_no_two_draw_alike() {
    let asked = std::rc::Rc::new(RefCell::new(Vec::new()));
    let seen = asked.clone();
    let mut world = world(1.0, train());
    world.write = Some(Box::new(
        move |decoder: &Decoder, questions: &[Question]| {
            seen.borrow_mut().extend(questions.to_vec());
            write(decoder, questions)
        },
    ));
    world.finish();
    let asked = asked.borrow();
    assert!(asked.len() >= world.examples.len());
    for question in asked.iter() {
        let text = world.chat.decode(&question.prompt);
        assert!(text.ends_with("assistant\n"), "{text:?}");
        assert!(question.prompt.len() + question.max_new_tokens <= 128);
    }
    let seeds: std::collections::BTreeSet<u64> = asked.iter().map(|q| q.seed).collect();
    assert_eq!(seeds.len(), asked.len());
}
