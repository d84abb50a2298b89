//! The engine against greedy texts from PyTorch, and against itself: what a request gets may depend on
//! nothing but the request. `SYSGEN_GOLDEN` names another folder of the layout of `tests/golden`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use std::sync::Arc;

use sysgen_infer::{
    Answer, Choice, ChoiceRequest, ChoiceStep, Engine, Finish, Options, Outcome, Refused, Request,
    RequestId, Sampling, Statistics,
};
use sysgen_model::{Decoder, Device, KvCache, Tokens};

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
            // As the programs that only answer have it.
            let decoder = Decoder::load(&folder, &Device::flex()).unwrap().pack();
            (name, decoder, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

/// An engine for `max_num_seqs` texts of `max_length`, with all the cache they may need.
fn engine(decoder: &Decoder, max_num_seqs: usize, max_length: usize) -> Engine {
    Engine::new(
        decoder,
        Options {
            max_num_seqs,
            max_length,
            ..Options::default()
        },
    )
}

/// Bytes of a cache of `tokens`.
fn cache_bytes(decoder: &Decoder, tokens: usize) -> usize {
    tokens * KvCache::bytes_per_position(&decoder.config)
}

fn generate(
    mut engine: Engine,
    requests: &[Request],
) -> (Vec<Result<Answer, Refused>>, Statistics) {
    write(&mut engine, requests)
}

fn write(engine: &mut Engine, requests: &[Request]) -> (Vec<Result<Answer, Refused>>, Statistics) {
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

fn choose(mut engine: Engine, requests: &[ChoiceRequest]) -> Vec<Result<Vec<Choice>, Refused>> {
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
            requests.extend(ids(&greedy["prompts"]).into_iter().map(|prompt| {
                Request::new(prompt, Sampling::greedy(max_tokens), stop_ids.clone())
            }));
        }
        let (results, _) = generate(engine(&decoder, 3, 4096), &requests);
        let expected = ids(&greedy["continuations"]);
        let with_eos = ids(&greedy["with_eos"]["continuations"]);
        for (result, mut expected) in results
            .into_iter()
            .zip(expected.into_iter().chain(with_eos))
        {
            let stops = expected.len() < max_tokens || expected.last() == Some(&eos);
            let completion = result.unwrap().into_first();
            // The reference writes the stop id down, a completion does not.
            if completion.finish == Finish::Stop {
                assert!(stops, "{name}: stopped early");
                assert_eq!(expected.pop(), Some(eos), "{name}");
            }
            assert_eq!(completion.ids, expected, "{name}");
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
                min_p: [0.0, 0.05][i / 3 % 2],
                repetition_penalty: [1.0, 1.1][i / 5 % 2],
                frequency_penalty: [0.0, 0.2][i / 7 % 2],
                seed: i as u64,
                ..Sampling::greedy(1 + i * 2)
            };
            Request {
                n: 1 + i % 2,
                logprobs: Some(3),
                prompt_logprobs: (i % 6 == 2).then_some(2),
                ..Request::new(prompt, sampling, vec![5, 9])
            }
        })
        .collect()
}

#[test]
fn neighbours_order_and_places_do_not_change_what_golden_models_write() {
    for (name, decoder, _) in models() {
        let requests = mixed_requests(decoder.config.vocab_size);
        let length = 1000;
        let (alone, statistics) = generate(engine(&decoder, 1, length), &requests);
        assert!((statistics.mean_occupancy() - 1.0).abs() < 1e-9);
        for slots in [3, 20] {
            let (together, statistics) = generate(engine(&decoder, slots, length), &requests);
            // Equal to the bit: the log-probabilities are compared as well.
            assert_eq!(together, alone, "{name}, {slots} texts at a time");
            assert!(
                statistics.reused_tokens >= 40 / 16 * 16,
                "{name}: the common prefix was computed again"
            );
        }
        let mut backwards = requests.clone();
        backwards.reverse();
        let (mut reversed, _) = generate(engine(&decoder, 4, length), &backwards);
        reversed.reverse();
        assert_eq!(reversed, alone, "{name}, in reverse");
    }
}

#[test]
fn blocks_chunks_preemption_and_what_the_cache_holds_do_not_change_what_golden_models_write() {
    for (name, decoder, _) in models() {
        let requests = mixed_requests(decoder.config.vocab_size);
        let options = Options {
            max_num_seqs: 9,
            max_length: 1000,
            ..Options::default()
        };
        let (expected, _) = generate(Engine::new(&decoder, options), &requests);
        for options in [
            Options {
                block_size: 64,
                ..options
            },
            Options {
                max_num_batched_tokens: 33,
                ..options
            },
            Options {
                prefix_caching: false,
                ..options
            },
        ] {
            let (found, _) = generate(Engine::new(&decoder, options), &requests);
            assert_eq!(found, expected, "{name}: {options:?}");
        }
        // Hardly more room than the longest text needs.
        let small = Options {
            kv_cache_bytes: cache_bytes(&decoder, 784),
            ..options
        };
        let mut engine = Engine::new(&decoder, small);
        let (found, first) = write(&mut engine, &requests);
        assert_eq!(found, expected, "{name}: a small cache");
        assert!(first.most_used_blocks <= first.cache_blocks);
        // Once more, with what the first call left in the cache.
        let (found, _) = write(&mut engine, &requests);
        assert_eq!(found, expected, "{name}: a used cache");
    }
}

#[test]
fn texts_that_must_give_their_place_away_are_written_as_if_they_had_kept_it() {
    for (name, decoder, _) in models() {
        let requests: Vec<Request> = (0..6)
            .map(|i| {
                let sampling = Sampling {
                    temperature: 0.9,
                    repetition_penalty: 1.2,
                    seed: i,
                    ..Sampling::greedy(50)
                };
                Request {
                    logprobs: Some(0),
                    prompt_logprobs: Some(0),
                    ..Request::new(vec![i as u32 + 1; 18], sampling, vec![])
                }
            })
            .collect();
        let (expected, roomy) = generate(engine(&decoder, 6, 100), &requests);
        assert_eq!(roomy.preemptions, 0);
        let options = Options {
            max_num_seqs: 6,
            max_length: 100,
            kv_cache_bytes: cache_bytes(&decoder, 96),
            ..Options::default()
        };
        let (found, crowded) = generate(Engine::new(&decoder, options), &requests);
        assert_eq!(found, expected, "{name}");
        assert!(crowded.preemptions > 0, "{name}: nothing was preempted");
    }
}

#[test]
fn requests_to_write_and_to_choose_may_come_at_any_time() {
    let (_, decoder, _) = models().swap_remove(0);
    let requests = mixed_requests(decoder.config.vocab_size);
    let choice = ChoiceRequest {
        prompt: vec![1, 2, 3],
        steps: vec![ChoiceStep {
            forced: vec![4; 30],
            labels: vec![vec![7], vec![8]],
        }],
    };
    let (expected, _) = generate(engine(&decoder, 5, 1000), &requests);
    let chosen = choose(engine(&decoder, 1, 1000), std::slice::from_ref(&choice));
    let mut engine = engine(&decoder, 5, 1000);
    let mut asked: Vec<(RequestId, Option<usize>)> = Vec::new();
    let mut found = 0;
    let mut requests = requests.into_iter().enumerate();
    loop {
        if let Some((index, request)) = requests.next() {
            asked.push((engine.submit(request), Some(index)));
            asked.push((engine.submit_choice(choice.clone()), None));
        }
        for (id, result) in engine.step() {
            let (_, index) = asked.iter().find(|(other, _)| *other == id).unwrap();
            match (result.unwrap(), index) {
                (Outcome::Answer(answer), Some(index)) => {
                    assert_eq!(Ok(answer), expected[*index]);
                }
                (Outcome::Choices(choices), None) => assert_eq!(Ok(choices), chosen[0]),
                (outcome, _) => panic!("{outcome:?}"),
            }
            found += 1;
        }
        if engine.is_idle() && found == asked.len() && found == 28 {
            break;
        }
    }
}

#[test]
fn n_completions_are_those_of_n_requests_with_the_next_seeds() {
    let (_, decoder, _) = models().swap_remove(0);
    let warm = |seed| Sampling {
        temperature: 1.0,
        seed,
        ..Sampling::greedy(12)
    };
    let request = |seed| Request::new(vec![3; 40], warm(seed), vec![]);
    let several = Request { n: 3, ..request(8) };
    let (answers, statistics) = generate(engine(&decoder, 8, 100), &[several]);
    let (single, _) = generate(
        engine(&decoder, 8, 100),
        &[request(8), request(9), request(10)],
    );
    let completions = answers[0].clone().unwrap().completions;
    assert_eq!(completions.len(), 3);
    for (completion, single) in completions.iter().zip(single) {
        assert_eq!(*completion, single.unwrap().into_first());
    }
    assert_ne!(completions[0], completions[1]);
    assert_eq!(statistics.reused_tokens, 2 * 32, "the prompt was read once");
}

#[test]
fn a_caller_may_end_a_completion_and_min_tokens_holds_stop_ids_back() {
    let (_, decoder, _) = models().swap_remove(0);
    let plain = Request::new(vec![1, 2, 3], Sampling::greedy(20), vec![]);
    let (answers, _) = generate(engine(&decoder, 1, 100), std::slice::from_ref(&plain));
    let ids = answers[0].clone().unwrap().into_first().ids;
    let stopped = Request {
        stop_when: Some(Arc::new(|ids: &[u32]| ids.len() == 7)),
        ..plain.clone()
    };
    let mut held = Request {
        stop_ids: vec![ids[0]],
        ..plain.clone()
    };
    let at_once = held.clone();
    held.sampling.min_tokens = 5;
    let (answers, _) = generate(engine(&decoder, 3, 100), &[stopped, at_once, held]);
    let completions: Vec<_> = answers
        .into_iter()
        .map(|a| a.unwrap().into_first())
        .collect();
    assert_eq!(
        (completions[0].finish, &completions[0].ids[..]),
        (Finish::Stop, &ids[..7])
    );
    assert_eq!(
        (completions[1].finish, completions[1].ids.len()),
        (Finish::Stop, 0)
    );
    assert!(completions[2].ids.len() >= 5 && !completions[2].ids[..5].contains(&ids[0]));
}

#[test]
fn a_request_that_can_never_fit_is_refused_and_the_others_are_not() {
    let (_, decoder, _) = models().swap_remove(0);
    let options = Options {
        max_num_seqs: 4,
        max_length: 1000,
        kv_cache_bytes: cache_bytes(&decoder, 64),
        ..Options::default()
    };
    let request = |prompt, new| Request::new(vec![1; prompt], Sampling::greedy(new), vec![]);
    let requests = [request(60, 5), request(60, 4), request(10, 20)];
    let (answers, _) = generate(Engine::new(&decoder, options), &requests);
    let refused = Refused::CacheTooSmall {
        tokens: 65,
        cache: 64,
    };
    assert_eq!(answers[0], Err(refused));
    assert_eq!(answers[1].as_ref().unwrap().completions[0].ids.len(), 4);
    assert_eq!(answers[2].as_ref().unwrap().completions[0].ids.len(), 20);
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

#[test]
fn what_a_golden_model_cannot_answer_is_refused_alone() {
    let (_, decoder, _) = models().swap_remove(0);
    let vocab_size = decoder.config.vocab_size;
    let request =
        |prompt: Vec<u32>, max_tokens| Request::new(prompt, Sampling::greedy(max_tokens), vec![]);
    let unknown = vocab_size as u32;
    let requests = [
        request(vec![1; 20], 5),
        request(vec![], 5),
        request(vec![1, unknown], 5),
        request(vec![1; 17], 5),
        request(vec![1; 3], 0),
        request(vec![1; 3], 5),
    ];
    let (results, statistics) = generate(engine(&decoder, 2, 20), &requests);
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
        .map(|result| result.as_ref().unwrap().completions[0].ids.len())
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
    let results = choose(engine(&decoder, 2, 20), &requests);
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
    let requests = vec![Request::new(vec![1, 2], Sampling::greedy(4), vec![]); 9];
    let mut answered = 0;
    engine(&decoder, 2, 100).generate(requests.clone(), &mut |_, _| {
        answered += 1;
        ControlFlow::Break(())
    });
    assert_eq!(answered, 1);
    let mut engine = engine(&decoder, 2, 100).until(|| true);
    let statistics = engine.generate(requests, &mut |_, _| panic!("nothing is finished"));
    assert_eq!(statistics.steps, 0);
}
