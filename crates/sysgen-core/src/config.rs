//! One TOML file describes a run; its sections decide what runs. It is parsed once and checked whole
//! before any weight is loaded (`load`, `check`); nothing reads TOML afterwards.

mod check;
mod distill;
mod generate;
mod load;
mod model;
mod origin;
mod train;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use distill::{CrossTokenizer, DistillSection, DivergenceKind};
pub use generate::{
    DraftSection, Engine, GenerateSection, OpenaiSection, RespondSection, TagRules, Variant,
    VerifyMethod, VerifySection,
};
pub use model::{
    ColumnsSection, DataSection, Deduplicate, DefaultSystem, DeviceChoice, ExistingSystem,
    HubDataset, ModelInit, ModelSection, MultiTurn, SystemRole, why_no_model,
};
pub use train::{
    ALL_LINEAR, AdapterExport, BestMetric, ExportDtype, ExportSection, LrScheduler, Optim,
    ReportTo, SaveStrategy, TrainDtype, TrainMethod, TrainSection,
};

/// A whole run. `[generate]`, `[train]` and `[export]` each run when they are present, in that order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Folder for everything the run writes, relative to the current directory; required.
    pub output_dir: PathBuf,
    /// Start of every random stream; default 0.
    pub seed: u64,
    /// Where tensors live: `auto`, `cpu`, `cuda` or `cuda:<index>`; default `auto`.
    pub device: DeviceChoice,
    /// The model to start from; required.
    pub model: ModelSection,
    /// The source rows.
    pub data: DataSection,
    /// Present: generate data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate: Option<GenerateSection>,
    /// Present: train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainSection>,
    /// Present: training also learns from a teacher's probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillSection>,
    /// Present: export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<ExportSection>,
}

impl RunConfig {
    /// Reads and checks the config at `path`; `overrides` are the values of `--set`, each
    /// `section.key=value`, the later one winning. `--set train=false` (also `generate`, `export`)
    /// takes a section out and `=true` puts it in with its defaults. Paths in the file are relative
    /// to the current directory.
    ///
    /// # Errors
    /// One line for each mistake, which names the file and line (or the `--set`), the key, and what is
    /// allowed. Where keys or types are wrong, only those are told.
    pub fn load(path: &Path, overrides: &[String]) -> anyhow::Result<RunConfig> {
        load::load(path, overrides)
    }

    /// The effective config with every default spelled out. Loading it again gives the same config.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("config sections hold scalars before tables, no nulls")
    }

    /// The Hugging Face directory that generates data: `generate.model`, or `model.path` when empty.
    pub fn generate_model(&self) -> &Path {
        match &self.generate {
            Some(generate) if !generate.model.as_os_str().is_empty() => &generate.model,
            _ => &self.model.path,
        }
    }

    /// The folder of the exported model: `export.path`, or `<output_dir>/export` when empty.
    pub fn export_path(&self) -> PathBuf {
        match &self.export {
            Some(export) if !export.path.as_os_str().is_empty() => export.path.clone(),
            _ => self.output_dir.join("export"),
        }
    }

    /// The folder of generated data, `<output_dir>/data`.
    pub fn generated_data_dir(&self) -> PathBuf {
        self.output_dir.join("data")
    }

    /// Every section present, every key at its default: what a file may say.
    fn with_all_sections() -> RunConfig {
        RunConfig {
            generate: Some(GenerateSection::default()),
            train: Some(TrainSection::default()),
            distill: Some(DistillSection::default()),
            export: Some(ExportSection::default()),
            ..RunConfig::default()
        }
    }
}
