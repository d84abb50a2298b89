//! What can be asked of the engine, and what comes back.

use std::fmt;

/// How tokens are drawn. The order is vLLM's: temperature, then top-k, then top-p, then the draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 is greedy.
    pub temperature: f32,
    /// Only this many best tokens are drawn from; 0 is all.
    pub top_k: usize,
    /// Only the smallest set of best tokens whose probability reaches this is drawn from; 1 is all.
    pub top_p: f32,
    /// Longest completion, in tokens.
    pub max_tokens: usize,
    /// Start of the request's own random stream.
    pub seed: u64,
}

impl Sampling {
    /// The best token each time.
    pub fn greedy(max_tokens: usize) -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            max_tokens,
            seed: 0,
        }
    }
}

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// At least one id.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Ids that end the completion.
    pub stop_ids: Vec<u32>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop id was drawn.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

/// What was written for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The ids after the prompt, without the stop id.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Sum of the drawn tokens' log-probabilities in nats, the stop id's included, by the model itself:
    /// before temperature, top-k and top-p.
    pub log_probability: f32,
}

/// A prompt after which labels are chosen, one step after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceRequest {
    /// May be empty when the first step forces something.
    pub prompt: Vec<u32>,
    /// In order; each goes on after the best label of the one before.
    pub steps: Vec<ChoiceStep>,
}

/// Ids that are given, and the labels that may follow.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceStep {
    /// Appended before the choice; may be empty.
    pub forced: Vec<u32>,
    /// At least one; none empty; their first ids differ pairwise, because only these are compared.
    pub labels: Vec<Vec<u32>>,
}

/// The outcome of one [`ChoiceStep`].
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Index of the label with the highest log-probability; the first one of equals.
    pub best: usize,
    /// Of each label's first id, in nats: log-softmax over the whole vocabulary.
    pub log_probabilities: Vec<f32>,
}

/// Why a request got no answer. The others are not affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is nothing to continue.
    Empty,
    /// It does not fit: a completion needs room for one token after the prompt.
    TooLong {
        /// Tokens of the prompt, or of the prompt and all steps of a choice.
        tokens: usize,
        /// Tokens the engine's context holds.
        max_length: usize,
    },
    /// An id the model has no embedding for.
    UnknownId {
        /// The id.
        id: u32,
        /// Rows of the model's embedding table.
        vocab_size: usize,
    },
    /// A step without labels, with an empty label, or with two labels that start with the same id.
    Labels {
        /// Index of the step.
        step: usize,
    },
    /// The model's logits are infinite or not numbers: its weights are damaged.
    NotFinite,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Empty => write!(f, "the prompt is empty"),
            Refused::TooLong { tokens, max_length } => write!(
                f,
                "{tokens} tokens leave no room in a context of {max_length}"
            ),
            Refused::UnknownId { id, vocab_size } => write!(
                f,
                "token id {id} is outside the model's vocabulary of {vocab_size}"
            ),
            Refused::Labels { step } => write!(
                f,
                "step {step}: labels must start with ids that tell them apart"
            ),
            Refused::NotFinite => write!(
                f,
                "the model's logits are not finite; its weights are damaged"
            ),
        }
    }
}

impl std::error::Error for Refused {}
