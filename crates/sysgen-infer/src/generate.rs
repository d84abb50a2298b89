//! A text to be continued: draw a token, look whether it ends the text.

use std::sync::Arc;

use crate::request::{Completion, Finish, Refused, Request, TokenLogProbability};
use crate::sample::{Sampler, log_probability};

/// One completion in the making.
pub(crate) struct Generation {
    request: Arc<Request>,
    sampler: Sampler,
    completion: Completion,
    /// Of the prompt's tokens so far.
    pub(crate) prompt_log_probabilities: Vec<TokenLogProbability>,
    /// Which of the request's completions it is; only the first looks at the prompt.
    pub(crate) number: usize,
    /// How many tokens may be drawn: `max_tokens`, or less where the context ends.
    room: usize,
}

impl Generation {
    /// The `number`-th completion of a request.
    pub(crate) fn new(request: Arc<Request>, number: usize) -> Generation {
        let mut sampling = request.sampling;
        sampling.seed = sampling.seed.wrapping_add(number as u64);
        Generation {
            sampler: Sampler::new(sampling, &request.prompt),
            request,
            completion: Completion {
                ids: Vec::new(),
                finish: Finish::Length,
                log_probabilities: Vec::new(),
            },
            prompt_log_probabilities: Vec::new(),
            number,
            room: 0,
        }
    }

    /// Completions of the request.
    pub(crate) fn of(&self) -> usize {
        self.request.n
    }

    /// The prompt, and how many tokens it may become; no ids when nothing is to be written.
    pub(crate) fn start(&mut self, max_length: usize) -> Result<(Vec<u32>, usize), Refused> {
        if self.request.n == 0 {
            return Err(Refused::Empty);
        }
        let tokens = self.request.prompt.len();
        if tokens == 0 {
            return Err(Refused::Empty);
        }
        if tokens >= max_length {
            return Err(Refused::TooLong { tokens, max_length });
        }
        self.room = self.request.sampling.max_tokens.min(max_length - tokens);
        if self.room == 0 && !self.wants_prompt() {
            return Ok((Vec::new(), 0));
        }
        Ok((self.request.prompt.clone(), tokens + self.room))
    }

    /// Whether the logits of the prompt's tokens are wanted.
    pub(crate) fn wants_prompt(&self) -> bool {
        self.number == 0 && self.request.prompt_logprobs.is_some()
    }

    /// Looks at the logits after the prompt's token at `position`.
    pub(crate) fn look_at_prompt(
        &mut self,
        position: usize,
        logits: &[f32],
    ) -> Result<(), Refused> {
        let (Some(top), Some(&next)) = (
            self.request.prompt_logprobs,
            self.request.prompt.get(position + 1),
        ) else {
            return Ok(());
        };
        // A text that is read again after it had to give its place away has looked already.
        if position == self.prompt_log_probabilities.len() {
            let found = log_probability(logits, next, top).ok_or(Refused::NotFinite)?;
            self.prompt_log_probabilities.push(found);
        }
        Ok(())
    }

    /// Looks at the logits after all ids so far; gives the ids to read next, none ends the text.
    pub(crate) fn advance(&mut self, logits: &[f32]) -> Result<Vec<u32>, Refused> {
        if self.room == 0 {
            return Ok(Vec::new());
        }
        let request = &self.request;
        let written = self.completion.ids.len();
        let banned: &[u32] = if written < request.sampling.min_tokens {
            &request.stop_ids
        } else {
            &[]
        };
        let id = self
            .sampler
            .draw(logits, banned)
            .ok_or(Refused::NotFinite)?;
        if let Some(top) = request.logprobs {
            let found = log_probability(logits, id, top).ok_or(Refused::NotFinite)?;
            self.completion.log_probabilities.push(found);
        }
        if request.stop_ids.contains(&id) {
            self.completion.finish = Finish::Stop;
            return Ok(Vec::new());
        }
        self.completion.ids.push(id);
        if request
            .stop_when
            .as_ref()
            .is_some_and(|stop| stop(&self.completion.ids))
        {
            self.completion.finish = Finish::Stop;
            return Ok(Vec::new());
        }
        Ok(if written + 1 < self.room {
            vec![id]
        } else {
            Vec::new()
        })
    }

    pub(crate) fn finish(self) -> (Completion, Vec<TokenLogProbability>) {
        (self.completion, self.prompt_log_probabilities)
    }
}
