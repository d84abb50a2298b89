//! On-policy distillation (GKD, arXiv 2306.13649, algorithm 1): in a share of the steps the student answers the step's
//! questions itself, with the weights it has by then, and learns what the teacher thinks of its words.
//!
//! How text is generated is the caller's to know: it hands in a closure ([`Write`]). Which steps, and what each row's answer
//! is drawn from, are functions of the seed, the step and the row, so a resumed run writes the same.

use anyhow::{Result, ensure};
use sysgen_core::config::{DistillSection, TrainSection};
use sysgen_core::hash::seed_from;
use sysgen_model::Decoder;

use crate::batch::Batch;
use crate::example::Example;
use crate::pack::best_fit;

/// A prompt that the student goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The conversation up to its last answer, with the words that begin an answer.
    pub prompt: Vec<u32>,
    /// Start of the answer's random numbers.
    pub seed: u64,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// What the student wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Without the stop token.
    pub ids: Vec<u32>,
    /// Whether it ended by a stop token.
    pub stopped: bool,
}

/// Answers each question with the model as it is, whatever stands beside it.
pub type Write<'a> = &'a dyn Fn(&Decoder, &[Question]) -> Result<Vec<Written>>;

/// Whether the student writes the answers of `step` (counted from 0) itself.
pub fn is_on_policy(distill: Option<&DistillSection>, seed: u64, step: usize) -> bool {
    let share = distill.map_or(0.0, |distill| distill.on_policy);
    let drawn = seed_from(&["on-policy step", &seed.to_string(), &step.to_string()]);
    // The upper 53 bits as a number from 0 to below 1.
    ((drawn >> 11) as f64) < share * (1u64 << 53) as f64
}

/// The micro-batches of `step` over `rows` (of indices into `examples`), the last answer of each example written by the
/// student. Answers have other lengths, so the examples are laid into rows anew; there may be other numbers of rows and
/// micro-batches than the data's answers would need.
///
/// # Errors
/// Those of `write`.
pub fn batches(
    decoder: &Decoder,
    write: Write,
    distill: &DistillSection,
    train: &TrainSection,
    [seed, step]: [u64; 2],
    examples: &[&Example],
    pad_id: u32,
) -> Result<Vec<Batch>> {
    let longest = train.max_length.min(decoder.config.max_position_embeddings);
    let starts: Vec<usize> = examples
        .iter()
        .map(|example| answer_start(example))
        .collect();
    let questions: Vec<Question> = examples
        .iter()
        .zip(&starts)
        .map(|(example, &start)| Question {
            prompt: example.ids[..start].to_vec(),
            seed: seed_from(&[
                "on-policy",
                &seed.to_string(),
                &step.to_string(),
                &example.id,
            ]),
            max_new_tokens: distill.max_new_tokens.min(longest - start),
        })
        .collect();
    let written = write(decoder, &questions)?;
    ensure!(
        written.len() == questions.len(),
        "{} questions have {} answers",
        questions.len(),
        written.len()
    );
    let own: Vec<Example> = examples
        .iter()
        .zip(questions)
        .zip(written)
        .map(|((example, question), written)| with_answer(example, question, written))
        .collect();
    let lengths: Vec<usize> = own.iter().map(|example| example.ids.len()).collect();
    let order: Vec<usize> = (0..own.len()).collect();
    let rows = match train.packing {
        true => best_fit(&lengths, &order, train.max_length),
        false => order.into_iter().map(|example| vec![example]).collect(),
    };
    let batch = |rows: &[Vec<usize>]| Batch {
        on_policy: true,
        ..Batch::new(&own, rows, pad_id)
    };
    Ok(rows
        .chunks(train.per_device_train_batch_size)
        .map(batch)
        .collect())
}

/// Where the last learnt answer begins.
fn answer_start(example: &Example) -> usize {
    let end = example.learn.iter().rposition(|&learn| learn);
    let before = |end: usize| example.learn[..end].iter().rposition(|&learn| !learn);
    end.and_then(before).map_or(1, |last| last + 1)
}

/// The example with what was written in the place of its last answer; only that is learnt.
fn with_answer(example: &Example, question: Question, written: Written) -> Example {
    let Question {
        mut prompt,
        max_new_tokens,
        ..
    } = question;
    let start = prompt.len();
    prompt.extend(&written.ids);
    // An answer that fills its room has no place for the stop token.
    let stop = example.learn.iter().rposition(|&learn| learn);
    if let (true, true, Some(stop)) = (written.stopped, written.ids.len() < max_new_tokens, stop) {
        prompt.push(example.ids[stop]);
    }
    Example {
        id: example.id.clone(),
        learn: (0..prompt.len()).map(|at| at >= start).collect(),
        ids: prompt,
        set: example.set,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(on_policy: f64) -> f64 {
        let distill = DistillSection {
            on_policy,
            ..DistillSection::default()
        };
        let steps = (0..4000).filter(|&step| is_on_policy(Some(&distill), 3, step));
        steps.count() as f64 / 4000.0
    }

    #[test]
    fn the_share_of_the_steps_is_what_was_asked_for() {
        assert_eq!([share(0.0), share(1.0)], [0.0, 1.0]);
        assert!((share(0.25) - 0.25).abs() < 0.03, "{}", share(0.25));
        assert!(!is_on_policy(None, 3, 0));
    }

    #[test]
    fn only_the_last_answer_is_written_anew() {
        let example = Example {
            id: "a".into(),
            ids: vec![9, 1, 2, 3, 4, 5, 6, 7],
            learn: [0, 0, 1, 1, 0, 1, 1, 0].map(|learn| learn == 1).into(),
            set: 0,
        };
        let start = answer_start(&example);
        assert_eq!(start, 5);
        let answered = |ids: Vec<u32>, stopped: bool| {
            let question = Question {
                prompt: example.ids[..start].to_vec(),
                seed: 0,
                max_new_tokens: 2,
            };
            with_answer(&example, question, Written { ids, stopped })
        };
        let short = answered(vec![30], true);
        assert_eq!(short.ids, [9, 1, 2, 3, 4, 30, 6]);
        assert_eq!(short.supervised(), 2);
        assert!(short.learn[5] && short.learn[6]);
        assert_eq!(answered(vec![30, 31], true).ids, [9, 1, 2, 3, 4, 30, 31]);
        assert_eq!(answered(vec![30], false).ids, [9, 1, 2, 3, 4, 30]);
        assert_eq!(answered(vec![], true).ids, [9, 1, 2, 3, 4, 6]);
    }
}
