//! What can be asked of the engine, and what comes back.

use std::fmt;
use std::sync::Arc;

/// How tokens are drawn. Names and order are vLLM's: penalties, temperature, min-p, top-k, top-p, then the draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 is greedy.
    pub temperature: f32,
    /// Only this many best tokens are drawn from; 0 is all.
    pub top_k: usize,
    /// Only the smallest set of best tokens whose probability reaches this is drawn from; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this probable relative to the best one are drawn from; 0 is all.
    pub min_p: f32,
    /// Logits of tokens that the prompt or the completion has are divided by this, negative ones multiplied; 1 is none.
    pub repetition_penalty: f32,
    /// Taken off a token's logit for each time the completion has it.
    pub frequency_penalty: f32,
    /// Taken off a token's logit once the completion has it.
    pub presence_penalty: f32,
    /// Longest completion, in tokens.
    pub max_tokens: usize,
    /// Stop ids are not drawn before so many tokens.
    pub min_tokens: usize,
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
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            max_tokens,
            min_tokens: 0,
            seed: 0,
        }
    }
}

/// Told of a completion's ids after each of them; says whether it ends here. How stop strings are made: the caller knows
/// what the ids mean.
pub type StopWhen = Arc<dyn Fn(&[u32]) -> bool + Send + Sync>;

/// A prompt to be continued.
#[derive(Clone)]
pub struct Request {
    /// At least one id.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Ids that end the completion.
    pub stop_ids: Vec<u32>,
    /// Also ends the completion; the ids it was told stay in it.
    pub stop_when: Option<StopWhen>,
    /// Completions to be written, the i-th with the seed `sampling.seed + i`.
    pub n: usize,
    /// Whether each token's log-probability is wanted, and of how many best tokens beside it.
    pub logprobs: Option<usize>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
}

impl Request {
    /// One completion, without log-probabilities.
    pub fn new(prompt: Vec<u32>, sampling: Sampling, stop_ids: Vec<u32>) -> Request {
        Request {
            prompt,
            sampling,
            stop_ids,
            stop_when: None,
            n: 1,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("prompt", &self.prompt)
            .field("sampling", &self.sampling)
            .field("stop_ids", &self.stop_ids)
            .field("stop_when", &self.stop_when.is_some())
            .field("n", &self.n)
            .field("logprobs", &self.logprobs)
            .field("prompt_logprobs", &self.prompt_logprobs)
            .finish()
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop id was drawn, or [`Request::stop_when`] said so.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

/// A token's log-probability in nats, by the model itself: before penalties, temperature and what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbability {
    /// The token.
    pub id: u32,
    /// Its own.
    pub log_probability: f32,
    /// As many best tokens as were asked for, the best first, with theirs.
    pub top: Vec<(u32, f32)>,
}

/// What was written for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The ids after the prompt, without the stop id.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Of every id, and of the stop id after them; empty when not asked for.
    pub log_probabilities: Vec<TokenLogProbability>,
}

/// The outcome of a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `n` of them.
    pub completions: Vec<Completion>,
    /// Of every id of the prompt but the first, which follows nothing; empty when not asked for.
    pub prompt_log_probabilities: Vec<TokenLogProbability>,
}

impl Answer {
    /// The first completion, all there is with `n = 1`.
    pub fn into_first(self) -> Completion {
        let mut completions = self.completions.into_iter();
        completions.next().expect("n is at least 1")
    }
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
    /// There is nothing to continue, or nothing is wanted (`n` is 0).
    Empty,
    /// It does not fit: a completion needs room for one token after the prompt.
    TooLong {
        /// Tokens of the prompt, or of the prompt and all steps of a choice.
        tokens: usize,
        /// Tokens the engine's context holds.
        max_length: usize,
    },
    /// It could never run: prompt and completion together are more than the whole cache holds.
    CacheTooSmall {
        /// Tokens of the prompt and of the longest completion.
        tokens: usize,
        /// Tokens the cache holds.
        cache: usize,
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
            Refused::CacheTooSmall { tokens, cache } => write!(
                f,
                "{tokens} tokens of prompt and completion do not fit into a KV cache of {cache}: give it more memory, or lower max_tokens or max_length"
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
