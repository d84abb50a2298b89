//! The engine against greedy texts from PyTorch, and against itself: what a request gets may depend on
//! nothing but the request. `SYSGEN_GOLDEN` names another folder of the layout of `tests/golden`.

#![allow(clippy::unwrap_used)]

mod invariance;
mod probabilities;

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use sysgen_infer::{
    Answer, Choice, ChoiceRequest, ChoiceStep, Engine, Finish, Options, Refused, Request, Sampling,
    Statistics,
};
use sysgen_model::{Decoder, Device, KvCache};

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
    tokens * KvCache::bytes_per_position(decoder)
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
