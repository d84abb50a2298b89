//! `[model]`, `[data]` and the device: what a run starts from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device when this build has CUDA and the machine has one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this index. Asked for and absent is an error, never a silent fall-back.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let allowed =
            || format!("device `{text}`, expected `auto`, `cpu`, `cuda` or `cuda:<index>`");
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(allowed)?;
                index.parse().map(DeviceChoice::Cuda).map_err(|_| allowed())
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DeviceChoice, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// `[model]`: the model a run starts from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// Hugging Face directory with `config.json`, tokenizer and safetensors; required.
    pub path: PathBuf,
    /// Whether weights are loaded or drawn at random; default `pretrained`.
    pub init: ModelInit,
    /// What a family without a system role does with one; default `native`.
    pub system_role: SystemRole,
    /// What happens to a system text that the template adds by itself; default `keep`.
    pub default_system: DefaultSystem,
    /// Whether a template that can ask for thoughts (Qwen3's `enable_thinking`) asks for them; default false, since thoughts
    /// would become part of the drafts and of the answers to learn.
    pub enable_thinking: bool,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelInit {
    /// The directory's safetensors.
    #[default]
    Pretrained,
    /// Drawn from N(0, initializer_range) with the run's seed; only `config.json` and the tokenizer
    /// are read.
    Random,
}

/// How a system message reaches the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SystemRole {
    /// As the template does it; a template that refuses system messages is an error.
    #[default]
    Native,
    /// A turn of its own, in a template that would refuse it (Gemma-2).
    OwnTurn,
    /// Put before the first user turn's text.
    MergeFirstUser,
    /// A conversation with a system message is an error.
    Error,
}

/// What happens to the system text some templates add when a conversation has none (Qwen2.5, Llama-3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultSystem {
    /// Left as the template writes it.
    #[default]
    Keep,
    /// Taken out.
    Strip,
}

/// `[data]`: the source rows. They feed `[generate]` when it is present, otherwise `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// One file or Hub data set or a list of them; required by `[generate]`, and by `[train]` without it.
    /// A data set of the Hugging Face Hub is `owner/name`, or `hf://datasets/owner/name/<file>` for one file.
    #[serde(deserialize_with = "one_or_many", serialize_with = "write_one_or_many")]
    pub path: Vec<PathBuf>,
    /// How often `[train]` sees the rows of each file of `path` in an epoch: 2 is twice, 0.5 every other epoch; default
    /// empty, every row once.
    pub weights: Vec<f64>,
    /// Hub data sets: the subset (a folder such as `main`); default empty, which is the only one.
    pub subset: String,
    /// Hub data sets: the split; default `train`.
    pub split: String,
    /// Hub data sets: the branch, tag or commit; default `main`.
    pub revision: String,
    /// How many rows are read, 0 for all; default 0.
    pub limit: usize,
    /// Whether rows are shuffled by the run's seed before `limit` is applied; default false.
    pub shuffle: bool,
    /// Whether a row that cannot be read stops the run instead of being counted; default false.
    pub strict: bool,
    /// What `[generate]` makes of a conversation with several turns; default `unroll`.
    pub multi_turn: MultiTurn,
    /// What `[generate]` does with a system message a row already has; default `replace`.
    pub existing_system: ExistingSystem,
    /// Whether rows that repeat an earlier one are left out; default `none`.
    pub deduplicate: Deduplicate,
    /// `deduplicate = "minhash"`: rows whose sets of five-word sequences have this Jaccard similarity are
    /// the same; default 0.8.
    pub minhash_threshold: f64,
    /// Files with the prompts of benchmarks: a row that shares a word sequence with one is left out;
    /// default none.
    #[serde(deserialize_with = "one_or_many", serialize_with = "write_one_or_many")]
    pub decontaminate: Vec<PathBuf>,
    /// How many words such a sequence has; default 13.
    pub decontaminate_ngram: usize,
    /// Names of the columns, for files whose rows have none of the known formats.
    pub columns: ColumnsSection,
}

impl Default for DataSection {
    fn default() -> DataSection {
        DataSection {
            path: Vec::new(),
            weights: Vec::new(),
            subset: String::new(),
            split: "train".to_string(),
            revision: "main".to_string(),
            limit: 0,
            shuffle: false,
            strict: false,
            multi_turn: MultiTurn::default(),
            existing_system: ExistingSystem::default(),
            deduplicate: Deduplicate::default(),
            minhash_threshold: 0.8,
            decontaminate: Vec::new(),
            decontaminate_ngram: 13,
            columns: ColumnsSection::default(),
        }
    }
}

/// A data set of the Hugging Face Hub, as `data.path` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubDataset {
    /// `owner/name`.
    pub id: String,
    /// One file of it; none is all files of the subset and the split.
    pub file: Option<String>,
}

/// What keeps `path` from being a model's folder, with the way out; none where nothing does.
pub fn why_no_model(path: &Path) -> Option<&'static str> {
    if !path.exists() {
        Some(
            "does not exist; give the folder of a Hugging Face model, relative to the current directory (`hf download \
             ORG/NAME --local-dir DIR` makes one)",
        )
    } else if !path.is_dir() {
        Some("is not a folder; give the folder of a Hugging Face model")
    } else if !path.join("config.json").is_file() {
        Some("has no config.json; give the folder of a Hugging Face model")
    } else {
        None
    }
}

impl HubDataset {
    /// What `path` names, when that is no local file but `owner/name` or `hf://datasets/owner/name/<file>`.
    pub fn named_by(path: &Path) -> Option<HubDataset> {
        const FILES: [&str; 7] = ["jsonl", "json", "csv", "tsv", "parquet", "gz", "txt"];
        let text = path.to_str()?;
        let (rest, is_address) = match text.strip_prefix("hf://datasets/") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let mut parts = rest.splitn(3, '/');
        let (owner, name, file) = (parts.next()?, parts.next()?, parts.next());
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let is_file = FILES
            .iter()
            .any(|ending| name.ends_with(&format!(".{ending}")));
        if !is_word(owner)
            || !is_word(name)
            || (!is_address && (file.is_some() || is_file || path.exists()))
        {
            return None;
        }
        Some(HubDataset {
            id: format!("{owner}/{name}"),
            file: file.filter(|file| !file.is_empty()).map(str::to_string),
        })
    }
}

/// Which rows count as repeating an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deduplicate {
    /// None.
    #[default]
    None,
    /// Those with the same text, in whatever case and with whatever white space.
    Exact,
    /// Also those with nearly the same words: MinHash over word shingles.
    Minhash,
}

/// `[data.columns]`: which column holds what; empty names are found out per row. Either `messages`, or
/// `question` and `answer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnsSection {
    /// A list of turns, in any of the known shapes.
    pub messages: String,
    /// What is asked.
    pub question: String,
    /// Text that belongs below the question, when a row has it.
    pub input: String,
    /// What is answered.
    pub answer: String,
    /// A system message, when a row has one.
    pub system: String,
    /// The row's id, when it has one.
    pub id: String,
}

/// What becomes of a conversation with several user turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiTurn {
    /// One row per answer, the earlier turns as its context.
    #[default]
    Unroll,
    /// Only the first question and answer.
    First,
    /// One system message for the conversation; each answer is written again in turn.
    Whole,
}

/// What becomes of a system message a row already has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExistingSystem {
    /// The generated message takes its place.
    #[default]
    Replace,
    /// It stays, and only the answer is written again.
    Keep,
    /// The row is passed over and counted.
    Skip,
}

/// One value or a list of them.
pub(super) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values,
    })
}

/// One value as itself.
pub(super) fn write_one_or_many<S, T>(values: &[T], serializer: S) -> Result<S::Ok, S::Error>
where
    S: Serializer,
    T: Serialize,
{
    match values {
        [value] => value.serialize(serializer),
        values => values.serialize(serializer),
    }
}
