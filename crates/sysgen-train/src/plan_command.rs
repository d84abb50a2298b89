//! `sysgen-train plan`: what a run needs before anything is spent on it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use sysgen_core::command_line::RunArguments;
use sysgen_core::config::{
    AdapterExport, ExportSection, ModelInit, Optim, TrainDtype, TrainMethod, TrainSection,
};
use sysgen_core::measure::{forget_peak_rss, median, peak_rss_mib};
use sysgen_core::size::{parse_bytes, readable};
use sysgen_core::{RunConfig, tell};
use sysgen_model::{Lora, ModelConfig, StoredDtype, device_names, doing, stored_dtype};
use sysgen_train::batch::Batch;
use sysgen_train::method;
use sysgen_train::order::{DataOrder, Utilisation};
use sysgen_train::parameters::parameters;
use sysgen_train::plan::{self, Formats, Memory, Teacher, Work};
use sysgen_train::run::{Run, order};

use crate::data::{self, Data};

/// The share of a device's peak that training usually reaches, where nothing was measured.
const USUAL_UTILISATION: f64 = 0.4;
/// The share of the tokens that is learnt, where there are no rows to look at.
const USUAL_SUPERVISED: f64 = 0.6;
/// Steps of `--measure`; the first is not counted.
const TIMED_STEPS: usize = 4;

#[derive(Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Says what fits in this much memory, for example 80GiB or 24GB.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    device_memory: Option<u64>,
    /// Estimates the hours from the device's peak, in TFLOP/s, of which 40 % are assumed to be reached.
    #[arg(long, value_name = "TFLOPS", conflicts_with = "measure")]
    device_tflops: Option<f64>,
    /// Loads the model and times four steps; nothing is written.
    #[arg(long)]
    measure: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What the rows amount to.
struct Tokens {
    steps: usize,
    packed: Utilisation,
    supervised_share: f64,
    total: f64,
    /// A micro-batch as it is on average.
    mean: Work,
}

/// Plans and prints.
pub(crate) fn plan(config: &RunConfig, arguments: &PlanArguments) -> Result<()> {
    let train = config
        .train
        .as_ref()
        .context("plan needs a [train] section")?;
    let model = match config.model.init {
        ModelInit::Pretrained => as_stored(&config.model.path)?,
        // Random weights are made in f32, whatever the model's files would be.
        ModelInit::Random => ModelConfig {
            stored_dtype: StoredDtype::F32,
            ..ModelConfig::from_directory(&config.model.path)?
        },
    };
    let lora = method::lora(train, &model)?;
    let on_device = config.device.to_string() != "cpu" && device_names().len() > 1;
    let on_device = on_device || arguments.device_memory.is_some();
    let formats = Formats::of(train, model.stored_dtype, on_device);
    let teacher = match &config.distill {
        Some(distill) if !distill.teacher.as_os_str().is_empty() => {
            Some(as_stored(&distill.teacher)?)
        }
        _ => None,
    };
    let teacher = teacher.as_ref().map(|config| Teacher::of(config));
    let data = rows(config, train)?;
    let tokens = data.as_ref().map(|data| tokens(config, train, data));
    let share = tokens
        .as_ref()
        .map_or(USUAL_SUPERVISED, |t| t.supervised_share);
    let work = Work::of(train, share);
    let memory = plan::memory(&model, lora.as_ref(), formats, work, teacher);
    let mean = tokens.as_ref().map_or(work, |tokens| tokens.mean);
    let flops = plan::flops(&model, lora.as_ref(), mean);
    let measured = match (&data, arguments.measure) {
        (Some(data), true) => Some(measure(config, train, data)?),
        (None, true) => bail!("--measure needs rows to train on; generate the data first"),
        _ => None,
    };
    let seconds = measured.as_ref().map(|measured| measured.seconds);
    let seconds = seconds.or(arguments
        .device_tflops
        .map(|tflops| flops / (tflops * 1e12 * USUAL_UTILISATION)));
    let counted = parameters(&model, lora.as_ref());
    let keeps = |export: &ExportSection| export.adapter == AdapterExport::Keep;
    let exports = config.export.as_ref().filter(|export| !keeps(export));
    let exports = exports.map(|_| plan::export(&model, lora.as_ref()));
    let checkpoint = plan::checkpoint(&model, lora.as_ref(), formats);
    let further = plan::further_device(&memory, counted.trained);
    let further = (train.devices.len() > 1).then_some(further);
    if arguments.json {
        let steps = tokens.as_ref().map(|t| t.steps);
        tell(json!({
            "parameters": counted, "memory_bytes": memory, "total_bytes": memory.total(), "flops_per_step": flops,
            "export_bytes": exports, "checkpoint_bytes": checkpoint,
            "devices": train.devices.len().max(1), "further_device_bytes": further.as_ref().map(Memory::total),
            "steps": steps, "tokens": tokens.as_ref().map(|t| t.total),
            "supervised_share": share, "packing_utilisation": tokens.as_ref().map(|t| t.packed.share),
            "measured_bytes": measured.as_ref().and_then(|measured| measured.peak),
            "seconds_per_step": seconds, "hours": seconds.zip(steps).map(|(s, n)| s * n as f64 / 3600.0),
            "fits": arguments.device_memory.map(|most| memory.total() <= most),
        }));
        return Ok(());
    }
    let mut lines = vec![format!(
        "{}: {:.1} million parameters, {:.1} million trained ({})",
        config.model.path.display(),
        counted.model as f64 / 1e6,
        counted.trained as f64 / 1e6,
        serde_json::to_string(&train.method)?.trim_matches('"'),
    )];
    lines.push("\nMemory of a step, at most:".to_string());
    lines.extend(table(&memory));
    if let Some(further) = further {
        lines.push(format!(
            "  each of {} further device(s): {}, no optimizer but all gradients of a micro-batch",
            train.devices.len() - 1,
            readable(further.total())
        ));
    }
    lines.push(format!(
        "  answering {} sample(s): {} of keys and values",
        train.samples,
        readable(plan::kv_cache(
            &model,
            (train.samples * train.max_length) as u64,
            formats.activation_bytes,
        ))
    ));
    if let Some(exports) = exports {
        lines.push(format!(
            "  exporting: {} of the host's memory beside the model",
            readable(exports)
        ));
    }
    lines.push(format!(
        "  a checkpoint: {} of the disk",
        readable(checkpoint)
    ));
    if let Some(peak) = measured.as_ref().and_then(|measured| measured.peak) {
        lines.push(format!(
            "  measured in {TIMED_STEPS} steps: {}, {:.2} of the plan",
            readable(peak),
            peak as f64 / memory.total() as f64
        ));
    }
    match &tokens {
        Some(tokens) => lines.push(format!(
            "\nTokens: {} steps, {:.2} million tokens, {:.0} % learnt, rows {:.1} % full",
            tokens.steps,
            tokens.total / 1e6,
            100.0 * share,
            100.0 * tokens.packed.share
        )),
        None => lines.push(format!(
            "\nTokens: unknown until the data is generated; {:.0} % learnt is assumed",
            100.0 * USUAL_SUPERVISED
        )),
    }
    lines.push(hours(arguments, tokens.as_ref(), flops, seconds));
    if let Some(most) = arguments.device_memory {
        lines.push(format!("\nIn {} of device memory:", readable(most)));
        lines.extend(fits(&model, train, (formats, work, teacher), most)?);
    }
    tell(lines.join("\n"));
    Ok(())
}

/// `config.json`, with the number format that the weights beside it have, if they are there: that is what is loaded.
fn as_stored(folder: &Path) -> Result<ModelConfig> {
    let mut model = ModelConfig::from_directory(folder)?;
    let Some(stored) = stored_dtype(folder)? else {
        return Ok(model);
    };
    if stored != model.stored_dtype {
        tracing::warn!(
            "{}: config.json says {}, but the safetensors files hold {stored}, which is what counts",
            folder.display(),
            model.stored_dtype
        );
    }
    model.stored_dtype = stored;
    Ok(model)
}

/// The rows, where they are there yet.
fn rows(config: &RunConfig, train: &TrainSection) -> Result<Option<Data>> {
    let generated = config.generated_data_dir().join("dataset.jsonl");
    if config.generate.is_some() && !generated.exists() {
        return Ok(None);
    }
    data::load(config, train, None).map(Some)
}

fn tokens(config: &RunConfig, train: &TrainSection, data: &Data) -> Tokens {
    let mut order: DataOrder = order(config, train, &data.train.examples);
    let packed = order.utilisation();
    let all: usize = data.train.examples.iter().map(|e| e.ids.len()).sum();
    let learnt: usize = data.train.examples.iter().map(|e| e.supervised()).sum();
    let epochs = order.total_steps() as f64 / order.steps_per_epoch() as f64;
    Tokens {
        steps: order.total_steps(),
        packed,
        supervised_share: learnt as f64 / all.max(1) as f64,
        total: epochs * packed.tokens as f64,
        mean: Work::mean(train, &mut order, &data.train.examples),
    }
}

fn table(memory: &Memory) -> Vec<String> {
    let mut lines: Vec<String> = memory
        .parts()
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("  {name:<12} {:>10}", readable(*bytes)))
        .collect();
    lines.push(format!(
        "  {:<12} {:>10}",
        "together",
        readable(memory.total())
    ));
    lines
}

fn hours(
    arguments: &PlanArguments,
    tokens: Option<&Tokens>,
    flops: f64,
    seconds: Option<f64>,
) -> String {
    let arithmetic = format!("Time: {:.3} TFLOP a step", flops / 1e12);
    let Some(seconds) = seconds else {
        return format!("{arithmetic}; add --measure, or --device-tflops N, for the hours");
    };
    let how = match arguments.device_tflops {
        Some(tflops) => format!(
            "assuming {:.0} % of {tflops} TFLOP/s",
            100.0 * USUAL_UTILISATION
        ),
        None => "measured on this machine, median of three steps".to_string(),
    };
    let run = tokens.map_or_else(String::new, |tokens| {
        format!(
            "; {:.2} hours in all",
            seconds * tokens.steps as f64 / 3600.0
        )
    });
    format!("{arithmetic}; {seconds:.2} s a step ({how}){run}")
}

/// Does this config fit, and which changes of it would?
fn fits(
    model: &ModelConfig,
    train: &TrainSection,
    (formats, work, teacher): (Formats, Work, Option<Teacher>),
    most: u64,
) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut say = |what: &str, lora: Option<&Lora>, formats: Formats, work: Work| {
        let total = plan::memory(model, lora, formats, work, teacher).total();
        let verdict = if total <= most {
            "fits"
        } else {
            "does not fit"
        };
        lines.push(format!("  {verdict:<13} {:>10}  {what}", readable(total)));
    };
    let lora = method::lora(train, model)?;
    say("this config", lora.as_ref(), formats, work);
    let lean = Work {
        gradient_checkpointing: true,
        ..work
    };
    if !work.gradient_checkpointing {
        say(
            "train.gradient_checkpointing = true",
            lora.as_ref(),
            formats,
            lean,
        );
    }
    let one = train.per_device_train_batch_size as u64;
    let small = Work {
        tokens: lean.tokens / one,
        supervised: lean.supervised / one,
        micro_batches: lean.micro_batches * one,
        ..lean
    };
    if one > 1 {
        say(
            "the same, per_device_train_batch_size = 1",
            lora.as_ref(),
            formats,
            small,
        );
    }
    let lean = TrainSection {
        dtype: TrainDtype::Bf16,
        optim: Optim::Adamw8bit,
        optimizer_in_backward: true,
        ..train.clone()
    };
    if train.method == TrainMethod::Full && *train != lean {
        let alone = Work {
            micro_batches: 1,
            ..small
        };
        let formats = Formats::of(&lean, model.stored_dtype, formats.device);
        say(
            "the same, dtype = \"bf16\", optim = \"adamw_8bit\", optimizer_in_backward = true",
            None,
            formats,
            alone,
        );
    }
    for (method, name) in [(TrainMethod::Lora, "lora"), (TrainMethod::Qlora, "qlora")] {
        if train.method != method {
            let other = TrainSection {
                method,
                ..train.clone()
            };
            let lora = method::lora(&other, model)?;
            let formats = Formats::of(&other, model.stored_dtype, formats.device);
            say(
                &format!("the same, method = \"{name}\""),
                lora.as_ref(),
                formats,
                small,
            );
        }
    }
    Ok(lines)
}

/// What a few steps were seen to need.
struct Measured {
    /// The median of all but the first.
    seconds: f64,
    /// The most memory of the process, or what the device's pool holds; none where neither is known.
    peak: Option<u64>,
}

/// Steps on the first rows of the data; the first one warms up.
fn measure(config: &RunConfig, train: &TrainSection, data: &Data) -> Result<Measured> {
    let devices = method::devices(config)?;
    let device = &devices[0];
    method::check_device(train, device)?;
    doing("loading the model");
    let base = method::load_base(config, device)?;
    let decoder = method::with_adapters(base, train, config.seed)?;
    let identity = Default::default();
    let run = Run {
        config,
        train,
        chat: &data.chat,
        examples: &data.train.examples,
        held_out: &[],
        identity: &identity,
        observe: None,
        write: None,
    };
    let (mut order, mut trainer) = (run.order(), run.start(decoder));
    trainer.distiller = data.distiller(config, device)?;
    trainer.use_devices(&devices);
    doing("timing training steps");
    // Loading has its own peak, pages of the mapped files among it.
    forget_peak_rss();
    let mut seconds = Vec::new();
    for step in 0..TIMED_STEPS {
        let rows = order.step(step % order.steps_per_epoch());
        let pad = data.chat.pad_id();
        let batches: Vec<Batch> = rows
            .iter()
            .map(|rows| Batch::new(&data.train.examples, rows, pad))
            .collect();
        let started = Instant::now();
        trainer.step(&batches, train.learning_rate);
        device.sync()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let peak = match device.memory_pool_usage() {
        Some(usage) => Some(usage.bytes_reserved),
        None => peak_rss_mib().map(|mib| mib << 20),
    };
    Ok(Measured {
        seconds: median(&seconds[1..]),
        peak,
    })
}
