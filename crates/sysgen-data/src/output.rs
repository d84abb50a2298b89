//! The commands that read a finished data set: `stats`, `export`, `report`. The command line only.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use sysgen_core::{RunConfig, tell};
use sysgen_data::Environment;
use sysgen_data::export::{Format, export};
use sysgen_data::input::with_local_files;
use sysgen_data::open::DataSet;
use sysgen_data::report::report;
use sysgen_data::stats::bert_score::BertScorer;
use sysgen_data::stats::{Options, statistics};
use sysgen_model::device;

/// Which data set is meant.
#[derive(Args)]
pub(crate) struct Which {
    /// A dataset.jsonl, its folder, or the output_dir of a finished run.
    #[arg(value_name = "DATASET", required_unless_present = "config")]
    dataset: Option<PathBuf>,
    /// The config that the data set was generated with, instead of its path.
    #[arg(long, value_name = "FILE", conflicts_with = "dataset")]
    config: Option<PathBuf>,
    /// Overrides one key of the config; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
}

impl Which {
    fn open(&self) -> Result<(DataSet, Option<RunConfig>)> {
        match (&self.config, &self.dataset) {
            (Some(file), _) => {
                let config = RunConfig::load(file, &self.overrides)?;
                Ok((DataSet::of_config(&config)?, Some(config)))
            }
            (None, Some(path)) => Ok((DataSet::open(path)?, None)),
            (None, None) => bail!("name a data set or a config"),
        }
    }
}

#[derive(Args)]
pub(crate) struct StatsArguments {
    #[command(flatten)]
    which: Which,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    /// Compares stems in ROUGE, as `RougeScorer(use_stemmer=True)`.
    #[arg(long)]
    stemmer: bool,
    /// Also takes BERTScore, by the encoder in this folder (BERT, RoBERTa or XLM-RoBERTa in Hugging Face format).
    #[arg(long, value_name = "DIR")]
    bertscore: Option<PathBuf>,
    /// The layer that is compared, 0 is the embeddings; without it the one of the bert-score package (17 of
    /// roberta-large's 24).
    #[arg(long, value_name = "N", requires = "bertscore")]
    bertscore_layer: Option<usize>,
    /// Takes BERTScore of this many pairs of answers, spread evenly over the data set, instead of all.
    #[arg(long, value_name = "N", requires = "bertscore", value_parser = clap::value_parser!(u64).range(1..))]
    bertscore_pairs: Option<u64>,
    /// Where the encoder runs: auto, cpu, cuda or cuda:1.
    #[arg(long, default_value = "auto", requires = "bertscore")]
    device: String,
}

impl StatsArguments {
    fn bert_scorer(&self) -> Result<Option<BertScorer>> {
        let Some(directory) = &self.bertscore else {
            return Ok(None);
        };
        let device = device(&self.device)?;
        let scorer = BertScorer::load(directory, self.bertscore_layer, &device);
        scorer.context("--bertscore").map(Some)
    }
}

/// `sysgen-data stats`.
pub(crate) fn stats(arguments: &StatsArguments) -> Result<()> {
    let (data_set, config) = arguments.which.open()?;
    // Table 8 reads the source files; those of a Hub data set are in the Hub's cache.
    let config = config
        .map(|config| with_local_files(&config, &Environment::of_process()))
        .transpose()?;
    let scorer = arguments.bert_scorer()?;
    let options = Options {
        config: config.as_ref(),
        stemmer: arguments.stemmer,
        bert_scorer: scorer.as_ref(),
        bert_score_pairs: arguments.bertscore_pairs.map(|pairs| pairs as usize),
    };
    let statistics = statistics(&data_set, options)?;
    if arguments.json {
        tell(serde_json::to_string_pretty(&statistics)?);
    } else {
        tell(statistics.to_string().trim_end());
    }
    Ok(())
}

#[derive(Args)]
pub(crate) struct ExportArguments {
    #[command(flatten)]
    which: Which,
    /// What is written.
    #[arg(long, value_enum)]
    format: Format,
    /// The file that is written.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// `sysgen-data export`.
pub(crate) fn export_rows(arguments: &ExportArguments) -> Result<()> {
    let (data_set, _) = arguments.which.open()?;
    let exported = export(&data_set, arguments.format, &arguments.output)?;
    tell(format_args!("{}: {exported}", arguments.output.display()));
    Ok(())
}

#[derive(Args)]
pub(crate) struct ReportArguments {
    #[command(flatten)]
    which: Which,
    /// The page; `report.html` beside the data set without it.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `sysgen-data report`.
pub(crate) fn write_report(arguments: &ReportArguments) -> Result<()> {
    let (data_set, _) = arguments.which.open()?;
    let beside = || data_set.directory().join("report.html");
    let output = arguments.output.clone().unwrap_or_else(beside);
    let reported = report(&data_set, &output)?;
    tell(format_args!(
        "{}: {} rows, {:.1} MB; open it in a browser",
        output.display(),
        reported.rows,
        reported.bytes as f64 / 1e6
    ));
    Ok(())
}
