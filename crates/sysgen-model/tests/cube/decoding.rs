//! Decoding on a device, with recorded steps and without, beside the CPU.

use burn::tensor::DType;
use sysgen_infer::{Engine, Options, Outcome, Request, RequestId, Sampling, Statistics};
use sysgen_model::{DecodeSteps, Decoder, Device, KvCache, Run};

use crate::{assert_close, device, loaded, models, tolerance, values};

/// Texts that begin one after the other, at different lengths, and end at different steps.
fn requests(decoder: &Decoder, texts: usize, shortest: usize) -> Vec<Request> {
    let vocab_size = decoder.config.vocab_size;
    let prompt = |text: usize| {
        let ids = (0..3 + 5 * text % 17).map(|at| (at * 7919 + text * 104_729 + 5) % vocab_size);
        ids.map(|id| id as u32).collect()
    };
    let request = |text: usize| {
        let sampling = Sampling::greedy(shortest + 3 * text % 7);
        Request::new(prompt(text), sampling, Vec::new())
    };
    (0..texts).map(request).collect()
}

/// The texts that come out if a request is added before every step.
fn written(
    decoder: &Decoder,
    requests: Vec<Request>,
    options: Options,
) -> (Vec<Vec<u32>>, Statistics) {
    let mut engine = Engine::new(decoder, options);
    let mut texts = vec![Vec::new(); requests.len()];
    let mut ids: Vec<RequestId> = Vec::new();
    let mut waiting = requests.into_iter();
    let mut first = true;
    while first || !engine.is_idle() {
        first = false;
        if let Some(request) = waiting.next() {
            ids.push(engine.submit(request));
        }
        for (id, result) in engine.step() {
            let Outcome::Answer(answer) = result.unwrap() else {
                panic!("a text was asked for");
            };
            let text = ids.iter().position(|other| *other == id).unwrap();
            texts[text] = answer.into_first().ids;
        }
    }
    assert_eq!(waiting.len(), 0);
    (texts, engine.take_statistics())
}

fn options(texts: usize, enforce_eager: bool) -> Options {
    Options {
        max_num_seqs: texts,
        max_length: 64,
        enforce_eager,
        ..Options::default()
    }
}

#[test]
fn recorded_steps_write_the_texts_of_launched_ones_and_of_the_cpu() {
    let Some(device) = device() else { return };
    for (number, dir) in models().into_iter().enumerate() {
        let [ours, exact] =
            [&device, &Device::flex()].map(|device| loaded(&dir, device, DType::F32));
        // All numbers of texts with the first model, the largest of them with the others.
        let counts = if number == 0 { 1..=17 } else { 17..=17 };
        for texts in counts {
            let what = format!("{texts} texts of {}", dir.display());
            // All of them are there before the first one ends.
            let requests = requests(&ours, texts, texts + 8);
            let (expected, _) = written(&exact, requests.clone(), options(texts, false));
            let (launched, eager) = written(&ours, requests.clone(), options(texts, true));
            assert_eq!(launched, expected, "{what}, launched");
            assert_eq!(eager.replayed_steps, 0, "{what}");
            let (recorded, statistics) = written(&ours, requests, options(texts, false));
            assert_eq!(recorded, expected, "{what}, recorded");
            let Statistics {
                steps,
                replayed_steps,
                ..
            } = statistics;
            println!("{what}: {replayed_steps} of {steps} steps replayed");
            assert!(replayed_steps > 0, "{what}: {steps} steps, none replayed");
        }
    }
}

#[test]
fn texts_that_lose_their_blocks_are_the_same() {
    let Some(device) = device() else { return };
    let dir = &models()[0];
    let [ours, exact] = [&device, &Device::flex()].map(|device| loaded(dir, device, DType::F32));
    let requests = requests(&ours, 6, 34);
    let (expected, _) = written(&exact, requests.clone(), options(6, false));
    let tight = Options {
        kv_cache_bytes: 8 * 16 * KvCache::bytes_per_position(&ours),
        ..options(6, false)
    };
    let (recorded, statistics) = written(&ours, requests, tight);
    assert_eq!(recorded, expected);
    println!("{statistics:?}");
    assert!(statistics.preemptions > 0 && statistics.replayed_steps > 0);
}

#[test]
fn a_steps_logits_are_those_of_the_tokens_read_at_once() {
    let Some(device) = device() else { return };
    for dir in models() {
        for dtype in [DType::F32, DType::F16] {
            let exact = loaded(&dir, &Device::flex(), DType::F32);
            let ours = loaded(&dir, &device, dtype);
            let vocab_size = ours.config.vocab_size;
            let ids: Vec<u32> = (0..40u32)
                .map(|i| (i * 7919 + 5) % vocab_size as u32)
                .collect();
            // Three texts, the last two of which are read token by token, from another block on.
            let blocks: [&'static [u32]; 3] = [&[3, 1, 5], &[0, 2], &[4]];
            let runs = |start: usize, tokens: usize, texts: usize| -> Vec<Run> {
                let blocks = blocks[..texts].iter().enumerate();
                let run = |(text, blocks): (usize, &&'static [u32])| Run {
                    blocks,
                    start,
                    ids: &ids[text + start..][..tokens],
                };
                blocks.map(run).collect()
            };
            let mut whole = KvCache::new(&exact, 6, 16);
            exact.forward_cached(&runs(0, 9, 3), &mut whole);
            let mut cache = KvCache::new(&ours, 6, 16);
            ours.forward_cached(&runs(0, 9, 3), &mut cache);
            let mut steps = DecodeSteps::new(&ours, &cache, true).unwrap();
            for start in 9..24 {
                let texts = if start < 16 { 3 } else { 2 };
                let runs = runs(start, 1, texts);
                let expected = exact.logits(exact.forward_cached(&runs, &mut whole));
                let what = format!("{} in {dtype:?}, position {start}", dir.display());
                let allowed = tolerance(&dir, dtype);
                assert_close(&what, &steps.logits(&runs), &values(expected), allowed);
            }
            assert_eq!(steps.take_refusal(), None);
            // Each size: one launched, two compared with what was launched.
            assert_eq!(steps.take_replayed(), 15 - 2 * 3, "{}", dir.display());
        }
    }
}
