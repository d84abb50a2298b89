//! The student's own answers, for on-policy distillation: the engine with the weights of the moment.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use sysgen_chat::Chat;
use sysgen_core::config::DistillSection;
use sysgen_infer::{Answer, Engine, Finish, Options, Request, Sampling};
use sysgen_model::Decoder;
use sysgen_train::on_policy::{Question, Written};

/// Answers at the temperature of `distill`, each question from its own random stream.
pub(crate) fn writes(
    chat: &Chat,
    distill: &DistillSection,
) -> impl Fn(&Decoder, &[Question]) -> Result<Vec<Written>> {
    let stop_ids = chat.stop_ids().to_vec();
    let temperature = distill.on_policy_temperature as f32;
    move |decoder, questions| {
        let request = |question: &Question| {
            let sampling = Sampling {
                temperature,
                seed: question.seed,
                ..Sampling::greedy(question.max_new_tokens)
            };
            Request::new(question.prompt.clone(), sampling, stop_ids.clone())
        };
        let lengths = questions.iter();
        let lengths = lengths.map(|question| question.prompt.len() + question.max_new_tokens);
        let options = Options {
            max_num_seqs: questions.len().max(1),
            max_length: lengths.max().unwrap_or(0),
            ..Options::default()
        };
        let requests = questions.iter().map(request).collect();
        let mut written: Vec<Option<Result<Written>>> = questions.iter().map(|_| None).collect();
        Engine::new(decoder, options).generate(requests, &mut |index, answer| {
            let answer = answer.map(Answer::into_first).map(|completion| Written {
                stopped: completion.finish == Finish::Stop,
                ids: completion.ids,
            });
            written[index] = Some(answer.map_err(Into::into));
            ControlFlow::Continue(())
        });
        let answers = written.into_iter();
        answers
            .map(|answer| answer.context("the engine gave no answer")?)
            .collect()
    }
}
