//! `sysgen-train bench`: how fast this machine trains, on work that PyTorch can be given too.
//!
//! The recipe is that of `torch.optim.AdamW(model.parameters())`: everything decays, nothing is clipped.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use sysgen_core::config::Optim;
use sysgen_core::measure::{Measured, PeakMemory, least, median, rounded};
use sysgen_core::tell;
use sysgen_model::{Decoder, Device, Lora, WeightDtype, device, device_name, doing, has_bf16};
use sysgen_ops::AdamW;
use sysgen_train::optim::Optimizer;
use sysgen_train::trainer::Trainer;

use crate::flops::{self, Method};
use crate::matmul::{self, Format, Product, dtype_name};
use crate::workload::{self, Shape};

const SETTINGS: AdamW = AdamW {
    learning_rate: 1e-4,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    rounding_seed: 0,
};
const RECIPE: &str = "AdamW lr 1e-4, betas .9/.95, eps 1e-8, wd 0.1 on ALL parameters, no clip; loss = mean over the supervised shifted tokens";
/// On all projections; rank and alpha are those of the PyTorch side.
const LORA: Lora = Lora {
    rank: 16,
    alpha: 32.0,
    dropout: 0.0,
    target_modules: Vec::new(),
    rslora: false,
    dora: false,
};
/// Of random weights.
const SEED: u64 = 0;
/// Losses that are compared with PyTorch's.
const FIRST_LOSSES: usize = 4;

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// A model in Hugging Face layout; or a bare `config.json`, for random weights of that shape.
    #[arg(long, value_name = "PATH", required_unless_present = "matmul")]
    model: Option<PathBuf>,
    /// Token ids to train on, tensor `train.input_ids` [batches, batch, seq] of a safetensors file; random without it.
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Rows of a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens of a row.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Steps, the first of which is not timed.
    #[arg(long, default_value_t = 12)]
    steps: usize,
    /// Share of each row's tokens that is learnt, at its end.
    #[arg(long, default_value_t = 1.0)]
    supervised_share: f64,
    /// Parts a step's rows are cut into, one after the other.
    #[arg(long, default_value_t = 1)]
    micro_batches: usize,
    /// Which weights learn.
    #[arg(long, value_enum, default_value_t = Method::Full)]
    method: Method,
    /// Runs each layer again going back instead of keeping what it computed.
    #[arg(long)]
    gradient_checkpointing: bool,
    /// What the device can do at best, in TFLOP/s; gives the share of it that was used.
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,
    /// Measures matrix products instead of a step, for example 4096x4096x14336,1024x1024x1024.
    #[arg(long, value_name = "MxKxN", value_delimiter = ',')]
    matmul: Vec<Product>,
    /// Number format of the matrix products, or of the model's matrices.
    #[arg(long, value_enum, default_value_t = Format::F32)]
    dtype: Format,
    /// The optimizer: adamw or adamw_8bit.
    #[arg(long, value_name = "NAME", default_value = "adamw", value_parser = optimizer)]
    optim: Optim,
    /// Updates a layer's weights as soon as their gradients are there, and keeps none of these.
    #[arg(long)]
    optimizer_in_backward: bool,
    /// Has the weight of the matrix products laid out as a model that only answers has it (CPU).
    #[arg(long, requires = "matmul")]
    packed: bool,
    /// auto, cpu, cuda or cuda:1.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Prints JSON, one object on a line.
    #[arg(long)]
    json: bool,
}

/// The figures, under the names that the PyTorch side uses.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    measured: Measured,
    dtype: String,
    method: Method,
    optim: Optim,
    optimizer_in_backward: bool,
    gradient_checkpointing: bool,
    /// Rows and tokens of a row.
    batch: [usize; 2],
    micro_batches: usize,
    supervised_share: f64,
    steps_timed: usize,
    all_step_s: Vec<f64>,
    step_s_median: f64,
    step_s_min: f64,
    tokens_per_s_median: f64,
    tokens_per_s_best: f64,
    supervised_tokens_per_s: f64,
    first_losses: Vec<f64>,
    recipe: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mfu: Option<f64>,
    #[serde(flatten)]
    memory: PeakMemory,
}

/// Measures and prints.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let device = device(&arguments.device)?;
    let show = |line: String, json: String| tell(if arguments.json { json } else { line });
    doing("multiplying matrices");
    for product in &arguments.matmul {
        let figures = matmul::measure(*product, arguments.dtype, arguments.packed, &device)?;
        show(matmul::line(&figures), figures.to_string());
    }
    if let Some(model) = &arguments.model {
        let report = step(arguments, model, &device)?;
        show(report.to_text(), serde_json::to_string(&report)?);
    }
    Ok(())
}

/// An optimizer by its name in the config.
fn optimizer(name: &str) -> Result<Optim, String> {
    serde_json::from_value(name.into()).map_err(|_| "use adamw or adamw_8bit".to_string())
}

fn step(arguments: &BenchArguments, model: &Path, device: &Device) -> Result<Report> {
    ensure!(
        arguments.steps >= 2,
        "--steps must be at least 2: the first one is not timed"
    );
    doing("loading the model");
    let weights = match arguments.dtype {
        Format::F32 => WeightDtype::F32,
        Format::Bf16 => WeightDtype::Bf16,
    };
    ensure!(
        weights == WeightDtype::F32 || has_bf16(device),
        "--dtype bf16: {} has no bfloat16",
        device_name(device)
    );
    ensure!(
        !arguments.optimizer_in_backward || arguments.micro_batches == 1,
        "--optimizer-in-backward needs --micro-batches 1: a gradient is used before the next one is there"
    );
    let (decoder, origin) = Decoder::open(model, SEED, device, weights)
        .with_context(|| format!("--model {}", model.display()))?;
    let shape = Shape {
        batch: arguments.batch,
        seq: arguments.seq,
        micro_batches: arguments.micro_batches,
        supervised_share: arguments.supervised_share,
        vocab_size: decoder.config.vocab_size,
    };
    let steps = workload::steps(arguments.inputs.as_deref(), shape)?;
    let supervised = steps[0].iter().map(|part| part.targets.len()).sum();
    let tokens = shape.batch * shape.seq;
    let flops = flops::of_step(&decoder, arguments.method, tokens, supervised, shape.seq);
    let parameters = decoder.parameters();
    let (count, dtype) = (
        parameters.iter().map(|p| p.tensor.len()).sum(),
        dtype_name(decoder.head().dtype()),
    );
    drop(parameters);
    let decoder = match arguments.method {
        Method::Full => decoder,
        Method::Lora => decoder.with_lora(LORA, SEED)?,
    };
    let mut optimizer = Optimizer::of(arguments.optim, &decoder.trainable(), SETTINGS);
    optimizer.decay_vectors = true;
    let mut trainer = Trainer::new(decoder, optimizer, 0.0);
    trainer.gradient_checkpointing = arguments.gradient_checkpointing;
    trainer.optimizer_in_backward = arguments.optimizer_in_backward;

    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    let mut reserved = None;
    doing("taking a training step");
    for step in 0..arguments.steps {
        let started = Instant::now();
        let report = trainer.step(&steps[step % steps.len()], SETTINGS.learning_rate);
        device.sync()?;
        seconds.push(started.elapsed().as_secs_f64());
        ensure!(
            report.applied,
            "step {step}: loss {} or gradient {} is not finite",
            report.loss,
            report.grad_norm
        );
        losses.push(report.loss);
        // Pages are kept for reuse, so what is held after a step is the most it needed.
        let held = device.memory_pool_usage().map(|usage| usage.bytes_reserved);
        reserved = reserved.max(held);
    }
    let timed = &seconds[1..];
    let (middle, best) = (median(timed), least(timed));
    Ok(Report {
        measured: Measured {
            device: device_name(device),
            model: model.display().to_string(),
            parameters: count,
            weights: origin.name(),
        },
        dtype,
        method: arguments.method,
        optim: arguments.optim,
        optimizer_in_backward: arguments.optimizer_in_backward,
        gradient_checkpointing: arguments.gradient_checkpointing,
        batch: [shape.batch, shape.seq],
        micro_batches: shape.micro_batches,
        supervised_share: shape.supervised_share,
        steps_timed: timed.len(),
        all_step_s: seconds.iter().map(|s| rounded(*s, 4)).collect(),
        step_s_median: rounded(middle, 5),
        step_s_min: rounded(best, 5),
        tokens_per_s_median: rounded(tokens as f64 / middle, 1),
        tokens_per_s_best: rounded(tokens as f64 / best, 1),
        supervised_tokens_per_s: rounded(supervised as f64 / middle, 1),
        first_losses: losses.into_iter().take(FIRST_LOSSES).collect(),
        recipe: RECIPE,
        mfu: arguments
            .peak_tflops
            .map(|peak| rounded(flops / middle / (peak * 1e12), 4)),
        memory: PeakMemory::with_device(reserved),
    })
}

impl Report {
    fn to_text(&self) -> String {
        let mut lines = vec![
            format!("{}, {}", self.measured, self.dtype),
            format!(
                "{} steps of {} x {} tokens on {}, micro-batches: {}, learnt: {:.0} % of each row",
                self.steps_timed,
                self.batch[0],
                self.batch[1],
                self.measured.device,
                self.micro_batches,
                100.0 * self.supervised_share
            ),
            format!(
                "step: {:.4} s median, {:.4} s best",
                self.step_s_median, self.step_s_min
            ),
            format!(
                "tokens/s: {:.0} median, {:.0} best, {:.0} learnt",
                self.tokens_per_s_median, self.tokens_per_s_best, self.supervised_tokens_per_s
            ),
            format!("first losses: {:?}", self.first_losses),
        ];
        if let Some(mfu) = self.mfu {
            lines.push(format!(
                "model FLOPs utilisation: {:.1} % of the given peak",
                100.0 * mfu
            ));
        }
        lines.join("\n") + &self.memory.to_string()
    }
}
