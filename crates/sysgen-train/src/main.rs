//! `sysgen-train`: everything a config file enables, in order: generate, check, train, export.
//!
//! This file is the command line; `pipeline` is what happens.

mod answer;
mod bench;
mod data;
mod doctor;
mod flops;
mod formats;
mod golden;
mod matmul;
mod merge;
mod parity;
mod pipeline;
mod plan_command;
mod probe;
mod samples;
mod student;
mod summary;
mod trace;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use sysgen_core::command_line::{RunArguments, exit};
use sysgen_core::{RunConfig, interrupt};
use sysgen_model::catch_out_of_memory;

/// Tensors come and go every step: an allocator that keeps its pages makes a CPU step a third faster than glibc's.
#[global_allocator]
static ALLOCATOR: sysgen_core::allocator::MiMalloc = sysgen_core::allocator::MiMalloc;

/// What lowers the memory a run needs.
const ADVICE: &str = "in training, lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps by as \
    much to keep the step) or train.max_length, or set train.gradient_checkpointing = true; in generating, lower generate.batch_size or generate.max_length; what is trained is exported by `sysgen-train export` on the CPU, \
    an adapter alone with --set export.adapter=keep";
/// The same for `bench`.
const BENCH_ADVICE: &str =
    "add --gradient-checkpointing, raise --micro-batches, or lower --batch or --seq";
/// The same for one question, and for the check of a device.
const ALONE_ADVICE: &str =
    "use a smaller model or --device cpu, and see with `nvidia-smi` who else uses the GPU";

const EXAMPLES: &str = "\
Examples:
  sysgen-train --config configs/quickstart.toml
  sysgen-train --config configs/quickstart.toml --set train.learning_rate=2e-5
  sysgen-train --config configs/quickstart.toml --dry-run       the effective config
  sysgen-train check --config configs/quickstart.toml           what is learnt, what is wrong with it
  sysgen-train plan --config configs/quickstart.toml            memory, steps and hours beforehand
  sysgen-train trace --config configs/quickstart.toml --step 7  the rows of a step
  sysgen-train export --config configs/quickstart.toml          the newest checkpoint as a model
  sysgen-train merge --model DIR --adapter DIR --output DIR     an adapter merged into its model
  sysgen-train answer --model runs/quickstart/export --user \"How do I make soup?\"
  sysgen-train doctor --device cuda                             what is missing, and is the GPU right
  sysgen-train bench --model runs/quickstart/export             how fast this machine trains

Run the same command again to go on after Ctrl-C, a kill or a power cut.";

/// Generates data, trains on it and exports the model, as the config file says.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<RunArguments>,
}

#[derive(Subcommand)]
enum Command {
    /// Shows rows with what is learnt in colour, and what would make training go wrong; trains nothing.
    Check(CheckArguments),
    /// Shows the rows of a step, or the steps of a row, with their losses.
    Trace(trace::TraceArguments),
    /// Says what a run needs: memory part by part, tokens, steps, hours, and what fits where; trains nothing.
    Plan(plan_command::PlanArguments),
    /// Writes the newest checkpoint, or the model itself where nothing was trained, as a Hugging Face folder.
    Export(RunArguments),
    /// Merges an adapter in PEFT's format into its model.
    Merge(merge::MergeArguments),
    /// Asks a model in a folder one question, with or without a system message.
    Answer(answer::AnswerArguments),
    /// Times the training step, on work that PyTorch can be given too.
    Bench(bench::BenchArguments),
    /// Says what this machine can compute with, and whether it computes right.
    Doctor(doctor::DoctorArguments),
}

#[derive(Args)]
struct CheckArguments {
    #[command(flatten)]
    run: RunArguments,
    /// Writes one HTML page with the gates and fifty rows, what is learnt marked.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What a command does with a config.
type Work = Box<dyn FnOnce(&RunConfig) -> Result<()>>;

fn main() -> ExitCode {
    sysgen_core::allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    let (command, run) = match (arguments.command, arguments.run) {
        (Some(Command::Answer(arguments)), _) => {
            return exit(catch_out_of_memory(ALONE_ADVICE, || {
                answer::answer(&arguments)
            }));
        }
        (Some(Command::Merge(arguments)), _) => {
            return exit(catch_out_of_memory(ALONE_ADVICE, || {
                merge::merge(&arguments)
            }));
        }
        (Some(Command::Bench(arguments)), _) => {
            return exit(catch_out_of_memory(BENCH_ADVICE, || {
                bench::bench(&arguments)
            }));
        }
        (Some(Command::Doctor(arguments)), _) => {
            return exit(catch_out_of_memory(ALONE_ADVICE, || {
                doctor::doctor(&arguments)
            }));
        }
        (Some(Command::Check(CheckArguments { run, html })), _) => {
            let check = move |config: &RunConfig| pipeline::check(config, html.as_deref());
            (Box::new(check) as Work, run)
        }
        (Some(Command::Trace(arguments)), _) => {
            let run = arguments.run.clone();
            let trace = move |config: &RunConfig| trace::trace(config, &arguments);
            (Box::new(trace) as Work, run)
        }
        (Some(Command::Plan(arguments)), _) => {
            let run = arguments.run.clone();
            let plan = move |config: &RunConfig| plan_command::plan(config, &arguments);
            (Box::new(plan) as Work, run)
        }
        (Some(Command::Export(run)), _) => (Box::new(pipeline::export) as Work, run),
        (None, Some(run)) => (Box::new(pipeline::run) as Work, run),
        (None, None) => unreachable!("clap asks for --config where there is no subcommand"),
    };
    run.start_log();
    interrupt::install();
    exit(catch_out_of_memory(ADVICE, || run.run(command)))
}
