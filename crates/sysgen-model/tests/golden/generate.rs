//! Greedy decoding: with the KV cache, both prompts in one ragged batch, and by computing everything again.

use serde_json::Value;
use sysgen_model::{Decoder, KvCache, Run, Tokens};

use crate::case::{ACTIVATION, Case, assert_close, cases, values};

fn lists(case: &Case, pointer: &str) -> Vec<Vec<u32>> {
    let list = |ids: &Value| {
        ids.as_array()
            .unwrap()
            .iter()
            .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
            .collect()
    };
    case.json
        .pointer(pointer)
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(list)
        .collect()
}

fn largest(logits: &[f32]) -> u32 {
    (0..logits.len())
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)))
        .unwrap() as u32
}

/// Positions that a text of these tests may have.
const LONGEST: usize = 512;
/// The blocks of up to four texts, not side by side.
const BLOCKS: [[u32; LONGEST / 16]; 4] = {
    let mut blocks = [[0; LONGEST / 16]; 4];
    let mut i = 0;
    while i < 4 * LONGEST / 16 {
        blocks[i % 4][i / 4] = i as u32;
        i += 1;
    }
    blocks
};

fn cache(decoder: &Decoder, texts: usize) -> KvCache {
    let blocks = texts.next_power_of_two().max(4) * LONGEST / 16;
    KvCache::new(decoder, blocks, 16)
}

/// Continues every prompt, all in one cache, until `eos` or `count` tokens; also the last logits of each.
fn with_cache(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    count: usize,
    eos: Option<u32>,
) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
    let vocab = decoder.config.vocab_size;
    let mut cache = cache(decoder, prompts.len());
    let mut held = vec![0; prompts.len()];
    let mut continuations = vec![Vec::new(); prompts.len()];
    let mut last = vec![Vec::new(); prompts.len()];
    let mut pending: Vec<(usize, Vec<u32>)> = prompts.iter().cloned().enumerate().collect();
    while !pending.is_empty() {
        let runs: Vec<Run> = pending
            .iter()
            .map(|(slot, ids)| Run {
                blocks: &BLOCKS[*slot],
                start: held[*slot],
                ids,
            })
            .collect();
        for (slot, ids) in &pending {
            held[*slot] += ids.len();
        }
        let logits = values(decoder.logits(decoder.forward_cached(&runs, &mut cache)));
        let mut next = Vec::new();
        for ((slot, _), logits) in pending.iter().zip(logits.chunks(vocab)) {
            let id = largest(logits);
            continuations[*slot].push(id);
            last[*slot] = logits.to_vec();
            if continuations[*slot].len() < count && Some(id) != eos {
                next.push((*slot, vec![id]));
            }
        }
        pending = next;
    }
    (continuations, last)
}

#[test]
fn golden_greedy_ids_with_the_cache_in_one_ragged_batch() {
    for case in cases() {
        let count = case.number("/greedy/max_new_tokens") as usize;
        let (ours, last) = with_cache(
            &case.decoder(),
            &lists(case, "/greedy/prompts"),
            count,
            None,
        );
        assert_eq!(ours, lists(case, "/greedy/continuations"), "{}", case.name);
        assert_close(
            &format!("{}: last logits", case.name),
            &last.concat(),
            &case.floats("greedy.logits_last"),
            ACTIVATION,
        );
    }
}

#[test]
fn golden_greedy_ids_by_computing_everything_again() {
    for case in cases() {
        let decoder = case.decoder();
        let vocab = decoder.config.vocab_size;
        let count = case.number("/greedy/max_new_tokens") as usize;
        for (prompt, reference) in lists(case, "/greedy/prompts")
            .into_iter()
            .zip(lists(case, "/greedy/continuations"))
        {
            let mut ids = prompt.clone();
            for _ in 0..count {
                let logits = values(decoder.logits(decoder.hidden(&Tokens::padded(&[&ids], 0))));
                ids.push(largest(&logits[logits.len() - vocab..]));
            }
            assert_eq!(ids[prompt.len()..], reference, "{}", case.name);
        }
    }
}

#[test]
fn golden_greedy_ids_stop_at_the_end_token() {
    for case in cases() {
        let Some(eos) = case
            .json
            .pointer("/greedy/with_eos/eos_token_id")
            .and_then(Value::as_u64)
        else {
            continue;
        };
        let count = case.number("/greedy/max_new_tokens") as usize;
        let (ours, _) = with_cache(
            &case.decoder(),
            &lists(case, "/greedy/prompts"),
            count,
            u32::try_from(eos).ok(),
        );
        assert_eq!(
            ours,
            lists(case, "/greedy/with_eos/continuations"),
            "{}",
            case.name
        );
    }
}

#[test]
fn golden_a_texts_hidden_state_does_not_depend_on_its_neighbours_to_the_bit() {
    for case in cases() {
        let decoder = case.decoder();
        let (a, b) = (case.ids("a.input_ids"), case.ids("b.input_ids"));
        let (first, rest) = a.split_at(a.len() / 2);
        let (mut alone, mut shared) = (cache(&decoder, 1), cache(&decoder, 3));
        let (mut text, mut neighbour) = (0, 0);
        for (step, ids) in [first, rest, &[b[0]]].into_iter().enumerate() {
            let by_itself = values(decoder.forward_cached(
                &[Run {
                    blocks: &BLOCKS[0],
                    start: text,
                    ids,
                }],
                &mut alone,
            ));
            // The neighbours come, go and are of other lengths; the text is in the middle, in another slot.
            let beside = &b[step..2 * step + 1];
            let mut runs = vec![
                Run {
                    blocks: &BLOCKS[1],
                    start: neighbour,
                    ids: beside,
                },
                Run {
                    blocks: &BLOCKS[2],
                    start: text,
                    ids,
                },
            ];
            if step != 1 {
                runs.push(Run {
                    blocks: &BLOCKS[0],
                    start: 0,
                    ids: &b,
                });
            }
            text += ids.len();
            neighbour += beside.len();
            let among_others = values(decoder.forward_cached(&runs, &mut shared));
            let dim = decoder.config.hidden_size;
            assert_eq!(
                by_itself,
                among_others[dim..2 * dim],
                "{}: step {step}",
                case.name
            );
        }
    }
}

#[test]
fn golden_logits_with_the_cache_whole_and_in_chunks() {
    for case in cases() {
        let decoder = case.decoder();
        let ids = case.ids("b.input_ids");
        let reference = case.floats("b.logits");
        for chunk in [ids.len(), 5, 1] {
            let mut cache = cache(&decoder, 1);
            let logits: Vec<f32> = ids
                .chunks(chunk)
                .enumerate()
                .flat_map(|(number, ids)| {
                    let runs = [Run {
                        blocks: &BLOCKS[3],
                        start: number * chunk,
                        ids,
                    }];
                    values(decoder.logits(decoder.forward_cached_all(&runs, &mut cache)))
                })
                .collect();
            assert_close(
                &format!("{}: chunks of {chunk}", case.name),
                &logits,
                &reference,
                ACTIVATION,
            );
        }
    }
}

#[test]
fn golden_a_run_may_replace_the_end_of_its_text() {
    for case in cases() {
        let decoder = case.decoder();
        let ids = case.ids("a.input_ids");
        let mut cache = cache(&decoder, 1);
        let whole = values(decoder.forward_cached(
            &[Run {
                blocks: &BLOCKS[0],
                start: 0,
                ids: &ids,
            }],
            &mut cache,
        ));
        let middle = ids.len() / 2;
        let wrong: Vec<u32> = ids[middle..].iter().rev().copied().collect();
        decoder.forward_cached(
            &[Run {
                blocks: &BLOCKS[0],
                start: middle,
                ids: &wrong,
            }],
            &mut cache,
        );
        let again = values(decoder.forward_cached(
            &[Run {
                blocks: &BLOCKS[0],
                start: middle,
                ids: &ids[middle..],
            }],
            &mut cache,
        ));
        assert_close(&case.name, &again, &whole, ACTIVATION);
    }
}
