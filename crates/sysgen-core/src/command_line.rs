//! What the command lines of the programs share: the arguments of everything that reads a config, what
//! goes to stderr, and the exit status.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::config::why_no_model;
use crate::{RunConfig, tell};

/// A config file, what overrides it, and how much is said.
#[derive(Args, Clone)]
pub struct RunArguments {
    /// The config file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Overrides one key, for example `--set data.limit=100`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Reads only so many rows: `--set data.limit=N`.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Takes the rows in random order: `--set data.shuffle=true`.
    #[arg(long)]
    pub shuffle: bool,
    /// Stops at a row that cannot be used: `--set data.strict=true`.
    #[arg(long)]
    pub strict: bool,
    /// Prints the effective config and does nothing else.
    #[arg(long)]
    pub dry_run: bool,
    /// Says more.
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Says only what went wrong.
    #[arg(short, long)]
    pub quiet: bool,
}

impl RunArguments {
    /// Hands the config to `work`, or prints it where that is all that was asked for.
    ///
    /// # Errors
    /// Those of the config, and those of `work`.
    pub fn run(&self, work: impl FnOnce(&RunConfig) -> Result<()>) -> Result<()> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.limit.map(|limit| format!("data.limit={limit}")));
        let set = |given: bool, key: &str| given.then(|| format!("data.{key}=true"));
        overrides.extend(set(self.shuffle, "shuffle"));
        overrides.extend(set(self.strict, "strict"));
        let config = RunConfig::load(&self.config, &overrides)?;
        if self.dry_run {
            tell(config.to_toml().trim_end());
            return Ok(());
        }
        work(&config)
    }

    /// [`start_log`] as `-v` and `-q` want it.
    pub fn start_log(&self) {
        start_log(match (self.verbose, self.quiet) {
            (true, _) => "debug",
            (_, true) => "error",
            _ => "info",
        });
    }
}

/// That the folder which `option` names is a model's.
///
/// # Errors
/// Says why it is not, and what to give.
pub fn model_at(path: &Path, option: &str) -> Result<()> {
    match why_no_model(path) {
        None => Ok(()),
        Some(why) => bail!("{option} {} {why}", path.display()),
    }
}

/// From now on what our crates tell at `level` and above goes to stderr, one line each; `RUST_LOG` says
/// more than `-v` and `-q` can. Called once, by a program's `main`.
pub fn start_log(level: &str) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,sysgen={level}")));
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .without_time()
        .init();
}

/// What the shell is told, and what a person is where something went wrong.
pub fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
