//! Nothing but the request decides what is written: not its neighbours, its place, the cache or the moment.

use sysgen_infer::{
    ChoiceRequest, ChoiceStep, Engine, Options, Outcome, Request, RequestId, Sampling,
};

use crate::{cache_bytes, choose, engine, generate, models, write};

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
