//! The engine's face: a model, a cache, and how much of both is used at a time.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use sysgen_model::{Decoder, Device, KvCache, cache_budget};
use sysgen_ops::awake;

use crate::choose::Choosing;
use crate::generate::Generation;
use crate::request::{
    Answer, Choice, ChoiceRequest, Completion, Refused, Request, TokenLogProbability,
};
use crate::schedule::Schedule;
use crate::statistics::Statistics;
use crate::text::{Ended, Work};

/// What an engine may use. None of it changes what a request gets; too small a cache refuses what cannot fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Texts worked on at a time.
    pub max_num_seqs: usize,
    /// Tokens a text may have, prompt and completion together; never more than the model was made for.
    pub max_length: usize,
    /// Positions of a block of the cache: a multiple of 16.
    pub block_size: usize,
    /// Bytes of the KV cache; 0 is what `max_num_seqs` texts of `max_length` need, and no more than the device has to
    /// spare.
    pub kv_cache_bytes: usize,
    /// Tokens of one pass through the model: enough to keep the processors busy, few enough not to stall texts that are
    /// being written.
    pub max_num_batched_tokens: usize,
    /// Whether a text takes over the keys and values of one that begins alike.
    pub prefix_caching: bool,
    /// Launches every kernel of a decoding step by itself on a device, instead of recording a step once and starting it as one
    /// (vLLM's name).
    pub enforce_eager: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_num_seqs: 64,
            max_length: usize::MAX,
            block_size: 16,
            kv_cache_bytes: 0,
            max_num_batched_tokens: 512,
            prefix_caching: true,
            enforce_eager: false,
        }
    }
}

/// Names a request until its outcome is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of a [`Request`].
    Answer(Answer),
    /// Of a [`ChoiceRequest`], one for each step.
    Choices(Vec<Choice>),
}

/// A model that answers requests in batches. The cache lives as long as the engine: what one call computed is there for
/// the next.
pub struct Engine {
    schedule: Schedule,
    options: Options,
    next: u64,
    /// Requests with several completions in the making.
    gathering: HashMap<RequestId, Gathering>,
    stop: fn() -> bool,
    /// Whether a step runs on the thread pool: on the CPU, where its parallel loops then start at once. A GPU's work is
    /// queued by thread, so there all of it comes from the caller's.
    on_pool: bool,
}

struct Gathering {
    completions: Vec<Option<Completion>>,
    prompt: Vec<TokenLogProbability>,
}

impl Engine {
    /// The engine shares the decoder's weights.
    ///
    /// # Panics
    /// `max_num_seqs` or `max_num_batched_tokens` is 0, or `block_size` not a multiple of 16.
    pub fn new(decoder: &Decoder, options: Options) -> Engine {
        assert!(options.max_num_seqs > 0, "an engine needs room for a text");
        assert!(
            options.max_num_batched_tokens > 0,
            "a pass needs room for a token"
        );
        let config = &decoder.config;
        let max_length = options.max_length.min(config.max_position_embeddings);
        let device = decoder.device();
        let block_bytes = options.block_size * KvCache::bytes_per_position(decoder);
        let wanted = options
            .max_num_seqs
            .saturating_mul(max_length.div_ceil(options.block_size));
        let bytes = match options.kv_cache_bytes {
            0 => cache_budget(&device),
            bytes => bytes,
        };
        let blocks = wanted.min(bytes / block_bytes);
        let options = Options {
            max_length,
            ..options
        };
        let cache = KvCache::new(decoder, blocks, options.block_size);
        Engine {
            schedule: Schedule::new(decoder.clone(), cache, options),
            options,
            next: 0,
            gathering: HashMap::new(),
            stop: || false,
            on_pool: device == Device::flex(),
        }
    }

    /// Asks `stop` before every step of [`Engine::generate`] and [`Engine::choose`] and ends the call when it says yes;
    /// requests in flight are dropped.
    #[must_use]
    pub fn until(self, stop: fn() -> bool) -> Engine {
        Engine { stop, ..self }
    }

    /// What it may use, the context bounded by the model's.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Tokens that the cache holds.
    pub fn cache_tokens(&self) -> usize {
        self.schedule.cache_tokens()
    }

    /// Counts and times since the engine was made, or since they were last taken.
    pub fn take_statistics(&mut self) -> Statistics {
        self.schedule.take_statistics()
    }

    /// Adds a request; its outcome comes out of a later [`Engine::step`].
    pub fn submit(&mut self, request: Request) -> RequestId {
        let id = self.new_id();
        let request = Arc::new(request);
        // Whether it can be answered is the same for all of its completions.
        let first = Work::Generate(Box::new(Generation::new(request.clone(), 0)));
        if self.schedule.push(id, first) && request.n > 1 {
            let gathering = Gathering {
                completions: vec![None; request.n],
                prompt: Vec::new(),
            };
            self.gathering.insert(id, gathering);
            for number in 1..request.n {
                let generation = Generation::new(request.clone(), number);
                self.schedule.push(id, Work::Generate(Box::new(generation)));
            }
        }
        id
    }

    /// Adds a request whose labels are compared.
    pub fn submit_choice(&mut self, request: ChoiceRequest) -> RequestId {
        let id = self.new_id();
        self.schedule.push(id, Work::Choose(Choosing::new(request)));
        id
    }

    /// Whether no request is waiting or being worked on.
    pub fn is_idle(&self) -> bool {
        self.schedule.is_idle()
    }

    /// Drops all requests. What they computed stays in the cache.
    pub fn cancel_all(&mut self) {
        self.schedule.clear();
        self.gathering.clear();
    }

    /// One pass through the model; the requests that ended in it.
    pub fn step(&mut self) -> Vec<(RequestId, Result<Outcome, Refused>)> {
        let ended = match self.on_pool {
            true => awake(|| self.schedule.step()),
            false => self.schedule.step(),
        };
        let gathered = ended.into_iter().filter_map(|(id, ended)| {
            let Ended::Completion {
                number,
                of,
                completion,
                prompt,
            } = (match ended {
                Ok(Ended::Choices(choices)) => return Some((id, Ok(Outcome::Choices(choices)))),
                Ok(completion) => completion,
                Err(refused) => {
                    // The other completions of the request are not worth going on with.
                    self.gathering.remove(&id);
                    self.schedule.drop_request(id);
                    return Some((id, Err(refused)));
                }
            })
            else {
                unreachable!("choices were handled")
            };
            if of == 1 {
                let answer = Answer {
                    completions: vec![completion],
                    prompt_log_probabilities: prompt,
                };
                return Some((id, Ok(Outcome::Answer(answer))));
            }
            // Absent when another completion was refused in this very step.
            let gathering = self.gathering.get_mut(&id)?;
            gathering.completions[number] = Some(completion);
            if number == 0 {
                gathering.prompt = prompt;
            }
            if gathering.completions.iter().any(Option::is_none) {
                return None;
            }
            let Gathering {
                completions,
                prompt,
            } = self.gathering.remove(&id)?;
            let answer = Answer {
                completions: completions.into_iter().flatten().collect(),
                prompt_log_probabilities: prompt,
            };
            Some((id, Ok(Outcome::Answer(answer))))
        });
        gathered.collect()
    }

    /// Writes completions for every request. `on_done` gets each request's index and result the moment it is known, in
    /// no promised order; `Break` ends the call, and requests in flight are dropped.
    pub fn generate(
        &mut self,
        requests: Vec<Request>,
        on_done: &mut dyn FnMut(usize, Result<Answer, Refused>) -> ControlFlow<()>,
    ) -> Statistics {
        let first = self.next;
        for request in requests {
            self.submit(request);
        }
        self.run(first, &mut |index, result| {
            on_done(
                index,
                result.map(|outcome| match outcome {
                    Outcome::Answer(answer) => answer,
                    Outcome::Choices(_) => unreachable!("a request to write gets an answer"),
                }),
            )
        })
    }

    /// Chooses labels for every request; `on_done` as in [`Engine::generate`], with one choice per step.
    pub fn choose(
        &mut self,
        requests: Vec<ChoiceRequest>,
        on_done: &mut dyn FnMut(usize, Result<Vec<Choice>, Refused>) -> ControlFlow<()>,
    ) -> Statistics {
        let first = self.next;
        for request in requests {
            self.submit_choice(request);
        }
        self.run(first, &mut |index, result| {
            on_done(
                index,
                result.map(|outcome| match outcome {
                    Outcome::Choices(choices) => choices,
                    Outcome::Answer(_) => unreachable!("a request to choose gets choices"),
                }),
            )
        })
    }

    /// Steps until nothing is left. All requests must be from `first` on.
    fn run(
        &mut self,
        first: u64,
        on_done: &mut dyn FnMut(usize, Result<Outcome, Refused>) -> ControlFlow<()>,
    ) -> Statistics {
        while !self.is_idle() && !(self.stop)() {
            for (RequestId(id), result) in self.step() {
                if on_done((id - first) as usize, result).is_break() {
                    self.cancel_all();
                    return self.take_statistics();
                }
            }
        }
        self.cancel_all();
        self.take_statistics()
    }

    fn new_id(&mut self) -> RequestId {
        self.next += 1;
        RequestId(self.next - 1)
    }
}
