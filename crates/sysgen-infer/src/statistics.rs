//! What a batch cost.

/// Counts and times of one call of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Passes through the model.
    pub steps: usize,
    /// Those of them that a device was given as one (a CUDA graph).
    pub replayed_steps: usize,
    /// Tokens of prompts (and forced ids) that were computed.
    pub prefill_tokens: usize,
    /// Tokens of prompts that were taken from the cache instead.
    pub reused_tokens: usize,
    /// Drawn tokens that were computed on; a completion's last token never is.
    pub decode_tokens: usize,
    /// Wall-clock time; a step's time is divided between the two by its tokens.
    pub prefill_seconds: f64,
    /// See `prefill_seconds`.
    pub decode_seconds: f64,
    /// Texts worked on, summed over the steps.
    pub occupied: usize,
    /// Texts that the engine works on at a time.
    pub slots: usize,
    /// Texts that gave their blocks away and were read again.
    pub preemptions: usize,
    /// Blocks of the cache.
    pub cache_blocks: usize,
    /// The most of them that were in use at a time.
    pub most_used_blocks: usize,
}

impl Statistics {
    /// Prompt tokens computed per second; 0 before the first.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens as f64, self.prefill_seconds)
    }

    /// Drawn tokens per second; 0 before the first.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decode_tokens as f64, self.decode_seconds)
    }

    /// Part of the places for texts that were taken, mean over the steps, from 0 to 1.
    pub fn mean_occupancy(&self) -> f64 {
        rate(self.occupied as f64, (self.steps * self.slots) as f64)
    }
}

fn rate(count: f64, over: f64) -> f64 {
    if over > 0.0 { count / over } else { 0.0 }
}
