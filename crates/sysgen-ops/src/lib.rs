//! The few tensor operations worth writing by hand: each is a wrapper over Burn tensors with a plain `reference`,
//! a fused CPU implementation, device kernels and their gradients. Knows nothing of models, tokens or files.
//!
//! On the CPU backend with `f32` tensors the wrappers take the fused path, on CUDA and Vulkan devices the kernels (built
//! with the feature `cuda` or `wgpu`), everywhere else the reference.

mod adamw;
mod attention;
mod awake;
mod backward;
mod cross_entropy;
mod decoding;
#[cfg(feature = "cube")]
mod device;
mod distill;
pub mod distribution;
mod dropout;
mod dynamic;
mod few_rows;
mod fused;
mod gated;
#[cfg(feature = "cube")]
mod launch;
mod linear;
mod lines;
mod lora;
mod matmul;
mod nf4;
mod pack;
mod packed;
mod panels;
pub mod parity;
mod product;
#[cfg(feature = "cube")]
mod reductions;
mod rms_norm;
mod rope;
mod rows;
mod simd;
mod tf32;

pub use adamw::{
    AdamW, MomentOrder, Moments, Moments8, Quantised, adamw_8bit_step, adamw_step, flat,
    moments8_bytes, squared_norm, squared_norms,
};
pub use attention::{
    AttentionShape, BLOCK_MULTIPLE, PagedCache, PagedRun, PagedShape, PagedStep, Segments,
    attention,
};
pub use awake::awake;
pub use backward::backward;
pub use cross_entropy::linear_cross_entropy;
pub use decoding::{Graph, StepInputs, StepNumbers};
pub use distill::{
    Distillation, Divergence, Teacher, TopK, distilled_logit_bytes, linear_distillation,
};
pub use dropout::{Dropout, dropout};
pub use gated::{geglu_tanh, swiglu};
pub use linear::linear;
pub use lora::{Adapter, LinearWeight, lora_linear, merged, row_lengths};
pub use nf4::{Nf4, nf4_bytes, nf4_linear};
pub use packed::{Packed, packed_linear};
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use rows::add_rows;
pub use tf32::{decide_tf32, tf32_is_allowed};

/// The operations in plain Burn tensors: slow and obvious, what the fused ones are tested against.
pub mod reference {
    pub use crate::attention::reference as attention;
    pub use crate::cross_entropy::reference as linear_cross_entropy;
    pub use crate::distill::reference as linear_distillation;
    pub use crate::dropout::reference as dropout;
    pub use crate::gated::{geglu_tanh_reference as geglu_tanh, swiglu_reference as swiglu};
    pub use crate::linear::reference as linear;
    pub use crate::lora::reference as lora_linear;
    pub use crate::rms_norm::reference as rms_norm;
    pub use crate::rope::reference as rope;
    pub use crate::rows::reference as add_rows;
}
