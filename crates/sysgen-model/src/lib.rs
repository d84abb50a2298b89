//! Decoder language models: token ids become hidden states and logits, Hugging Face safetensors come in and go out.
//!
//! One decoder serves Llama 2 and 3, Solar, Qwen2.5, Phi-3 and Phi-4, Gemma-2, Mistral and Qwen3; what differs between
//! them is data in [`ModelConfig`]. Beside it
//! stands the [`Encoder`], whose hidden states BERTScore compares. Knows nothing of text, tokenizers, sampling or training.

mod adapter_file;
mod adapters;
mod backward;
mod cache;
mod cached;
mod checkpoint;
mod compare;
mod config;
mod copy;
mod cuda;
mod decode_steps;
mod decoder;
mod device;
mod encoder;
mod ids;
mod layer;
mod mapped;
mod memory;
mod merge;
mod names;
mod parameter;
mod random;
mod rope;
mod save;
mod tokens;
mod weights;

pub use burn::tensor::Device;

pub use adapter_file::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
pub use adapters::{ALL_LINEAR, Frozen, Lora};
pub use backward::Pass;
pub use cache::{KvCache, cache_budget};
pub use cached::Run;
pub use checkpoint::stored_dtype;
pub use config::{Activation, Biases, Family, ModelConfig, SUPPORTED, StoredDtype};
pub use cuda::{Need, cuda_needs};
pub use decode_steps::DecodeSteps;
pub use decoder::Decoder;
pub use device::{allow_tf32, device, device_name, device_names, has_bf16};
pub use encoder::{Encoder, EncoderConfig, EncoderFamily, SUPPORTED_ENCODERS};
pub use ids::{Ids, read_ids};
pub use mapped::Mapped;
pub use memory::{OutOfMemory, catch_out_of_memory, doing, out_of_memory};
pub use merge::Merge;
pub use names::parameter_shapes;
pub use parameter::{Parameter, Weight, WeightDtype};
pub use random::Origin;
pub use rope::{Long, Rope};
pub use save::ExportDtype;
pub use tokens::Tokens;
