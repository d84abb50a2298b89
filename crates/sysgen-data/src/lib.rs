//! The four phases of SysGen over a data set, resumable: `draft` a tagged system message, `filter` it,
//! `verify` its phrases, `respond` under it. Reads many formats, writes `<output_dir>/data/`.
//!
//! How text becomes tokens is left to `sysgen-chat`, decoding to `sysgen-infer`; only `local` knows them; `openai` knows an
//! endpoint instead, and `stats::bert_score` an encoder.

pub mod input;

mod draft;
pub mod filter;
mod respond;
pub mod tag;
pub mod verify;

mod card;
mod dataset;
mod engine;
pub mod environment;
pub mod export;
mod finish;
pub mod generator;
mod local;
mod log;
pub mod manifest;
pub mod open;
mod openai;
mod pipeline;
mod progress;
mod prompt;
pub mod report;
mod session;
mod shard;
pub mod stats;
mod steps;
mod summary;
mod throughput;

pub use engine::{is_complete, merge, run, run_shard};
pub use environment::Environment;
pub use log::Phase;
pub use openai::run_by_endpoint;
pub use pipeline::{
    ModelIdentity, dataset_path, is_complete_with, merge_with, run_shard_with, run_with,
};
pub use shard::Shard;
pub use summary::{Sample, Summary};
