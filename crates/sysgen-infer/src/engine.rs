//! The engine's face: a model, how many texts it works on at a time, and how long they may be.

use std::ops::ControlFlow;

use sysgen_model::Decoder;

use crate::choose::Choosing;
use crate::generate::Generation;
use crate::request::{Choice, ChoiceRequest, Completion, Refused, Request};
use crate::schedule::run;
use crate::statistics::Statistics;

/// A model that answers requests in batches.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) slots: usize,
    pub(crate) max_length: usize,
    pub(crate) stop: fn() -> bool,
}

impl<'a> Engine<'a> {
    /// An engine that works on up to `slots` texts at a time, each of up to `max_length` tokens, prompt and
    /// completion together; never more than the model was made for.
    ///
    /// # Panics
    /// `slots` is 0.
    pub fn new(decoder: &'a Decoder, slots: usize, max_length: usize) -> Engine<'a> {
        assert!(slots > 0, "an engine needs a slot");
        Engine {
            decoder,
            slots,
            max_length: max_length.min(decoder.config.max_position_embeddings),
            stop: || false,
        }
    }

    /// Asks `stop` before every step and ends the call when it says yes; requests in flight are dropped.
    #[must_use]
    pub fn until(self, stop: fn() -> bool) -> Engine<'a> {
        Engine { stop, ..self }
    }

    /// Tokens a text may have.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Writes a completion for every request. `on_done` gets each request's index and result the moment it
    /// is known, in no promised order; `Break` ends the call, and requests in flight are dropped.
    pub fn generate(
        &self,
        requests: Vec<Request>,
        on_done: &mut dyn FnMut(usize, Result<Completion, Refused>) -> ControlFlow<()>,
    ) -> Statistics {
        run(
            self,
            requests.into_iter().map(Generation::new).collect(),
            on_done,
        )
    }

    /// Chooses labels for every request; `on_done` as in [`Engine::generate`], with one choice per step.
    pub fn choose(
        &self,
        requests: Vec<ChoiceRequest>,
        on_done: &mut dyn FnMut(usize, Result<Vec<Choice>, Refused>) -> ControlFlow<()>,
    ) -> Statistics {
        run(
            self,
            requests.into_iter().map(Choosing::new).collect(),
            on_done,
        )
    }
}
