//! `sysgen-data`: generates the data of a config. The command line only; what happens is in the library.

mod bench;
mod output;

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use sysgen_core::command_line::{self, RunArguments, start_log};
use sysgen_core::hash::FileHashes;
use sysgen_core::tell::duration;
use sysgen_core::{RunConfig, interrupt, tell};
use sysgen_data::{Environment, Shard, Summary};
use sysgen_model::{catch_out_of_memory, doing};

/// Tensors come and go every step: an allocator that keeps its pages is much faster here than glibc's.
#[global_allocator]
static ALLOCATOR: sysgen_core::allocator::MiMalloc = sysgen_core::allocator::MiMalloc;

/// Characters of a text shown in a sample.
const SHOWN: usize = 400;

/// What lowers the memory a run needs.
const ADVICE: &str = "lower generate.batch_size or generate.max_length";
/// The same for `bench`.
const BENCH_ADVICE: &str = "lower --batch, --prompt or --new";

const EXAMPLES: &str = "\
Examples:
  sysgen-data --config configs/quickstart.toml
  sysgen-data --config configs/quickstart.toml --set data.path=rows.jsonl --set output_dir=runs/mine
  sysgen-data --config configs/quickstart.toml --dry-run    the effective config
  sysgen-data --config run.toml --shard 3/16                one of 16 processes on one output_dir
  sysgen-data merge --config run.toml                       the data set of shards all done
  sysgen-data stats runs/quickstart                         the paper's tables
  sysgen-data report runs/quickstart                        one HTML page: charts, every row
  sysgen-data export runs/quickstart --format parquet -o rows.parquet
  sysgen-data bench --model runs/quickstart/export          how fast this machine writes

Writes <output_dir>/data/dataset.jsonl and manifest.json. Run the same command again to go on after
Ctrl-C, a kill or a power cut.";

/// Writes system messages and better answers for instruction data with a local model.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<RunArguments>,
    /// Works on one part of the rows, the third of sixteen for example, beside other processes on the same
    /// output_dir; `auto` takes it from SLURM_PROCID and SLURM_NTASKS, or RANK and WORLD_SIZE.
    #[arg(long, value_name = "I/N", requires = "config")]
    shard: Option<ShardChoice>,
}

#[derive(Subcommand)]
enum Command {
    /// Times greedy decoding, on prompts that PyTorch can be given too.
    Bench(bench::BenchArguments),
    /// Writes the data set of a run whose shards are all done (the last of them does so by itself).
    Merge(RunArguments),
    /// The paper's tables for a finished data set.
    Stats(output::StatsArguments),
    /// Writes a finished data set in a format of other programs.
    Export(output::ExportArguments),
    /// Writes one HTML page about a finished data set: charts, and every row to look at.
    Report(output::ReportArguments),
}

/// What a cluster gave this process, or what was written.
#[derive(Clone, Copy)]
enum ShardChoice {
    Auto,
    Of(Shard),
}

impl FromStr for ShardChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<ShardChoice> {
        match text {
            "auto" => Ok(ShardChoice::Auto),
            shard => shard.parse().map(ShardChoice::Of),
        }
    }
}

fn main() -> ExitCode {
    sysgen_core::allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    command_line::exit(match (&arguments.command, &arguments.run) {
        (Some(Command::Bench(arguments)), _) => {
            catch_out_of_memory(BENCH_ADVICE, || bench::bench(arguments))
        }
        (Some(Command::Merge(run)), _) => {
            run.start_log();
            start(run, |config| {
                sysgen_data::merge(config, &Environment::of_process())
            })
        }
        (Some(Command::Stats(arguments)), _) => {
            start_log("info");
            output::stats(arguments)
        }
        (Some(Command::Export(arguments)), _) => {
            start_log("info");
            output::export_rows(arguments)
        }
        (Some(Command::Report(arguments)), _) => {
            start_log("info");
            output::write_report(arguments)
        }
        (None, Some(run)) => {
            run.start_log();
            interrupt::install();
            catch_out_of_memory(ADVICE, || {
                start(run, |config| generate(config, arguments.shard))
            })
        }
        (None, None) => unreachable!("clap asks for --config where there is no subcommand"),
    })
}

fn generate(config: &RunConfig, shard: Option<ShardChoice>) -> Result<Summary> {
    let shard = match shard {
        None => Shard::WHOLE,
        Some(ShardChoice::Of(shard)) => shard,
        Some(ShardChoice::Auto) => Shard::from_environment(|name| std::env::var(name).ok())?,
    };
    let device = sysgen_model::device(&config.device.to_string())?;
    doing("generating");
    let (environment, files) = (Environment::of_process(), FileHashes::default());
    sysgen_data::run_shard(config, &device, shard, &environment, &files)
}

fn start(arguments: &RunArguments, work: impl FnOnce(&RunConfig) -> Result<Summary>) -> Result<()> {
    arguments.run(|config| {
        ensure!(
            config.generate.is_some(),
            "{} has no [generate] section; add one to generate data",
            arguments.config.display()
        );
        let summary = work(config)?;
        if !summary.interrupted && !summary.other_shards && !arguments.quiet {
            show(&summary);
        }
        Ok(())
    })
}

fn show(summary: &Summary) {
    tell(summary);
    for sample in &summary.samples {
        tell(format_args!("\n{}", sample.id));
        tell(format_args!(
            "  question         {}",
            shortened(&sample.question)
        ));
        tell(format_args!(
            "  system message   {}",
            shortened(sample.system.as_deref().unwrap_or("(none)"))
        ));
        tell(format_args!(
            "  original answer  {}",
            shortened(&sample.original_answer)
        ));
        tell(format_args!(
            "  new answer       {}",
            shortened(&sample.answer)
        ));
    }
    if summary.tokens > 0 {
        let speed = summary.tokens as f64 / summary.seconds.max(1e-9);
        tell(format_args!(
            "\n{} tokens read and written in {} ({speed:.0} tokens/s)",
            summary.tokens,
            duration(summary.seconds)
        ));
    }
    tell(format_args!("\n{}", summary.dataset.display()));
}

/// One line of at most `SHOWN` characters.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
