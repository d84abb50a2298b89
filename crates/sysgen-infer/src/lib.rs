//! Prompts of token ids become completions of token ids, many at a time. Knows nothing of text.
//!
//! Continuous batching over a paged cache: a request that ends gives its place to the next one, long prompts are read in
//! chunks beside texts that are being written, and a prefix that several requests share is computed once.
//! What a request gets depends on nothing but the request: on the CPU, to the bit.

mod blocks;
mod choose;
mod engine;
mod generate;
mod request;
mod sample;
mod schedule;
mod statistics;
mod text;

pub use engine::{Engine, Options, Outcome, RequestId};
pub use request::{
    Answer, Choice, ChoiceRequest, ChoiceStep, Completion, Finish, Refused, Request, Sampling,
    StopWhen, TokenLogProbability,
};
pub use sample::Sampler;
pub use statistics::Statistics;
