//! A long run of short requests: what the engine keeps must not grow with the requests it has answered.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use sysgen_infer::{Engine, Options, Outcome, Request, Sampling};
use sysgen_model::{Decoder, Device};

const REQUESTS: u64 = 20_000;
/// Requests that are known to the engine at a time.
const QUEUED: u64 = 256;
/// How much more memory the process may have at the end than after a quarter of the requests.
const GROWTH: usize = 8 << 20;

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<usize> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[test]
fn memory_is_flat_over_twenty_thousand_requests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama32_tied");
    let decoder = Decoder::load(&folder, &Device::flex()).unwrap();
    let vocab_size = decoder.config.vocab_size as u64;
    let options = Options {
        max_length: 64,
        ..Options::default()
    };
    let mut engine = Engine::new(&decoder, options);
    let request = |i: u64| {
        // No two prompts are alike; their first blocks sometimes are.
        let id = |j: u64| ((i / (1 + j % 3) * 31 + j * 17) % vocab_size) as u32;
        let length = if i.is_multiple_of(4) { 18 + i % 5 } else { 3 };
        let sampling = Sampling {
            temperature: 1.0,
            seed: i,
            ..Sampling::greedy(1 + (i % 4) as usize)
        };
        Request {
            n: 1 + (i % 50 == 7) as usize,
            ..Request::new((0..length).map(id).collect(), sampling, vec![3])
        }
    };
    let (mut asked, mut answered) = (0, 0);
    let mut early = None;
    while answered < REQUESTS {
        while asked < REQUESTS && asked - answered < QUEUED {
            engine.submit(request(asked));
            asked += 1;
        }
        for (_, result) in engine.step() {
            assert!(matches!(result, Ok(Outcome::Answer(_))));
            answered += 1;
        }
        if early.is_none() && answered >= REQUESTS / 4 {
            early = Some(resident());
        }
    }
    assert!(engine.is_idle());
    if let (Some(Some(early)), Some(late)) = (early, resident()) {
        assert!(
            late < early + GROWTH,
            "{early} bytes after a quarter of the requests, {late} at the end"
        );
    }
}
