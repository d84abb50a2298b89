//! A pass of a device whose host numbers come in one upload, into memory that stays where it is; and such a pass recorded
//! once and started as one from then on (a CUDA graph).

#[cfg(not(feature = "cube"))]
mod absent;
#[cfg(feature = "cube")]
mod graph;
#[cfg(feature = "cube")]
mod inputs;

#[cfg(not(feature = "cube"))]
pub use absent::{Graph, StepInputs};
#[cfg(feature = "cube")]
pub use graph::Graph;
#[cfg(feature = "cube")]
pub use inputs::StepInputs;

use crate::attention::PagedRun;

/// What the host says of the tokens of a pass, token after token.
#[derive(Clone, Copy, Debug)]
pub struct StepNumbers<'a> {
    /// Their ids.
    pub ids: &'a [u32],
    /// Of their angles of rotation, `[tokens, rotary / 2]`.
    pub cos: &'a [f32],
    /// As `cos`.
    pub sin: &'a [f32],
    /// Where they stand, as many positions as tokens.
    pub runs: &'a [PagedRun<'a>],
}
