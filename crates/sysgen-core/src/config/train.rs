//! `[train]` and `[export]`. Key names follow TRL, so that a recipe can be carried over.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::DeviceChoice;
use super::model::{one_or_many, write_one_or_many};

/// The word for all projections in `lora_target_modules`.
pub const ALL_LINEAR: &str = "all-linear";
use super::Variant;

/// `[train]`: present, the run trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Which weights are trained; default `full`.
    pub method: TrainMethod,
    /// Inner dimension of the adapters of `lora` and `qlora`; default 16.
    pub lora_r: usize,
    /// Their update is scaled by `lora_alpha / lora_r`; default 32.
    pub lora_alpha: f64,
    /// Share of an adapter's input that is dropped in training, from 0 to below 1; default 0.
    pub lora_dropout: f64,
    /// Projections that get an adapter, such as `["q_proj", "v_proj"]`, or `"all-linear"`; default `"all-linear"`.
    #[serde(deserialize_with = "one_or_many", serialize_with = "write_one_or_many")]
    pub lora_target_modules: Vec<String>,
    /// Whether the scale is `lora_alpha / √lora_r` instead (rsLoRA); default false.
    pub use_rslora: bool,
    /// Whether the lengths of the weights' rows are trained beside their directions (DoRA); default false.
    pub use_dora: bool,
    /// Folder of an adapter in PEFT's format to go on training; its settings then stand for the `lora_…` and `use_…`
    /// keys; default empty, a new adapter.
    pub lora_adapter: PathBuf,
    /// Which of the paper's data variants the rows of a SysGen data set are turned into; default `sysgen`, as they are.
    pub variant: Variant,
    /// The one system message of `variant = "common_system"`; default "You are a helpful AI assistant".
    pub common_system_message: String,
    /// Tokens per packed row; default 4096.
    pub max_length: usize,
    /// Whether whole conversations share a row, isolated from each other; default true.
    pub packing: bool,
    /// Whether only the assistant's content and its stop token are learnt; default true.
    pub assistant_only_loss: bool,
    /// Devices that train together, such as `["cuda:0", "cuda:1"]`, each with the whole model; the first one keeps the
    /// optimizer and evaluates. Default empty, the run's `device` alone.
    #[serde(deserialize_with = "one_or_many", serialize_with = "write_one_or_many")]
    pub devices: Vec<DeviceChoice>,
    /// Packed rows per micro-batch; default 4.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of each device per optimizer step; default 2.
    pub gradient_accumulation_steps: usize,
    /// Whether the layers' insides are computed again going back instead of kept: less memory, a third more work, the
    /// same numbers; default false.
    pub gradient_checkpointing: bool,
    /// Whether a layer's parameters are updated on the way back, as soon as their gradients are there, so that no full set
    /// of gradients ever exists: the same numbers in less memory. Needs `gradient_accumulation_steps = 1` and
    /// `max_grad_norm = 0`; default false.
    pub optimizer_in_backward: bool,
    /// Passes over the training rows, fractions allowed; default 3.
    pub num_train_epochs: f64,
    /// Optimizer steps, 0 to follow `num_train_epochs`; default 0.
    pub max_steps: usize,
    /// What the model's matrices are kept in; every sum is f32. `auto` is f32 for trained ones and the files' own format for
    /// those that adapters stand beside; `f32`; `bf16` halves them: each step is taken in f32 and rounded stochastically, so
    /// that small steps are not lost. On a GPU what is between the weights has their format. Default `auto`.
    pub dtype: TrainDtype,
    /// Whether a GPU may round f32 numbers to TF32, which keeps 10 bits of 23, to multiply them faster; it then does so in all
    /// that this program does, generating included. Products of bf16 are as fast either way. Default false.
    pub tf32: bool,
    /// The optimizer; default `adamw`.
    pub optim: Optim,
    /// Highest learning rate; default 1e-6.
    pub learning_rate: f64,
    /// The learning rate after warm-up; default `cosine`.
    pub lr_scheduler_type: LrScheduler,
    /// Optimizer steps over which the learning rate rises from 0; default 10.
    pub warmup_steps: usize,
    /// Decoupled weight decay of matrices; default 0.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean; default 0.9.
    pub adam_beta1: f64,
    /// Decay of the squared gradient's running mean; default 0.999.
    pub adam_beta2: f64,
    /// Added to AdamW's denominator; default 1e-8.
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm, 0 for no clipping; default 1.
    pub max_grad_norm: f64,
    /// Part of the rows held out before training, from 0 to below 1; default 0.05.
    pub eval_fraction: f64,
    /// Optimizer steps between evaluations, 0 for only before and after; default 0.
    pub eval_steps: usize,
    /// Evaluations without a better one after which the run ends, 0 to go on to the last step; default 0.
    pub early_stopping_patience: usize,
    /// By how much an evaluation must beat the best one before it to count as better for `early_stopping_patience`; which model
    /// is best does not depend on it. Default 0.
    pub early_stopping_threshold: f64,
    /// Whether the run ends with the model of its best evaluation instead of its last step's; default false.
    pub load_best_model_at_end: bool,
    /// What the best evaluation is: the lowest `eval_loss` or the highest `obedience`; default `eval_loss`.
    pub metric_for_best_model: BestMetric,
    /// Whether each evaluation also asks a few fixed questions under fixed system messages and counts, without a judge, how
    /// many are obeyed; default false.
    pub obedience_probe: bool,
    /// Other programs that can watch: `"tensorboard"` writes event files under `<output_dir>/runs`; default none.
    #[serde(deserialize_with = "one_or_many", serialize_with = "write_one_or_many")]
    pub report_to: Vec<ReportTo>,
    /// When checkpoints are saved on the way; default `steps`.
    pub save_strategy: SaveStrategy,
    /// Optimizer steps between checkpoints with `save_strategy = "steps"`, 0 for only at the end; default 500. What is done
    /// since the newest is lost with a power cut, `kill -9` or a full device.
    pub save_steps: usize,
    /// Checkpoints kept, the newest ones, 0 for all; default 1. An older one goes when the newer one is whole, so the disk
    /// holds one more for a while; one of all of a model's weights has 12 bytes for each of them.
    pub save_total_limit: usize,
    /// Optimizer steps between lines of metrics; default 1.
    pub logging_steps: usize,
    /// Steps with a non-finite loss or gradient, each skipped, after which the run stops; default 3.
    pub max_nonfinite_steps: usize,
    /// Rows whose answers are shown before and after training; default 3.
    pub samples: usize,
}

impl Default for TrainSection {
    fn default() -> TrainSection {
        TrainSection {
            method: TrainMethod::Full,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            lora_target_modules: vec![ALL_LINEAR.to_string()],
            use_rslora: false,
            use_dora: false,
            lora_adapter: PathBuf::new(),
            variant: Variant::Sysgen,
            common_system_message: "You are a helpful AI assistant".to_string(),
            max_length: 4096,
            packing: true,
            assistant_only_loss: true,
            devices: Vec::new(),
            per_device_train_batch_size: 4,
            gradient_accumulation_steps: 2,
            gradient_checkpointing: false,
            optimizer_in_backward: false,
            num_train_epochs: 3.0,
            max_steps: 0,
            dtype: TrainDtype::Auto,
            tf32: false,
            optim: Optim::Adamw,
            learning_rate: 1e-6,
            lr_scheduler_type: LrScheduler::Cosine,
            warmup_steps: 10,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            eval_fraction: 0.05,
            eval_steps: 0,
            early_stopping_patience: 0,
            early_stopping_threshold: 0.0,
            load_best_model_at_end: false,
            metric_for_best_model: BestMetric::EvalLoss,
            obedience_probe: false,
            report_to: Vec::new(),
            save_strategy: SaveStrategy::Steps,
            save_steps: 500,
            save_total_limit: 1,
            logging_steps: 1,
            max_nonfinite_steps: 3,
            samples: 3,
        }
    }
}

impl TrainSection {
    /// Micro-batches of one optimizer step, on all devices together.
    pub fn micro_batches(&self) -> usize {
        self.gradient_accumulation_steps * self.devices.len().max(1)
    }
}

/// Which weights are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainMethod {
    /// All of them.
    #[default]
    Full,
    /// Low-rank adapters beside the projections; the model itself is frozen.
    Lora,
    /// The same beside projections that are kept in four bits (NF4).
    Qlora,
}

impl TrainMethod {
    /// Whether adapters are trained.
    pub fn has_adapter(self) -> bool {
        self != TrainMethod::Full
    }
}

/// What the matrices of a model in training are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainDtype {
    /// f32 where they are trained, and as the files have them where they are not.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16; what is trained is rounded stochastically.
    Bf16,
}

/// What tells a better evaluation from a worse one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestMetric {
    /// The loss of the held-out rows; lower is better.
    #[default]
    EvalLoss,
    /// The share of fixed system messages that are obeyed; higher is better.
    Obedience,
}

/// A program that can watch a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportTo {
    /// Event files as TensorBoard reads them.
    Tensorboard,
}

/// When checkpoints are saved on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveStrategy {
    /// Every `save_steps` optimizer steps.
    #[default]
    Steps,
    /// At the end of each pass over the rows.
    Epoch,
}

/// The optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    /// AdamW, its two running averages in f32: 8 bytes for each trained weight.
    #[default]
    Adamw,
    /// The same with the averages in blocks of 8-bit numbers: about 2 bytes.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// The learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Half a cosine down to 0.
    #[default]
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// Unchanged.
    Constant,
}

/// `[export]`: present, the run writes a Hugging Face directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportSection {
    /// Folder of the exported model; default empty, which is `<output_dir>/export`.
    pub path: PathBuf,
    /// The weights' number format; default `auto`.
    pub dtype: ExportDtype,
    /// What becomes of a trained adapter; default `merge`.
    pub adapter: AdapterExport,
    /// The checkpoint that `sysgen-train export` writes, such as `runs/x/checkpoint-300`; default empty, the newest, or with
    /// `train.load_best_model_at_end` that of the best evaluation.
    pub checkpoint: PathBuf,
}

/// What an export holds of a trained adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterExport {
    /// The whole model with the adapter merged into its weights.
    #[default]
    Merge,
    /// The adapter alone, in PEFT's format.
    Keep,
}

/// The number format of exported weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportDtype {
    /// As loaded.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
}
