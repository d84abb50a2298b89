//! What the phases ask of a language model. `local` answers with a model in this process,
//! `openai` by an endpoint; the tests answer from a script.

use std::ops::ControlFlow;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sysgen_core::message::Message;

/// How a reply is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// 1 is all.
    pub top_p: f64,
    /// 0 is all.
    pub top_k: usize,
    /// 0 is all.
    pub min_p: f64,
    /// 1 is none.
    pub repetition_penalty: f64,
    /// Longest reply, in tokens.
    pub max_tokens: usize,
}

/// A conversation to go on with, and the seed of its own random stream.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The turns; the last one is the user's.
    pub messages: Vec<Message>,
    /// How the reply is drawn.
    pub sampling: Sampling,
    /// Fixes the reply, whatever else is in the batch.
    pub seed: u64,
    /// How many best tokens are wanted at each place of the reply; 0 is none.
    pub teacher_top_k: usize,
}

/// What the model wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text as it was written.
    pub text: String,
    /// False when it was cut at `max_tokens` or at the end of the context.
    pub finished: bool,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub reply_tokens: usize,
    /// What the model thought at each place, when that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<Teacher>,
}

/// The model's best tokens at each place of an answer, for a student to learn from: of every token it wrote and of the
/// stop token after them, before temperature and what else shapes the draw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Teacher {
    /// Tokens kept at each place.
    pub top_k: usize,
    /// The tokens written, the stop token included.
    pub answer_ids: Vec<u32>,
    /// The best ones at each place, the best first.
    pub ids: Vec<Vec<u32>>,
    /// Theirs, in nats, to four decimals; what is missing to a probability of 1 is the tail.
    pub log_probabilities: Vec<Vec<f64>>,
}

/// A conversation to judge: after the prompt, each step's text is forced and one of its labels chosen.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The turns; the last one is the user's.
    pub messages: Vec<Message>,
    /// What follows them.
    pub steps: Vec<LabelStep>,
}

/// Text that is given, and the labels to choose from after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelStep {
    /// Written for the model.
    pub forced: String,
    /// One of these follows.
    pub labels: Vec<String>,
}

/// The choice of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Index of the best label.
    pub best: usize,
    /// Log-probability of each label's first token that tells it apart, in nats.
    pub log_probabilities: Vec<f32>,
}

/// All choices of one judgement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// One per step.
    pub scores: Vec<Scores>,
    /// Tokens read, the forced ones included.
    pub prompt_tokens: usize,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    /// It was answered.
    Done(T),
    /// The prompt fills the context: this many tokens, 0 if unknown.
    TooLong(usize),
    /// The model will not answer it, now or later: why.
    Refused(String),
    /// It was not answered, and may be another time: why.
    Failed(String),
}

/// Told of each outcome the moment it is known, with the request's index; `Break` ends the batch. A prompt that it gives back
/// is for a generator that takes more (`Generator::takes_more`), and its index is the next number.
pub type OnDone<'a, T> = &'a mut dyn FnMut(usize, Outcome<T>) -> ControlFlow<(), Option<Prompt>>;

/// A language model. A request's outcome must depend on the request alone, not on its neighbours.
pub trait Generator {
    /// With how many prompts `complete` begins where it takes more from `on_done`, one for each outcome; none where it answers
    /// what it is given, as the next batch waits for it.
    fn takes_more(&self) -> Option<usize> {
        None
    }

    /// Answers every prompt, in any order.
    ///
    /// # Errors
    /// A model that fails.
    fn complete(&mut self, prompts: Vec<Prompt>, on_done: OnDone<'_, Reply>) -> Result<()>;

    /// Judges every conversation, in any order.
    ///
    /// # Errors
    /// As `complete`.
    fn choose(&mut self, judgements: Vec<Judgement>, on_done: OnDone<'_, Judged>) -> Result<()>;
}
