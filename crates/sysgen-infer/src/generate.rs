//! A request to be continued, as a task of the schedule: draw a token, look whether it ends the text.

use crate::request::{Completion, Finish, Refused, Request};
use crate::sample::Sampler;
use crate::schedule::Task;

/// One completion in the making.
pub(crate) struct Generation {
    request: Request,
    sampler: Sampler,
    ids: Vec<u32>,
    finish: Finish,
    log_probability: f64,
    /// How many tokens may be drawn: `max_tokens`, or less where the context ends.
    room: usize,
}

impl Generation {
    pub(crate) fn new(request: Request) -> Generation {
        Generation {
            sampler: Sampler::new(request.sampling),
            request,
            ids: Vec::new(),
            finish: Finish::Length,
            log_probability: 0.0,
            room: 0,
        }
    }
}

impl Task for Generation {
    type Outcome = Completion;

    fn start(&mut self, max_length: usize) -> Result<Vec<u32>, Refused> {
        let prompt = std::mem::take(&mut self.request.prompt);
        let tokens = prompt.len();
        if tokens == 0 {
            return Err(Refused::Empty);
        }
        if tokens >= max_length {
            return Err(Refused::TooLong { tokens, max_length });
        }
        self.room = self.request.sampling.max_tokens.min(max_length - tokens);
        Ok(if self.room == 0 { Vec::new() } else { prompt })
    }

    fn advance(&mut self, logits: &[f32]) -> Result<Vec<u32>, Refused> {
        let drawn = self.sampler.draw(logits).ok_or(Refused::NotFinite)?;
        self.log_probability += drawn.log_probability;
        if self.request.stop_ids.contains(&drawn.id) {
            self.finish = Finish::Stop;
            return Ok(Vec::new());
        }
        self.ids.push(drawn.id);
        Ok(if self.ids.len() < self.room {
            vec![drawn.id]
        } else {
            Vec::new()
        })
    }

    fn finish(self) -> Completion {
        Completion {
            ids: self.ids,
            finish: self.finish,
            log_probability: self.log_probability as f32,
        }
    }
}
