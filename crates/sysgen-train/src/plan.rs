//! What a training run will need, told before anything is loaded: memory part by part, and arithmetic.
//!
//! All formulae are here; what a model has is counted in [`crate::parameters`]. They follow what this trainer keeps (`sysgen_model::backward`, `sysgen_ops`), counted in numbers
//! of the size given by [`Formats`]; `BENCHMARKS.md` has them beside measured peaks.

use sysgen_core::config::{Optim, TrainDtype, TrainMethod, TrainSection};
use sysgen_model::{Lora, ModelConfig, StoredDtype, parameter_shapes};
use sysgen_ops::{distilled_logit_bytes, moments8_bytes, nf4_bytes};

use crate::example::Example;
use crate::order::DataOrder;
use crate::parameters::{is_target, parameters};

/// On a device the loss holds a slice of the vocabulary of at most 384 MiB.
const DEVICE_LOGITS: u64 = 384 << 20;
/// There `sysgen_ops::linear_distillation` holds both sides' logits in slices (`distilled_logit_bytes`), and so many numbers
/// for each of them going back.
const DISTILLED_AT_ONCE: u64 = 20;
/// What the program, its runtime, the tokenizer and some rows take before the first tensor; a CUDA context on a device.
const CPU_PROGRAM: u64 = 60 << 20;
const DEVICE_CONTEXT: u64 = 600 << 20;

/// The number formats of a run, and what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Bytes of a number of a matrix outside quantised projections. Norms, biases, adapters and gradients have four.
    pub weight_bytes: u64,
    /// The projections are in four bits.
    pub nf4: bool,
    /// Bytes of an activation.
    pub activation_bytes: u64,
    /// The optimizer's two moments take one byte each instead of four.
    pub eight_bit_states: bool,
    /// A layer's weights are updated as soon as its gradient exists, so that no two layers' gradients exist at once.
    pub optimizer_in_backward: bool,
    /// On a GPU instead of the CPU.
    pub device: bool,
}

impl Formats {
    /// What `train` asks for with model files in `stored`: what is not trained stays in bf16 (`sysgen_model::WeightDtype`), and
    /// on a device what is between the weights has their format (`sysgen_model::Decoder::dtype`).
    pub fn of(train: &TrainSection, stored: StoredDtype, device: bool) -> Formats {
        let frozen = train.method.has_adapter() && stored == StoredDtype::Bf16;
        let bf16 = match train.dtype {
            TrainDtype::Bf16 => true,
            TrainDtype::Auto => frozen,
            TrainDtype::F32 => false,
        };
        Formats {
            weight_bytes: if bf16 { 2 } else { 4 },
            nf4: train.method == TrainMethod::Qlora,
            activation_bytes: if device && bf16 { 2 } else { 4 },
            eight_bit_states: train.optim == Optim::Adamw8bit,
            optimizer_in_backward: train.optimizer_in_backward,
            device,
        }
    }
}

/// A teacher that is run beside the student.
#[derive(Clone, Copy, Debug)]
pub struct Teacher<'a> {
    /// Its shape.
    pub config: &'a ModelConfig,
    /// Bytes of a number of its matrices.
    pub weight_bytes: u64,
}

impl Teacher<'_> {
    /// One whose files are in `config`'s format.
    pub fn of(config: &ModelConfig) -> Teacher<'_> {
        let bf16 = config.stored_dtype == StoredDtype::Bf16;
        Teacher {
            config,
            weight_bytes: if bf16 { 2 } else { 4 },
        }
    }

    /// Its weights, the widest layer of its forward pass, and what it says of the learnt positions to a student whose head of
    /// `head` numbers `learns`.
    fn bytes(self, work: Work, formats: Formats, head: u64, learns: bool) -> u64 {
        let counted = parameters(self.config, None);
        let activation_bytes = if formats.device { self.weight_bytes } else { 4 };
        let layer = kept_per_token(self.config, None) * work.tokens * activation_bytes;
        let hidden = work.supervised * self.config.hidden_size as u64 * 4;
        let vocab = self.config.vocab_size as u64;
        let all = work.supervised * vocab * 4;
        let slice = distilled_logit_bytes(head as usize, learns) as u64;
        // Of several slices, the gradient of the head stands beside the sum of those before.
        let of_head = if learns && all > slice { 4 * head } else { 0 };
        let logits = match formats.device {
            true => DISTILLED_AT_ONCE * all.min(slice) + of_head,
            false => distilled_positions(self.config).min(work.supervised) * vocab * 4,
        };
        counted.matrices * self.weight_bytes
            + (counted.model - counted.matrices) * 4
            + layer
            + hidden
            + logits
    }
}

/// The work of one micro-batch and of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Tokens of a micro-batch, padding included.
    pub tokens: u64,
    /// Of these, learnt.
    pub supervised: u64,
    /// Micro-batches of a step.
    pub micro_batches: u64,
    /// Tokens of a row.
    pub row: u64,
    /// The layers' insides are computed again going back.
    pub gradient_checkpointing: bool,
}

impl Work {
    /// The largest micro-batch that `train` allows, `supervised_share` of it learnt.
    pub fn of(train: &TrainSection, supervised_share: f64) -> Work {
        let row = train.max_length as u64;
        let tokens = row * train.per_device_train_batch_size as u64;
        Work {
            tokens,
            supervised: (tokens as f64 * supervised_share).ceil() as u64,
            micro_batches: train.gradient_accumulation_steps as u64,
            row,
            gradient_checkpointing: train.gradient_checkpointing,
        }
    }

    /// The mean micro-batch of the first pass over `examples`: what a step takes in time, while [`Work::of`] is what it may
    /// take in memory. Padding is computed like every token; a token sees only its own conversation, so a row is as long as
    /// the conversation a token is in, on average.
    pub fn mean(train: &TrainSection, order: &mut DataOrder, examples: &[Example]) -> Work {
        let steps = order.steps_per_epoch().min(order.total_steps()).max(1);
        let (mut cells, mut tokens, mut squares, mut supervised) = (0, 0, 0, 0);
        for batch in (0..steps).flat_map(|step| order.step(step)) {
            let length = |&example: &usize| examples[example].ids.len();
            let longest = batch
                .iter()
                .map(|row| row.iter().map(length).sum::<usize>());
            cells += batch.len() * longest.max().unwrap_or(0);
            for &example in batch.iter().flatten() {
                let length = length(&example);
                (tokens, squares) = (tokens + length, squares + length * length);
                supervised += examples[example].supervised();
            }
        }
        let batches = steps * train.micro_batches();
        Work {
            tokens: cells.div_ceil(batches) as u64,
            supervised: supervised.div_ceil(batches) as u64,
            micro_batches: train.gradient_accumulation_steps as u64,
            row: squares.div_ceil(tokens.max(1)) as u64,
            gradient_checkpointing: train.gradient_checkpointing,
        }
    }
}

/// Bytes of each part, each at its most. They are added although activations shrink while gradients grow: freed memory is kept
/// for a while (`sysgen_core::allocator`), and what is freed in pieces is not always what is asked for next.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// The model, adapters included.
    pub weights: u64,
    /// Gradients that exist at once.
    pub gradients: u64,
    /// The optimizer's moments.
    pub optimizer: u64,
    /// What is kept of the forward pass, and one layer's gradients of it.
    pub activations: u64,
    /// The loss: logits of a chunk, hidden states of the learnt positions and their gradient.
    pub loss: u64,
    /// A teacher that is run beside the student.
    pub teacher: u64,
    /// The program itself, or the device's context.
    pub program: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The parts by name, in the order they are shown.
    pub fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("loss", self.loss),
            ("teacher", self.teacher),
            ("program", self.program),
        ]
    }
}

/// Numbers that one token of one layer leaves for the way back: the layer's input and its sum after attention, each
/// before and after the norm; q, k, v as attention sees them, and what attention gives; gate, up and their product.
/// Adapters add their thin products; Gemma-2's norms after attention and feed-forward keep their inputs.
pub fn kept_per_token(config: &ModelConfig, lora: Option<&Lora>) -> u64 {
    let queries = (config.heads * config.head_dim) as u64;
    let keys = (config.kv_heads * config.head_dim) as u64;
    let (dim, wide) = (config.hidden_size as u64, config.intermediate_size as u64);
    let post_norms = if config.post_norms { 2 * dim } else { 0 };
    let adapters = lora.map_or(0, |lora| 7 * lora.rank as u64);
    4 * dim + 2 * queries + 2 * keys + 3 * wide + post_norms + adapters
}

/// Numbers of one token that stand beside these while one layer is gone back through: the gradients of its widest part. A
/// fused projection is cut apart after the product, and the gradients of its parts are laid into wholes that are added.
fn back_per_token(config: &ModelConfig) -> u64 {
    let wide = config.intermediate_size as u64;
    if config.fused { 9 * wide } else { 3 * wide }
}

/// Learnt positions whose logits the loss holds at a time on the CPU (`sysgen_ops::linear_cross_entropy`): 8 million numbers,
/// but 256 to 1024 positions where these are not more than 96 million.
fn loss_positions(config: &ModelConfig) -> u64 {
    let vocab = config.vocab_size.max(1) as u64;
    let most = ((96 << 20) / vocab).max(1);
    ((8 << 20) / vocab).clamp(256, 1024).min(most)
}

/// The same of `sysgen_ops::linear_distillation`.
fn distilled_positions(config: &ModelConfig) -> u64 {
    ((8 << 20) / config.vocab_size.max(1) as u64).clamp(64, 1024)
}

/// The loss: logits of some positions with their eight partial sums of gradients, hidden states of all learnt positions and
/// their gradients.
fn loss(config: &ModelConfig, work: Work, device: bool) -> u64 {
    let (dim, vocab) = (config.hidden_size as u64, config.vocab_size as u64);
    let all = work.supervised * vocab * 4;
    let chunk = match device {
        true => all.min(DEVICE_LOGITS),
        false => loss_positions(config).min(work.supervised) * 4 * (vocab + 8 * dim),
    };
    chunk + 2 * work.supervised * dim * 4
}

/// The memory of a training step.
pub fn memory(
    config: &ModelConfig,
    lora: Option<&Lora>,
    formats: Formats,
    work: Work,
    teacher: Option<Teacher>,
) -> Memory {
    let counted = parameters(config, lora);
    let adapters = if lora.is_some() { counted.trained } else { 0 };
    let projections = match formats.nf4 {
        true => nf4_bytes(counted.projections as usize) as u64,
        false => counted.projections * formats.weight_bytes,
    };
    let tables = (counted.matrices - counted.projections) * formats.weight_bytes;
    let vectors = (counted.model - counted.matrices) * 4;
    let dim = config.hidden_size as u64;
    // A projection in four bits is whole while a product is made of it.
    let whole = if formats.nf4 {
        dim * config.intermediate_size as u64
            * if config.fused { 2 } else { 1 }
            * formats.activation_bytes
    } else {
        0
    };
    // In backward: those of a layer, and of the head or the embedding, which a tied one is until the end. Of several
    // micro-batches, a layer's stand beside their sums, and what both make beside these.
    let gradients = match (formats.optimizer_in_backward, work.micro_batches) {
        (true, _) => counted.layer + counted.table,
        (false, 1) => counted.trained,
        (false, _) => counted.trained + 2 * counted.layer.max(counted.table),
    };
    let layer = kept_per_token(config, lora) * work.tokens;
    let inputs = dim * work.tokens;
    let layers = config.layers as u64;
    let kept = match work.gradient_checkpointing {
        true => layers * inputs + layer,
        false => layers * layer,
    };
    let back = back_per_token(config) * work.tokens;
    Memory {
        weights: projections + tables + vectors + adapters * 4 + whole,
        gradients: 4 * gradients,
        optimizer: optimizer(counted.trained, formats),
        activations: (kept + back + inputs) * formats.activation_bytes,
        loss: loss(config, work, formats.device),
        teacher: teacher.map_or(0, |teacher| {
            let head = dim * config.vocab_size as u64;
            teacher.bytes(work, formats, head, lora.is_none())
        }),
        program: if formats.device {
            DEVICE_CONTEXT
        } else {
            CPU_PROGRAM
        },
    }
}

/// What an export needs on the host beside the model that was trained (`sysgen_model::Decoder::save_merged`), whatever device
/// that is on: the largest parameter in f32 and what it is read from; where an adapter is merged, the update and their sum, too,
/// and with DoRA the sum at the length of its rows.
pub fn export(config: &ModelConfig, lora: Option<&Lora>) -> u64 {
    let shapes = parameter_shapes(config).into_iter();
    let bytes = shapes.map(|(name, shape)| {
        let count: u64 = shape.iter().map(|&n| n as u64).product();
        let projection = name.contains(".layers.") && shape.len() == 2;
        let merged = lora.is_some_and(|lora| projection && is_target(&name, lora));
        count
            * match (merged, lora.is_some_and(|lora| lora.dora)) {
                (true, true) => 16,
                (true, false) => 12,
                (false, _) => 8,
            }
    });
    bytes.max().unwrap_or(0)
}

/// What a checkpoint takes on the disk: what is trained, and the optimizer's moments.
pub fn checkpoint(config: &ModelConfig, lora: Option<&Lora>, formats: Formats) -> u64 {
    let counted = parameters(config, lora);
    let weights = match lora {
        Some(_) => counted.trained * 4,
        None => counted.matrices * formats.weight_bytes + (counted.model - counted.matrices) * 4,
    };
    weights + optimizer(counted.trained, formats)
}

fn optimizer(trained: u64, formats: Formats) -> u64 {
    match formats.eight_bit_states {
        true => moments8_bytes(trained as usize) as u64,
        false => 8 * trained,
    }
}

/// What a further device of `train.devices` needs beside the first one, whose need is `first`: a copy of the model, no
/// optimizer, and all gradients of its micro-batch until they are added to the sum.
pub fn further_device(first: &Memory, trained: u64) -> Memory {
    Memory {
        gradients: 4 * trained,
        optimizer: 0,
        ..first.clone()
    }
}

/// Keys and values of `tokens` tokens in numbers of `bytes`, as answering needs them.
pub fn kv_cache(config: &ModelConfig, tokens: u64, bytes: u64) -> u64 {
    2 * (config.kv_heads * config.head_dim * config.layers) as u64 * tokens * bytes
}

/// Floating-point operations of a step over `tokens` tokens in rows of `row`, `supervised` of them learnt.
///
/// Each weight costs two operations a token forward, two for the gradient of the input, and two for its own where it
/// learns; the head only at learnt positions, the embedding never; attention counts for what a token sees. What is computed
/// a second time (`gradient_checkpointing`) is added, since it takes time.
pub fn flops(config: &ModelConfig, lora: Option<&Lora>, work: Work) -> f64 {
    let counted = parameters(config, lora);
    let per_weight = if lora.is_some() { 4.0 } else { 6.0 };
    let again = if work.gradient_checkpointing {
        2.0
    } else {
        0.0
    };
    let head = (config.vocab_size * config.hidden_size) as f64;
    let width = (config.heads * config.head_dim) as f64;
    let seen: f64 = config
        .windows
        .iter()
        .map(|window| {
            let row = work.row as f64;
            let window = window.map_or(row, |window| (window as f64).min(row));
            window - window * window / (2.0 * row)
        })
        .sum();
    let tokens = (work.tokens * work.micro_batches) as f64;
    let supervised = (work.supervised * work.micro_batches) as f64;
    (per_weight + again) * counted.projections as f64 * tokens
        + per_weight * head * supervised
        + (12.0 + 2.0 * again) * width * tokens * seen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::parameters::tests::{llama31, lora, phi4};

    const GIB: u64 = 1 << 30;

    fn with(method: TrainMethod) -> TrainSection {
        TrainSection {
            method,
            ..TrainSection::default()
        }
    }

    /// One row of 4096 tokens, two of three learnt.
    fn long_row() -> Work {
        Work {
            tokens: 4096,
            supervised: 2731,
            micro_batches: 1,
            row: 4096,
            gradient_checkpointing: true,
        }
    }

    #[test]
    fn phi4_with_lora_at_4096_tokens_fits_in_80_gb() {
        let of = |device| {
            let formats = Formats::of(&with(TrainMethod::Lora), StoredDtype::Bf16, device);
            assert_eq!(formats.weight_bytes, 2);
            let memory = memory(&phi4(), Some(&lora()), formats, long_row(), None);
            assert!(memory.total() < 80_000_000_000, "{memory:?}");
            assert!(memory.weights > 26 * GIB, "{memory:?}");
            memory
        };
        // On a device what is between the weights is bf16, too.
        assert_eq!(of(false).activations, 2 * of(true).activations);
    }

    #[test]
    fn phi4_whole_at_4096_tokens_fits_in_141_gb_with_all_that_saves_memory() {
        let lean = TrainSection {
            dtype: TrainDtype::Bf16,
            optim: Optim::Adamw8bit,
            optimizer_in_backward: true,
            ..with(TrainMethod::Full)
        };
        let on = |device, train: &TrainSection| {
            let formats = Formats::of(train, StoredDtype::Bf16, device);
            memory(&phi4(), None, formats, long_row(), None).total()
        };
        assert!(on(true, &lean) < 141_000_000_000, "{}", on(true, &lean));
        let total = |train: &TrainSection| on(false, train);
        assert!(total(&lean) < 141_000_000_000, "{}", total(&lean));
        // Without any one of them it takes more, and with none of them it does not fit.
        let without = [
            TrainSection {
                dtype: TrainDtype::Auto,
                ..lean.clone()
            },
            TrainSection {
                optim: Optim::Adamw,
                ..lean.clone()
            },
            TrainSection {
                optimizer_in_backward: false,
                ..lean.clone()
            },
        ];
        for train in &without {
            assert!(total(train) > total(&lean) + 20 * GIB);
        }
        assert!(total(&with(TrainMethod::Full)) > 200_000_000_000);
    }

    #[test]
    fn llama31_with_qlora_at_4096_tokens_fits_in_24_gb() {
        for device in [false, true] {
            let formats = Formats::of(&with(TrainMethod::Qlora), StoredDtype::Bf16, device);
            let memory = memory(&llama31(), Some(&lora()), formats, long_row(), None);
            assert!(memory.total() < 24_000_000_000, "{memory:?}");
        }
    }

    #[test]
    fn recomputation_keeps_one_layer_and_the_inputs() {
        let with = |gradient_checkpointing| {
            let work = Work {
                gradient_checkpointing,
                ..long_row()
            };
            let formats = Formats::of(&with(TrainMethod::Lora), StoredDtype::Bf16, true);
            memory(&llama31(), Some(&lora()), formats, work, None).activations
        };
        assert!(with(false) > 8 * with(true));
    }

    /// Conversations of 100 and 300 tokens in rows of 4096: alone in their rows, or many in each.
    #[test]
    fn time_goes_by_the_tokens_that_are_there() {
        let examples: Vec<Example> = (0..80)
            .map(|n| {
                let length = if n % 2 == 0 { 100 } else { 300 };
                Example {
                    id: n.to_string(),
                    ids: vec![0; length],
                    learn: (0..length).map(|at| at % 4 == 1).collect(),
                    set: 0,
                }
            })
            .collect();
        for packing in [false, true] {
            let train = TrainSection {
                packing,
                per_device_train_batch_size: 1,
                gradient_accumulation_steps: 4,
                ..TrainSection::default()
            };
            let run = sysgen_core::RunConfig::default();
            let mut order = crate::run::order(&run, &train, &examples);
            let steps = order.steps_per_epoch() as f64;
            let mean = Work::mean(&train, &mut order, &examples);
            let model = llama31();
            let found = flops(&model, None, mean) * steps;
            // Each conversation counted by itself.
            let alone = |row: u64| Work {
                tokens: row,
                supervised: row / 4,
                micro_batches: 40,
                row,
                gradient_checkpointing: false,
            };
            let expected = flops(&model, None, alone(100)) + flops(&model, None, alone(300));
            assert!((found / expected - 1.0).abs() < 0.01, "{found} {expected}");
            let most = flops(&model, None, Work::of(&train, 0.25)) * steps;
            assert!(packing || most > 15.0 * found, "{most} {found}");
        }
    }

    #[test]
    fn an_export_of_phi4_needs_a_table_or_a_few_projections_and_a_checkpoint_12_bytes_a_weight() {
        // 100,352 words of 5120 numbers; gate and up together have 35,840 rows.
        assert_eq!(export(&phi4(), None), 100_352 * 5120 * 8);
        assert_eq!(export(&phi4(), Some(&lora())), 100_352 * 5120 * 8);
        assert_eq!(export(&llama31(), Some(&lora())), 128_256 * 4096 * 8);
        let formats = Formats::of(&with(TrainMethod::Full), StoredDtype::Bf16, true);
        assert_eq!(checkpoint(&phi4(), None, formats), 12 * 14_659_507_200);
        let formats = Formats::of(&with(TrainMethod::Lora), StoredDtype::Bf16, true);
        let bytes = checkpoint(&llama31(), Some(&lora()), formats);
        assert_eq!(bytes, 12 * 41_943_040);
    }

    #[test]
    fn a_teacher_is_counted_with_its_weights() {
        let (student, formats) = (
            llama31(),
            Formats::of(&with(TrainMethod::Lora), StoredDtype::Bf16, false),
        );
        let teacher = phi4();
        let with = |teacher| memory(&student, Some(&lora()), formats, long_row(), teacher);
        let more = with(Some(Teacher::of(&teacher))).total() - with(None).total();
        assert!(more > 27 * GIB && more < 31 * GIB, "{more}");
        // On a device a head that learns has a second gradient, and larger slices.
        let on_device = |method, lora: Option<&Lora>| {
            let formats = Formats::of(&super::tests::with(method), StoredDtype::Bf16, true);
            memory(
                &student,
                lora,
                formats,
                long_row(),
                Some(Teacher::of(&teacher)),
            )
            .teacher
        };
        let adapters = on_device(TrainMethod::Lora, Some(&lora()));
        let whole = on_device(TrainMethod::Full, None);
        let head = 4 * 4096 * 128_256;
        let slices = head / 8 - (64 << 20);
        assert_eq!(whole - adapters, head + DISTILLED_AT_ONCE * slices);
    }
}
