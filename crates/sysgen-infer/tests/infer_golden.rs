//! The engine against greedy texts from PyTorch, and against itself: what a request gets may depend on
//! nothing but the request. `SYSGEN_GOLDEN` names another folder of the layout of `tests/golden`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use sysgen_infer::{
    Choice, ChoiceRequest, ChoiceStep, Completion, Engine, Finish, Refused, Request, Sampling,
    Statistics,
};
use sysgen_model::{Decoder, Device, Tokens};

/// Largest difference of a label's log-probability to one computed without a cache.
const LOG_PROBABILITY: f32 = 1e-4;

/// Every golden model: its folder's name, the decoder, and `reference.json`.
fn models() -> Vec<(String, Decoder, serde_json::Value)> {
    let root = std::env::var_os("SYSGEN_GOLDEN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")),
        PathBuf::from,
    );
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.json").is_file())
        .collect();
    folders.sort();
    assert!(
        !folders.is_empty(),
        "no golden models in {}",
        root.display()
    );
    folders
        .into_iter()
        .map(|folder| {
            let text = fs::read_to_string(folder.join("reference.json")).unwrap();
            let name = folder.file_name().unwrap().to_str().unwrap().to_string();
            let decoder = Decoder::load(&folder, &Device::flex()).unwrap();
            (name, decoder, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

fn generate(
    engine: Engine,
    requests: &[Request],
) -> (Vec<Result<Completion, Refused>>, Statistics) {
    let mut results = vec![None; requests.len()];
    let statistics = engine.generate(requests.to_vec(), &mut |index, result| {
        assert!(results[index].replace(result).is_none(), "answered twice");
        ControlFlow::Continue(())
    });
    (
        results.into_iter().map(Option::unwrap).collect(),
        statistics,
    )
}

fn choose(engine: Engine, requests: &[ChoiceRequest]) -> Vec<Result<Vec<Choice>, Refused>> {
    let mut results = vec![None; requests.len()];
    engine.choose(requests.to_vec(), &mut |index, result| {
        assert!(results[index].replace(result).is_none(), "answered twice");
        ControlFlow::Continue(())
    });
    results.into_iter().map(Option::unwrap).collect()
}

fn ids(json: &serde_json::Value) -> Vec<Vec<u32>> {
    serde_json::from_value(json.clone()).unwrap()
}

#[test]
fn greedy_texts_are_those_of_golden_models() {
    for (name, decoder, reference) in models() {
        let greedy = &reference["greedy"];
        let max_tokens = greedy["max_new_tokens"].as_u64().unwrap() as usize;
        let eos = greedy["with_eos"]["eos_token_id"].as_u64().unwrap() as u32;
        let mut requests = Vec::new();
        for stop_ids in [vec![], vec![eos]] {
            requests.extend(ids(&greedy["prompts"]).into_iter().map(|prompt| Request {
                prompt,
                sampling: Sampling::greedy(max_tokens),
                stop_ids: stop_ids.clone(),
            }));
        }
        let (results, _) = generate(Engine::new(&decoder, 3, 4096), &requests);
        let expected = ids(&greedy["continuations"]);
        let with_eos = ids(&greedy["with_eos"]["continuations"]);
        for (result, mut expected) in results
            .into_iter()
            .zip(expected.into_iter().chain(with_eos))
        {
            let stops = expected.len() < max_tokens || expected.last() == Some(&eos);
            let completion = result.unwrap();
            // The reference writes the stop id down, a completion does not.
            if completion.finish == Finish::Stop {
                assert!(stops, "{name}: stopped early");
                assert_eq!(expected.pop(), Some(eos), "{name}");
            }
            assert_eq!(completion.ids, expected, "{name}");
            assert!(completion.log_probability < 0.0);
        }
    }
}

/// Prompts of many lengths, some longer than a step's chunk, some that begin alike.
fn mixed_requests(vocab_size: usize) -> Vec<Request> {
    let id = |i: usize, j: usize| ((i * 131 + j * 71 + j * j * 7) % vocab_size) as u32;
    let common: Vec<u32> = (0..40).map(|j| id(0, j)).collect();
    (0..14)
        .map(|i| {
            let length = [1, 3, 30, 90, 700][i % 5];
            let mut prompt = if i % 3 == 0 {
                common.clone()
            } else {
                Vec::new()
            };
            prompt.extend((0..length).map(|j| id(i, j)));
            let sampling = Sampling {
                temperature: if i % 4 == 3 { 0.0 } else { 0.9 },
                top_k: [0, 20][i % 2],
                top_p: [1.0, 0.9][i / 2 % 2],
                max_tokens: 1 + i * 2,
                seed: i as u64,
            };
            Request {
                prompt,
                sampling,
                stop_ids: vec![5, 9],
            }
        })
        .collect()
}

#[test]
fn neighbours_order_and_slots_do_not_change_what_golden_models_write() {
    for (name, decoder, _) in models() {
        let requests = mixed_requests(decoder.config.vocab_size);
        let length = 1000;
        let (alone, statistics) = generate(Engine::new(&decoder, 1, length), &requests);
        assert!((statistics.mean_occupancy() - 1.0).abs() < 1e-9);
        for slots in [3, 20] {
            let (together, statistics) = generate(Engine::new(&decoder, slots, length), &requests);
            // Equal to the bit: the log-probabilities are compared as well.
            assert_eq!(together, alone, "{name}, {slots} slots");
            let read: usize = requests.iter().map(|request| request.prompt.len()).sum();
            assert!(
                statistics.reused_tokens >= 40,
                "{name}: the common prefix was computed again"
            );
            assert!(
                statistics.prefill_tokens + statistics.reused_tokens <= read,
                "{name}"
            );
        }
        let mut backwards = requests.clone();
        backwards.reverse();
        let (mut reversed, _) = generate(Engine::new(&decoder, 4, length), &backwards);
        reversed.reverse();
        assert_eq!(reversed, alone, "{name}, in reverse");
    }
}

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
        let together = choose(Engine::new(&decoder, 4, 4096), &requests);
        assert_eq!(
            together,
            choose(Engine::new(&decoder, 1, 4096), &requests),
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
fn the_log_probability_of_a_golden_text_is_its_own_without_a_cache() {
    let (name, decoder, reference) = models().swap_remove(0);
    let prompt = ids(&reference["greedy"]["prompts"]).swap_remove(0);
    let sampling = Sampling {
        temperature: 0.8,
        top_k: 0,
        top_p: 1.0,
        max_tokens: 6,
        seed: 3,
    };
    let request = Request {
        prompt: prompt.clone(),
        sampling,
        stop_ids: vec![],
    };
    let (results, _) = generate(Engine::new(&decoder, 2, 4096), &[request]);
    let completion = results.into_iter().next().unwrap().unwrap();
    let mut text = prompt;
    let mut expected = 0.0;
    for &id in &completion.ids {
        expected += log_probabilities(&decoder, &text)[id as usize];
        text.push(id);
    }
    let difference = (completion.log_probability - expected).abs();
    assert!(difference <= 6.0 * LOG_PROBABILITY, "{name}: {difference}");
}

#[test]
fn what_a_golden_model_cannot_answer_is_refused_alone() {
    let (_, decoder, _) = models().swap_remove(0);
    let vocab_size = decoder.config.vocab_size;
    let request = |prompt: Vec<u32>, max_tokens| Request {
        prompt,
        sampling: Sampling::greedy(max_tokens),
        stop_ids: vec![],
    };
    let unknown = vocab_size as u32;
    let requests = [
        request(vec![1; 20], 5),
        request(vec![], 5),
        request(vec![1, unknown], 5),
        request(vec![1; 17], 5),
        request(vec![1; 3], 0),
        request(vec![1; 3], 5),
    ];
    let (results, statistics) = generate(Engine::new(&decoder, 2, 20), &requests);
    assert_eq!(
        results[0],
        Err(Refused::TooLong {
            tokens: 20,
            max_length: 20
        })
    );
    assert_eq!(results[1], Err(Refused::Empty));
    assert_eq!(
        results[2],
        Err(Refused::UnknownId {
            id: unknown,
            vocab_size
        })
    );
    let lengths: Vec<usize> = results[3..]
        .iter()
        .map(|result| result.as_ref().unwrap().ids.len())
        .collect();
    assert_eq!(
        lengths,
        [3, 0, 5],
        "the context ends the first, its own limits the others"
    );
    assert!(statistics.steps > 0);

    let choice = |labels: &[&[u32]]| ChoiceRequest {
        prompt: vec![1, 2],
        steps: vec![ChoiceStep {
            forced: vec![3],
            labels: labels.iter().map(|label| label.to_vec()).collect(),
        }],
    };
    let mut long = choice(&[&[1], &[2]]);
    long.prompt = vec![1; 20];
    let requests = [
        choice(&[]),
        choice(&[&[4], &[]]),
        choice(&[&[4, 5], &[4, 6]]),
        choice(&[&[4], &[unknown]]),
        long,
        ChoiceRequest {
            prompt: vec![],
            steps: vec![],
        },
        choice(&[&[4], &[5]]),
    ];
    let results = choose(Engine::new(&decoder, 2, 20), &requests);
    for result in &results[..3] {
        assert_eq!(*result, Err(Refused::Labels { step: 0 }));
    }
    assert_eq!(
        results[3],
        Err(Refused::UnknownId {
            id: unknown,
            vocab_size
        })
    );
    assert_eq!(
        results[4],
        Err(Refused::TooLong {
            tokens: 21,
            max_length: 20
        })
    );
    assert_eq!(results[5], Ok(vec![]));
    assert_eq!(results[6].as_ref().unwrap().len(), 1);
}

#[test]
fn a_golden_model_stops_when_told_to() {
    let (_, decoder, _) = models().swap_remove(0);
    let requests = vec![
        Request {
            prompt: vec![1, 2],
            sampling: Sampling::greedy(4),
            stop_ids: vec![]
        };
        9
    ];
    let mut answered = 0;
    Engine::new(&decoder, 2, 100).generate(requests.clone(), &mut |_, _| {
        answered += 1;
        ControlFlow::Break(())
    });
    assert_eq!(answered, 1);
    let engine = Engine::new(&decoder, 2, 100).until(|| true);
    let statistics = engine.generate(requests, &mut |_, _| panic!("nothing is finished"));
    assert_eq!(statistics.steps, 0);
}
