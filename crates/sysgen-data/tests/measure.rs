//! What 100,000 rows cost beside the model: reading, rendering, queueing, logging. Run by hand, one at a time:
//!
//!     cargo test --workspace --test measure -- --ignored --nocapture --test-threads 1 rows_
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use rayon::prelude::*;
use sysgen_chat::{Chat, ChatOptions};
use sysgen_core::RunConfig;
use sysgen_core::measure::peak_rss_mib;
use sysgen_data::generator::{Generator, Judged, Judgement, OnDone, Outcome, Prompt, Reply};
use sysgen_data::{ModelIdentity, run_with};

/// The program's.
#[global_allocator]
static ALLOCATOR: sysgen_core::allocator::MiMalloc = sysgen_core::allocator::MiMalloc;

const ROWS: usize = 100_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Renders every prompt to ids, as the local engine does, and answers with nothing.
struct Silent {
    chat: Chat,
    tokens: usize,
}

impl Generator for Silent {
    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()> {
        let queue: Vec<Vec<u32>> = prompts
            .par_iter()
            .map(|prompt| self.chat.prompt(&prompt.messages))
            .collect::<Result<_>>()?;
        for (i, ids) in queue.iter().enumerate() {
            self.tokens += ids.len();
            let reply = Reply {
                text: String::new(),
                finished: true,
                prompt_tokens: ids.len(),
                reply_tokens: 0,
                teacher: None,
            };
            let _ = on_done(i, Outcome::Done(reply));
        }
        Ok(())
    }

    fn choose(&mut self, _: Vec<Judgement>, _: OnDone<'_, Judged>) -> Result<()> {
        unreachable!("no draft has a phrase")
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn rows_under_the_quickstarts_prompt() {
    measure("configs/quickstart/draft.txt");
}

#[test]
#[ignore = "a measurement, not a check"]
fn rows_under_the_built_in_prompt() {
    measure("");
}

fn measure(draft_prompt: &str) {
    sysgen_core::allocator::keep_freed_memory();
    let source =
        std::fs::read_to_string(root().join("configs/quickstart/instructions.jsonl")).unwrap();
    let source: Vec<&str> = source.lines().collect();
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&rows).unwrap());
    for i in 0..ROWS {
        let row = source[i % source.len()];
        let (_, rest) = row.split_once(',').unwrap();
        writeln!(file, "{{\"id\": \"row-{i}\",{rest}").unwrap();
    }
    file.flush().unwrap();
    drop(file);
    let settings = [
        format!("data.path={}", rows.display()),
        format!("output_dir={}", folder.path().join("out").display()),
        "generate.draft.retries=0".to_string(),
        format!("generate.draft_prompt={draft_prompt:?}"),
    ];
    std::env::set_current_dir(root()).unwrap();
    let config = RunConfig::load(Path::new("configs/quickstart.toml"), &settings).unwrap();

    let started = Instant::now();
    let read = sysgen_data::input::read(&config.data, 0).unwrap();
    println!("reading: {:.2} s", started.elapsed().as_secs_f64());
    assert_eq!(read.rows.len(), ROWS);
    drop(read);

    let started = Instant::now();
    let chat = Chat::load(Path::new("checkpoints/sysgen-nano"), ChatOptions::default()).unwrap();
    let silent = Box::new(Silent { chat, tokens: 0 });
    let error = run_with(&config, &ModelIdentity::default(), || Ok(silent)).unwrap_err();
    assert!(error.to_string().contains("no row is left"), "{error:#}");
    println!(
        "reading, rendering, queueing and logging: {:.2} s",
        started.elapsed().as_secs_f64()
    );
    println!("peak memory: {} MiB", peak_rss_mib().unwrap_or(0));
}
