//! `sysgen-data bench`: how fast this machine writes, on prompts that PyTorch can be given too. Greedy, no stop ids.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;
use sysgen_core::measure::{Measured, PeakMemory, least, median, rounded};
use sysgen_core::tell;
use sysgen_infer::{Engine, Options, Request, Sampling, Statistics};
use sysgen_model::{Decoder, WeightDtype, device, device_name, doing, read_ids};

/// The tensor of the inputs file, `[rows, prompt]`.
const TENSOR: &str = "prompt.input_ids";
/// Of random weights.
const SEED: u64 = 0;
/// Ids that are compared with PyTorch's.
const FIRST_TOKENS: usize = 16;
/// How prompts are made when there are more rows than the file has.
const ROWS: &str = "row i is row i % rows of the inputs, its first id moved on by i / rows";

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// A model in Hugging Face layout; or a bare `config.json`, for random weights of that shape.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Prompts, tensor `prompt.input_ids` [rows, prompt] of a safetensors file; made-up ids without it.
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Texts written at a time.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 32)]
    prompt: usize,
    /// Tokens written after each.
    #[arg(long, default_value_t = 128)]
    new: usize,
    /// Tokens that all prompts start with, those of the first row; they are computed once.
    #[arg(long, default_value_t = 0)]
    shared_prefix: usize,
    /// Computes every prompt in full, also what several share.
    #[arg(long)]
    no_prefix_caching: bool,
    /// Launches every kernel of a decoding step by itself on a GPU, without CUDA graphs.
    #[arg(long)]
    enforce_eager: bool,
    /// Timed runs, after one that is not.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// auto, cpu, cuda or cuda:1.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Prints JSON, one object on a line.
    #[arg(long)]
    json: bool,
}

/// The figures, under the names that the PyTorch side uses. Reading the prompts counts as time, not as tokens.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    measured: Measured,
    batch: usize,
    prompt: usize,
    new: usize,
    shared_prefix: usize,
    rows: &'static str,
    seconds: Vec<f64>,
    tokens_per_s_best: f64,
    tokens_per_s_median: f64,
    decode_tokens_per_s: f64,
    prefill_tokens_per_s: f64,
    reused_tokens: usize,
    /// Passes through the model, and those of them that were a CUDA graph.
    steps: usize,
    replayed_steps: usize,
    occupancy: f64,
    first_tokens_row0: Vec<u32>,
    #[serde(flatten)]
    memory: PeakMemory,
}

/// Measures and prints.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let BenchArguments {
        batch, prompt, new, ..
    } = *arguments;
    ensure!(
        batch > 0 && prompt > 0 && new > 0 && arguments.repeats > 0,
        "--batch, --prompt, --new and --repeats must be at least 1"
    );
    ensure!(
        arguments.shared_prefix <= prompt,
        "--shared-prefix {} is longer than --prompt {prompt}",
        arguments.shared_prefix
    );
    let device = device(&arguments.device)?;
    doing("loading the model");
    let (decoder, origin) = Decoder::open(&arguments.model, SEED, &device, WeightDtype::Auto)
        .with_context(|| format!("--model {}", arguments.model.display()))?;
    let parameters = decoder.parameters().iter().map(|p| p.tensor.len()).sum();
    let decoder = decoder.pack();
    let longest = decoder.config.max_position_embeddings;
    ensure!(
        prompt + new <= longest,
        "--prompt {prompt} and --new {new} are more than the model's max_position_embeddings {longest}"
    );
    let vocab_size = decoder.config.vocab_size;
    let rows = match &arguments.inputs {
        Some(path) => from_file(path, prompt, vocab_size)?,
        None => made_up(batch, prompt, vocab_size),
    };
    let prompts = prompts(&rows, batch, arguments.shared_prefix, vocab_size);

    let options = Options {
        max_num_seqs: batch,
        max_length: prompt + new,
        prefix_caching: !arguments.no_prefix_caching,
        enforce_eager: arguments.enforce_eager,
        ..Options::default()
    };
    let (mut seconds, mut first) = (Vec::new(), Vec::new());
    let mut statistics = Statistics::default();
    doing("writing");
    for repeat in 0..=arguments.repeats {
        let started = Instant::now();
        (first, statistics) = write(&decoder, &prompts, new, options)?;
        if repeat > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    let written = (batch * new) as f64;
    let memory = device.memory_pool_usage();
    let report = Report {
        measured: Measured {
            device: device_name(&device),
            model: arguments.model.display().to_string(),
            parameters,
            weights: origin.name(),
        },
        batch,
        prompt,
        new,
        shared_prefix: arguments.shared_prefix,
        rows: ROWS,
        tokens_per_s_best: rounded(written / least(&seconds), 1),
        tokens_per_s_median: rounded(written / median(&seconds), 1),
        seconds: seconds.iter().map(|s| rounded(*s, 4)).collect(),
        decode_tokens_per_s: rounded(statistics.decode_tokens_per_second(), 1),
        prefill_tokens_per_s: rounded(statistics.prefill_tokens_per_second(), 1),
        reused_tokens: statistics.reused_tokens,
        steps: statistics.steps,
        replayed_steps: statistics.replayed_steps,
        occupancy: rounded(statistics.mean_occupancy(), 4),
        first_tokens_row0: first.into_iter().take(FIRST_TOKENS).collect(),
        memory: PeakMemory::with_device(memory.map(|usage| usage.bytes_reserved)),
    };
    tell(if arguments.json {
        serde_json::to_string(&report)?
    } else {
        report.to_text()
    });
    Ok(())
}

/// Writes `new` tokens after every prompt; those of the first row, and what the engine counted.
fn write(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    new: usize,
    options: Options,
) -> Result<(Vec<u32>, Statistics)> {
    let requests = prompts
        .iter()
        .map(|prompt| Request::new(prompt.clone(), Sampling::greedy(new), Vec::new()));
    let (mut first, mut failure) = (Vec::new(), None);
    let statistics = Engine::new(decoder, options).generate(
        requests.collect(),
        &mut |row, answer| match answer {
            Ok(answer) => {
                if row == 0 {
                    first = answer.into_first().ids;
                }
                ControlFlow::Continue(())
            }
            Err(refused) => {
                failure = Some(anyhow!("row {row}: {refused}"));
                ControlFlow::Break(())
            }
        },
    );
    failure.map_or(Ok((first, statistics)), Err)
}

/// The first tokens of the file's rows.
fn from_file(path: &Path, prompt: usize, vocab_size: usize) -> Result<Vec<Vec<u32>>> {
    let file = read_ids(path, TENSOR)?;
    let &[rows, length] = file.shape.as_slice() else {
        anyhow::bail!(
            "tensor `{TENSOR}` in {} has shape {:?}; it must be [rows, prompt]",
            path.display(),
            file.shape
        );
    };
    ensure!(
        rows > 0 && prompt <= length,
        "tensor `{TENSOR}` in {} has {rows} rows of {length} tokens; use --prompt up to these",
        path.display()
    );
    if let Some(id) = file.ids.iter().find(|&&id| id as usize >= vocab_size) {
        anyhow::bail!(
            "tensor `{TENSOR}` in {} holds token id {id}, the model's vocab_size is {vocab_size}",
            path.display()
        );
    }
    let rows = file.ids.chunks(length);
    Ok(rows.map(|row| row[..prompt].to_vec()).collect())
}

/// Ids without meaning, another row each.
fn made_up(rows: usize, prompt: usize, vocab_size: usize) -> Vec<Vec<u32>> {
    let id = |row: usize, at: usize| ((row * 7919 + at * 104_729 + 13) % vocab_size) as u32;
    (0..rows)
        .map(|row| (0..prompt).map(|at| id(row, at)).collect())
        .collect()
}

/// As many prompts as wanted, no two alike: the engine would compute equal ones once.
fn prompts(rows: &[Vec<u32>], batch: usize, shared: usize, vocab_size: usize) -> Vec<Vec<u32>> {
    let prompt = |i: usize| {
        let mut ids = rows[i % rows.len()].clone();
        let turn = i / rows.len();
        let moved = |id: u32| ((id as usize + turn) % vocab_size) as u32;
        ids[0] = moved(ids[0]);
        if let Some(first) = ids.get_mut(shared).filter(|_| shared > 0) {
            *first = moved(*first);
        }
        ids[..shared].copy_from_slice(&rows[0][..shared]);
        ids
    };
    (0..batch).map(prompt).collect()
}

impl Report {
    fn to_text(&self) -> String {
        let lines = [
            self.measured.to_string(),
            format!(
                "{} texts at a time on {}: {} tokens after {} of prompt, {} shared",
                self.batch, self.measured.device, self.new, self.prompt, self.shared_prefix
            ),
            format!("prompts: {}", self.rows),
            format!(
                "tokens/s: {:.0} median, {:.0} best, prompts read in that time",
                self.tokens_per_s_median, self.tokens_per_s_best
            ),
            format!(
                "alone: {:.0} tokens/s written, {:.0} of prompts read, {} reused; {:.0} % of the places taken",
                self.decode_tokens_per_s,
                self.prefill_tokens_per_s,
                self.reused_tokens,
                100.0 * self.occupancy
            ),
            format!(
                "{} of {} steps started as one (CUDA graphs)",
                self.replayed_steps, self.steps
            ),
            format!("first tokens of row 0: {:?}", self.first_tokens_row0),
        ];
        lines.join("\n") + &self.memory.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_prompts_are_alike_and_the_shared_part_is() {
        for shared in [0, 2] {
            let prompts = prompts(&made_up(2, 4, 50), 7, shared, 50);
            for (i, one) in prompts.iter().enumerate() {
                assert_eq!(one[..shared], prompts[0][..shared]);
                assert!(prompts[..i].iter().all(|other| other != one), "{i}");
            }
        }
    }
}
