//! Labels and log-probabilities, against the model without a cache.

use sysgen_infer::{ChoiceRequest, ChoiceStep, Engine, Options, Request, Sampling};
use sysgen_model::{Decoder, Tokens};

use crate::{LOG_PROBABILITY, choose, engine, generate, ids, models};

/// Log-softmax after the last id, computed without a cache.
fn log_probabilities(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    let hidden = decoder.hidden(&Tokens::padded(&[ids], 0));
    let [_, time, dim] = hidden.dims();
    let last = hidden.narrow(1, time - 1, 1).reshape([1, dim]);
    let logits = decoder.logits(last).try_into_vec_as::<f32>().unwrap();
    let total = logits
        .iter()
        .map(|&logit| f64::from(logit).exp())
        .sum::<f64>()
        .ln();
    logits
        .iter()
        .map(|&logit| (f64::from(logit) - total) as f32)
        .collect()
}

#[test]
fn choices_are_those_of_golden_models_without_a_cache() {
    for (name, decoder, reference) in models() {
        let labels = || vec![vec![7, 8], vec![100], vec![42, 7, 19]];
        let step = |forced: &[u32]| ChoiceStep {
            forced: forced.to_vec(),
            labels: labels(),
        };
        let requests: Vec<ChoiceRequest> = ids(&reference["greedy"]["prompts"])
            .into_iter()
            .map(|prompt| ChoiceRequest {
                prompt,
                steps: vec![step(&[]), step(&[11, 12, 13]), step(&[3])],
            })
            .collect();
        let together = choose(engine(&decoder, 4, 4096), &requests);
        assert_eq!(
            together,
            choose(engine(&decoder, 1, 4096), &requests),
            "{name}"
        );
        for (request, choices) in requests.iter().zip(together) {
            let choices = choices.unwrap();
            assert_eq!(choices.len(), request.steps.len());
            let mut ids = request.prompt.clone();
            for (step, choice) in request.steps.iter().zip(choices) {
                ids.extend(&step.forced);
                let expected = log_probabilities(&decoder, &ids);
                let mut best = 0;
                for (index, label) in step.labels.iter().enumerate() {
                    let difference = choice.log_probabilities[index] - expected[label[0] as usize];
                    assert!(difference.abs() <= LOG_PROBABILITY, "{name}: {difference}");
                    if choice.log_probabilities[index] > choice.log_probabilities[best] {
                        best = index;
                    }
                }
                assert_eq!(choice.best, best, "{name}");
                ids.extend(&step.labels[choice.best]);
            }
        }
    }
}

#[test]
fn log_probabilities_of_a_golden_prompt_and_text_are_those_without_a_cache() {
    for (name, decoder, reference) in models() {
        let prompt = ids(&reference["greedy"]["prompts"]).swap_remove(0);
        let sampling = Sampling {
            temperature: 0.8,
            seed: 3,
            ..Sampling::greedy(6)
        };
        let request = Request {
            logprobs: Some(4),
            prompt_logprobs: Some(2),
            ..Request::new(prompt.clone(), sampling, vec![])
        };
        let options = Options {
            max_num_batched_tokens: 5,
            ..Options::default()
        };
        let (answers, _) = generate(Engine::new(&decoder, options), &[request]);
        let answer = answers.into_iter().next().unwrap().unwrap();
        assert_eq!(answer.prompt_log_probabilities.len(), prompt.len() - 1);
        let completion = &answer.completions[0];
        let text: Vec<u32> = prompt.iter().chain(&completion.ids).copied().collect();
        let found = answer
            .prompt_log_probabilities
            .iter()
            .map(|found| (found, 2))
            .chain(completion.log_probabilities.iter().map(|found| (found, 4)));
        for (position, (found, top)) in found.enumerate() {
            let exact = log_probabilities(&decoder, &text[..=position]);
            assert_eq!(found.id, text[position + 1], "{name}");
            let close = |id: u32, own: f32| (own - exact[id as usize]).abs() <= LOG_PROBABILITY;
            assert!(close(found.id, found.log_probability), "{name}");
            assert_eq!(found.top.len(), top);
            let best = exact.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!((found.top[0].1 - best).abs() <= LOG_PROBABILITY, "{name}");
            for &(id, own) in &found.top {
                assert!(close(id, own), "{name}: {id}");
            }
        }
        assert_eq!(completion.log_probabilities.len(), completion.ids.len());
    }
}
