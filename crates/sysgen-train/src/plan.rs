//! What a training run will need, told before anything is loaded: memory part by part, and arithmetic.
//!
//! All formulae are here. They follow what this trainer keeps (`sysgen_model::backward`, `sysgen_ops`), counted in numbers
//! of the size given by [`Formats`]; `BENCHMARKS.md` has them beside measured peaks.

use sysgen_core::config::{TrainMethod, TrainSection};
use sysgen_model::{Lora, ModelConfig, parameter_shapes};
use sysgen_ops::{moments8_bytes, nf4_bytes};

/// Logits the loss holds at a time: 32 MB on the CPU (`sysgen_ops::linear_cross_entropy`), on a device a slice of the
/// vocabulary of at most 384 MiB.
const CPU_LOGITS: u64 = 32 << 20;
const DEVICE_LOGITS: u64 = 384 << 20;
/// What the program, its runtime and the tokenizer take before the first tensor; a CUDA context on a device.
const CPU_PROGRAM: u64 = 60 << 20;
const DEVICE_CONTEXT: u64 = 600 << 20;

/// The number formats of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Bytes of a weight outside quantised projections.
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
    /// What this version does for `method`: f32 everywhere but in the projections of `qlora`.
    pub fn of(method: TrainMethod, device: bool) -> Formats {
        Formats {
            weight_bytes: 4,
            nf4: method == TrainMethod::Qlora,
            activation_bytes: 4,
            eight_bit_states: false,
            optimizer_in_backward: false,
            device,
        }
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
}

/// Bytes of each part at the moment when they are most together: at one of the ends of the way back.
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
    /// The program itself, or the device's context.
    pub program: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.loss + self.program
    }

    /// The parts by name, in the order they are shown.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("loss", self.loss),
            ("program", self.program),
        ]
    }
}

/// How many numbers a model has, by what happens to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Parameters {
    /// All of the model's own.
    pub model: u64,
    /// Of these, in the projections of the layers.
    pub projections: u64,
    /// What is trained: all of them, or the adapters.
    pub trained: u64,
    /// The largest set of gradients that one layer, or embedding and head, has.
    pub largest_group: u64,
}

/// Counts the parameters of `config` without a weight at hand.
pub fn parameters(config: &ModelConfig, lora: Option<&Lora>) -> Parameters {
    let mut counted = Parameters::default();
    let mut groups: Vec<(String, u64)> = Vec::new();
    for (name, shape) in parameter_shapes(config) {
        let count: u64 = shape.iter().map(|&n| n as u64).product();
        counted.model += count;
        let projection = name.contains(".layers.") && shape.len() == 2;
        if projection {
            counted.projections += count;
        }
        let trained = match lora {
            None => count,
            Some(lora) if projection && is_target(&name, lora) => {
                let magnitudes = if lora.dora { shape[0] } else { 0 };
                (lora.rank * (shape[0] + shape[1]) + magnitudes) as u64
            }
            Some(_) => 0,
        };
        counted.trained += trained;
        let group: String = name.split('.').take(3).collect::<Vec<_>>().join(".");
        match groups.last_mut() {
            Some((last, sum)) if *last == group => *sum += trained,
            _ => groups.push((group, trained)),
        }
    }
    counted.largest_group = groups.iter().map(|(_, sum)| *sum).max().unwrap_or(0);
    counted
}

fn is_target(name: &str, lora: &Lora) -> bool {
    let module = name.trim_end_matches(".weight").rsplit('.').next();
    lora.target_modules.is_empty()
        || lora
            .target_modules
            .iter()
            .any(|t| Some(t.as_str()) == module)
}

/// Numbers that one token of one layer leaves for the way back: the layer's input and its sum after attention, each
/// before and after the norm; q, k, v as attention sees them, and what attention gives; gate, up and their product.
/// Adapters add their thin products; Gemma-2's norms after attention and feed-forward keep their inputs.
pub fn kept_per_token(config: &ModelConfig, lora: Option<&Lora>) -> u64 {
    let queries = (config.heads * config.head_dim) as u64;
    let keys = (config.kv_heads * config.head_dim) as u64;
    let (dim, wide) = (config.hidden_size as u64, config.intermediate_size as u64);
    let post_norms = if config.post_norms { 2 * dim } else { 0 };
    // Fused projections are cut apart after the product: the parts are copies beside the whole.
    let cut = if config.fused {
        queries + 2 * keys + 2 * wide
    } else {
        0
    };
    let adapters = lora.map_or(0, |lora| 7 * lora.rank as u64);
    4 * dim + 2 * queries + 2 * keys + 3 * wide + post_norms + cut + adapters
}

/// The memory of a training step.
pub fn memory(config: &ModelConfig, lora: Option<&Lora>, formats: Formats, work: Work) -> Memory {
    let counted = parameters(config, lora);
    let adapters = if lora.is_some() { counted.trained } else { 0 };
    let projections = match formats.nf4 {
        true => nf4_bytes(counted.projections as usize) as u64,
        false => counted.projections * formats.weight_bytes,
    };
    let others = (counted.model - counted.projections) * formats.weight_bytes;
    let state_bytes = |numbers: u64| match formats.eight_bit_states {
        true => moments8_bytes(numbers as usize) as u64,
        false => 8 * numbers,
    };
    let gradient_bytes = if formats.weight_bytes == 2 && lora.is_none() {
        2
    } else {
        4
    };
    let gradients = match formats.optimizer_in_backward {
        true => counted.largest_group,
        false => counted.trained,
    };
    let dim = config.hidden_size as u64;
    let layer = kept_per_token(config, lora) * work.tokens * formats.activation_bytes;
    let inputs = dim * work.tokens * formats.activation_bytes;
    let layers = config.layers as u64;
    let kept = match work.gradient_checkpointing {
        true => layers * inputs + layer,
        false => layers * layer,
    };
    // Going back, a layer's gradients stand beside what they are of: at most those of its widest part.
    let back = 3 * config.intermediate_size as u64 * work.tokens * formats.activation_bytes;
    // Gradients come as activations go, so the most is at one of the ends, unless an earlier micro-batch left its sum.
    let head = match lora {
        None => config.vocab_size as u64 * dim,
        Some(_) => 0,
    };
    let all_gradients = gradients * gradient_bytes;
    let first = (head.min(gradients) * gradient_bytes, kept + back + inputs);
    let last = (all_gradients, layer + back + inputs);
    let summed = work.micro_batches > 1 && !formats.optimizer_in_backward;
    let (gradients, activations) = match summed {
        true => (all_gradients, kept + back + inputs),
        false if first.0 + first.1 > last.0 + last.1 => first,
        false => last,
    };
    let logits = work.supervised * config.vocab_size as u64 * 4;
    let most = if formats.device {
        DEVICE_LOGITS
    } else {
        CPU_LOGITS
    };
    Memory {
        weights: projections + others + adapters * 4,
        gradients,
        optimizer: state_bytes(counted.trained),
        activations,
        loss: logits.min(most) + 2 * work.supervised * dim * 4,
        program: if formats.device {
            DEVICE_CONTEXT
        } else {
            CPU_PROGRAM
        },
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

/// Keys and values of `tokens` tokens, in f32, as answering needs them.
pub fn kv_cache(config: &ModelConfig, tokens: u64) -> u64 {
    2 * (config.kv_heads * config.head_dim * config.layers) as u64 * tokens * 4
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

/// Bytes as people read them.
pub fn readable(bytes: u64) -> String {
    let gib = bytes as f64 / (1u64 << 30) as f64;
    if gib >= 1.0 {
        format!("{gib:.1} GiB")
    } else {
        format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

/// A size such as `80GiB`, `24GB` or `900MiB`, in bytes.
///
/// # Errors
/// What a size looks like.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit = match unit.trim() {
        "GiB" => 1u64 << 30,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "MB" => 1_000_000,
        _ => {
            return Err(format!(
                "`{text}` is not a size; write 80GiB, 24GB or 900MiB"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write 80GiB, 24GB or 900MiB"))?;
    Ok((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// The published shape of Phi-4, without its tokenizer.
    fn phi4() -> ModelConfig {
        ModelConfig::from_json(&json!({
            "model_type": "phi3", "vocab_size": 100_352, "hidden_size": 5120, "intermediate_size": 17_920,
            "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10,
            "max_position_embeddings": 16_384, "rms_norm_eps": 1e-5, "rope_theta": 250_000.0, "hidden_act": "silu",
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"
        }))
        .unwrap()
    }

    /// The published shape of Llama-3.1-8B.
    fn llama31() -> ModelConfig {
        ModelConfig::from_json(&json!({
            "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"
        }))
        .unwrap()
    }

    fn lora() -> Lora {
        Lora {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: Vec::new(),
            rslora: false,
            dora: false,
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

    /// On a GPU: weights and activations in bf16.
    fn bf16() -> Formats {
        Formats {
            weight_bytes: 2,
            activation_bytes: 2,
            device: true,
            ..Formats::of(TrainMethod::Full, true)
        }
    }

    #[test]
    fn parameters_are_those_of_the_published_models() {
        assert_eq!(parameters(&phi4(), None).model, 14_659_507_200);
        assert_eq!(parameters(&llama31(), None).model, 8_030_261_248);
        // PEFT, r = 16 on all linear layers of Llama-3.1-8B.
        assert_eq!(parameters(&llama31(), Some(&lora())).trained, 41_943_040);
    }

    #[test]
    fn phi4_with_lora_at_4096_tokens_fits_in_80_gb() {
        let memory = memory(&phi4(), Some(&lora()), bf16(), long_row());
        assert!(memory.total() < 80_000_000_000, "{memory:?}");
        assert!(memory.weights > 27 * GIB, "{memory:?}");
    }

    #[test]
    fn phi4_whole_at_4096_tokens_fits_in_141_gb_with_eight_bit_states() {
        let formats = Formats {
            eight_bit_states: true,
            optimizer_in_backward: true,
            ..bf16()
        };
        let lean = memory(&phi4(), None, formats, long_row());
        assert!(lean.total() < 141_000_000_000, "{lean:?}");
        // With f32 moments and all gradients at once it does not.
        let plain = memory(&phi4(), None, bf16(), long_row());
        assert!(plain.total() > 141_000_000_000, "{plain:?}");
    }

    #[test]
    fn llama31_with_qlora_at_4096_tokens_fits_in_24_gb() {
        let formats = Formats {
            nf4: true,
            ..bf16()
        };
        let memory = memory(&llama31(), Some(&lora()), formats, long_row());
        assert!(memory.total() < 24_000_000_000, "{memory:?}");
    }

    #[test]
    fn recomputation_keeps_one_layer_and_the_inputs() {
        let with = |gradient_checkpointing| {
            let work = Work {
                gradient_checkpointing,
                ..long_row()
            };
            memory(&llama31(), Some(&lora()), bf16(), work).activations
        };
        assert!(with(false) > 8 * with(true));
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("80GiB"), Ok(80 * GIB));
        assert_eq!(parse_bytes("1.5 MB"), Ok(1_500_000));
        assert!(parse_bytes("80").unwrap_err().contains("80GiB"));
        assert_eq!(readable(3 * GIB / 2), "1.5 GiB");
    }
}
