//! Which tokens go through the model together. Each step reads the newest token of each text that is being written, and
//! fills up with prompts, oldest first. Where the cache is full, the youngest text gives its blocks away and is read
//! again later. Order, chunks and blocks change when a token is computed, never its value.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use sysgen_model::{DecodeSteps, Decoder, KvCache, Run};

use crate::blocks::{Blocks, Content, extend_contents};
use crate::engine::{Options, RequestId};
use crate::request::Refused;
use crate::statistics::Statistics;
use crate::text::{Ended, Text, Work};

/// Prompt tokens that a step takes however many texts are being written.
const LEAST_PREFILL: usize = 64;
/// Rows of the prompt whose logits are made at a time when they are asked for.
const LOGIT_ROWS: usize = 64;

/// A text's part of a step.
#[derive(Clone, Copy)]
struct Part {
    text: usize,
    tokens: usize,
}

pub(crate) struct Schedule {
    decoder: Decoder,
    cache: KvCache,
    /// On a device, the steps that read one token of each text.
    decode_steps: Option<DecodeSteps>,
    blocks: Blocks,
    options: Options,
    waiting: VecDeque<(RequestId, Work)>,
    texts: Vec<Text>,
    /// Outcomes that need no step.
    known: Vec<(RequestId, Result<Ended, Refused>)>,
    statistics: Statistics,
}

impl Schedule {
    pub(crate) fn new(decoder: Decoder, cache: KvCache, options: Options) -> Schedule {
        Schedule {
            decode_steps: DecodeSteps::new(&decoder, &cache, !options.enforce_eager),
            decoder,
            blocks: Blocks::new(cache.blocks()),
            cache,
            options,
            waiting: VecDeque::new(),
            texts: Vec::new(),
            known: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    pub(crate) fn cache_tokens(&self) -> usize {
        self.cache.blocks() * self.cache.block_size()
    }

    pub(crate) fn take_statistics(&mut self) -> Statistics {
        std::mem::take(&mut self.statistics)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.texts.is_empty() && self.waiting.is_empty() && self.known.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        for text in self.texts.drain(..) {
            self.blocks.release(&text.blocks);
        }
        self.waiting.clear();
        self.known.clear();
    }

    /// Queues a text; false when its outcome is known at once.
    pub(crate) fn push(&mut self, id: RequestId, mut work: Work) -> bool {
        match self.start(&mut work) {
            Ok(ids) if ids.is_empty() => self.known.push((id, Ok(work.finish()))),
            Ok(_) => {
                self.waiting.push_back((id, work));
                return true;
            }
            Err(refused) => self.known.push((id, Err(refused))),
        }
        false
    }

    /// Forgets the texts of a request.
    pub(crate) fn drop_request(&mut self, id: RequestId) {
        self.waiting.retain(|(other, _)| *other != id);
        let blocks = &mut self.blocks;
        self.texts.retain(|text| {
            let stays = text.id != id;
            if !stays {
                blocks.release(&text.blocks);
            }
            stays
        });
    }

    /// The ids a text starts with, if the model knows them all and they fit.
    fn start(&self, work: &mut Work) -> Result<Vec<u32>, Refused> {
        let (ids, tokens) = work.start(self.options.max_length)?;
        let vocab_size = self.decoder.config.vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Refused::UnknownId { id, vocab_size });
        }
        let cache = self.cache_tokens();
        if tokens > cache {
            return Err(Refused::CacheTooSmall { tokens, cache });
        }
        Ok(ids)
    }

    /// Keys of longrope models depend on how long the text was when they were made: neither may a prompt be read in
    /// chunks, nor another text's keys be used.
    fn keys_depend_on_length(&self) -> bool {
        self.decoder.config.rope.long.is_some()
    }

    fn admit(&mut self) {
        while self.texts.len() < self.options.max_num_seqs {
            let Some((id, mut work)) = self.waiting.pop_front() else {
                return;
            };
            let ids = self
                .start(&mut work)
                .expect("it was started once when it was queued");
            let mut contents = Vec::new();
            if self.options.prefix_caching && !self.keys_depend_on_length() {
                extend_contents(&mut contents, &ids, self.cache.block_size());
            }
            self.texts.push(Text {
                id,
                work,
                prompt: ids.len(),
                ids,
                held: 0,
                blocks: Vec::new(),
                contents,
                fresh: true,
                ended: None,
            });
        }
    }

    /// One pass through the model; the texts that ended in it.
    pub(crate) fn step(&mut self) -> Vec<(RequestId, Result<Ended, Refused>)> {
        let mut ended = std::mem::take(&mut self.known);
        self.admit();
        if self.texts.is_empty() {
            return ended;
        }
        let started = Instant::now();
        let parts = self.plan();
        self.count(&parts);
        let runs: Vec<Run> = parts
            .iter()
            .map(|part| {
                let text = &self.texts[part.text];
                Run {
                    blocks: &text.blocks,
                    start: text.held,
                    ids: &text.ids[text.held..text.held + part.tokens],
                }
            })
            .collect();
        let whole = parts
            .iter()
            .any(|part| self.texts[part.text].work.wants_prompt());
        let decodes = !whole && parts.iter().all(|part| part.tokens == 1);
        let after = match &mut self.decode_steps {
            Some(steps) if decodes => {
                let logits = steps.logits(&runs);
                self.statistics.replayed_steps += steps.take_replayed();
                if let Some(refusal) = steps.take_refusal() {
                    tracing::warn!("decoding goes on without graphs: {refusal}");
                }
                After::Logits(logits)
            }
            _ if whole => After::Hidden(self.decoder.forward_cached_all(&runs, &mut self.cache)),
            _ => After::Hidden(self.decoder.forward_cached(&runs, &mut self.cache)),
        };
        self.look(&parts, &after, whole);
        self.remember(&parts);
        self.count_time(&parts, started);
        self.take_ended(&mut ended);
        ended
    }

    /// Hands each text the logits it asks for: those after its last id, and those of its prompt if they are wanted.
    fn look(&mut self, parts: &[Part], after: &After, whole: bool) {
        // (text, row of `hidden`, position), the rows of a text side by side.
        let mut looks: Vec<(usize, usize, usize)> = Vec::new();
        let mut rows = 0;
        for part in parts {
            let text = &mut self.texts[part.text];
            let (first, held) = (rows, text.held);
            rows += if whole { part.tokens } else { 1 };
            text.held += part.tokens;
            let last = text.held - 1;
            if text.work.wants_prompt() {
                let asked = held..last.min(text.prompt - 1);
                looks.extend(asked.map(|position| (part.text, first + position - held, position)));
            }
            // Not before the end of a prompt, unless that is asked for.
            if text.pending() == 0 || (text.work.wants_prompt() && last + 1 < text.prompt) {
                looks.push((part.text, rows - 1, last));
            }
        }
        for looks in looks.chunks(LOGIT_ROWS.max(parts.len())) {
            let wanted: Vec<usize> = looks.iter().map(|&(_, row, _)| row).collect();
            let logits = after.logits(&self.decoder, rows, &wanted);
            let vocab_size = logits.len() / looks.len();
            let mut of_text = vec![0..0; self.texts.len()];
            for (number, &(text, ..)) in looks.iter().enumerate() {
                let range = &mut of_text[text];
                *range = if range.start == range.end {
                    number
                } else {
                    range.start
                }..number + 1;
            }
            let texts = self.texts.par_iter_mut().zip(of_text);
            texts.for_each(|(text, range)| {
                for number in range {
                    let logits = &logits[number * vocab_size..][..vocab_size];
                    text.look(looks[number].2, logits);
                }
            });
        }
    }

    /// Blocks that were filled in this step can be found from now on.
    fn remember(&mut self, parts: &[Part]) {
        if !self.options.prefix_caching || self.keys_depend_on_length() {
            return;
        }
        let size = self.cache.block_size();
        for part in parts {
            let text = &mut self.texts[part.text];
            extend_contents(&mut text.contents, &text.ids, size);
            let before = (text.held - part.tokens) / size;
            for block in before..text.held / size {
                self.blocks.fill(text.blocks[block], text.contents[block]);
            }
        }
    }

    fn take_ended(&mut self, ended: &mut Vec<(RequestId, Result<Ended, Refused>)>) {
        let texts = std::mem::take(&mut self.texts);
        for text in texts {
            match text.ended {
                None => self.texts.push(text),
                Some(result) => {
                    self.blocks.release(&text.blocks);
                    ended.push((text.id, result.map(|()| text.work.finish())));
                }
            }
        }
    }

    /// What the next step reads: one token of each text being written, then prompts, oldest first. Every text of the
    /// plan has the blocks it needs; the oldest text is always in it.
    fn plan(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut number = 0;
        while number < self.texts.len() {
            if self.is_written(number) {
                if self.provide(number, 1) {
                    parts.push(Part {
                        text: number,
                        tokens: 1,
                    });
                } else {
                    // It was itself the youngest that had blocks.
                    self.preempt(number);
                }
            }
            number += 1;
        }

        let most = self.options.max_num_batched_tokens;
        let mut room = most
            .saturating_sub(parts.len())
            .max(LEAST_PREFILL.min(most));
        let mut coming: HashSet<Content> = HashSet::new();
        for number in 0..self.texts.len() {
            if room == 0 {
                break;
            }
            if self.is_written(number) {
                continue;
            }
            let waits = self.texts[number].fresh && !self.take_prefix(number, &coming);
            let text = &self.texts[number];
            coming.extend(
                text.contents
                    .iter()
                    .skip(text.held / self.cache.block_size()),
            );
            if waits {
                continue;
            }
            let pending = text.pending();
            let tokens = if !self.keys_depend_on_length() {
                pending.min(room)
            } else if text.held == 0 {
                text.prompt
            } else {
                1
            };
            // Room for all of its prompt, and a block to spare for each text that is being written: it would be the
            // first to lose its place again.
            let (reach, spare) = if text.fresh {
                (text.ids.len(), parts.len())
            } else {
                (text.held + tokens, 0)
            };
            let needed = reach.div_ceil(self.cache.block_size());
            let lacking = needed.saturating_sub(text.blocks.len());
            let fits = lacking + spare <= self.blocks.available();
            if (fits || parts.is_empty()) && self.provide(number, tokens) {
                self.texts[number].fresh = false;
                parts.push(Part {
                    text: number,
                    tokens,
                });
                room = room.saturating_sub(tokens);
            } else {
                // Later ones would take what this one waits for.
                self.give_back(number);
                break;
            }
        }
        assert!(
            !parts.is_empty(),
            "the oldest text fits: it was refused otherwise"
        );
        parts
    }

    /// Whether a text is past its prompt and needs one token read.
    fn is_written(&self, number: usize) -> bool {
        let text = &self.texts[number];
        !text.fresh && text.pending() == 1
    }

    /// A fresh text takes over the longest beginning that the cache has; false when it had better wait for an older text
    /// that is about to compute more of it. The oldest has none to wait for.
    fn take_prefix(&mut self, number: usize, coming: &HashSet<Content>) -> bool {
        self.give_back(number);
        let text = &self.texts[number];
        // One token at least must be read, for its logits; and all of them where all logits are wanted.
        let most = (text.ids.len() - 1) / self.cache.block_size();
        let contents = if text.work.wants_prompt() {
            &[][..]
        } else {
            &text.contents[..most.min(text.contents.len())]
        };
        let found = self.blocks.find(contents);
        if contents
            .get(found.len())
            .is_some_and(|next| coming.contains(next))
        {
            return false;
        }
        self.blocks.share(&found);
        let text = &mut self.texts[number];
        text.held = found.len() * self.cache.block_size();
        text.blocks = found;
        self.statistics.reused_tokens += text.held;
        true
    }

    /// Undoes [`Self::take_prefix`] for a text that was not started after all.
    fn give_back(&mut self, number: usize) {
        let text = &mut self.texts[number];
        if text.fresh {
            self.statistics.reused_tokens -= text.held;
            self.blocks.release(&std::mem::take(&mut text.blocks));
            text.held = 0;
        }
    }

    /// Blocks for the next `tokens` of a text; younger texts give theirs away for it, youngest first. False when that is
    /// not enough.
    fn provide(&mut self, number: usize, tokens: usize) -> bool {
        let text = &self.texts[number];
        let needed = (text.held + tokens).div_ceil(self.cache.block_size());
        while self.texts[number].blocks.len() < needed {
            if let Some(block) = self.blocks.take() {
                self.texts[number].blocks.push(block);
                continue;
            }
            let younger = (number + 1..self.texts.len())
                .rev()
                .find(|&other| !self.texts[other].fresh);
            match younger {
                Some(other) => self.preempt(other),
                None => return false,
            }
        }
        true
    }

    /// A text gives its blocks away and will be read again.
    fn preempt(&mut self, number: usize) {
        self.statistics.preemptions += 1;
        let text = &mut self.texts[number];
        self.blocks.release(&std::mem::take(&mut text.blocks));
        text.held = 0;
        text.fresh = true;
    }

    fn count(&mut self, parts: &[Part]) {
        let statistics = &mut self.statistics;
        statistics.slots = self.options.max_num_seqs;
        statistics.occupied += self.texts.len();
        statistics.steps += 1;
        statistics.cache_blocks = self.cache.blocks();
        statistics.most_used_blocks = statistics.most_used_blocks.max(self.blocks.used());
        let (decode, prefill) = self.tokens(parts);
        self.statistics.decode_tokens += decode;
        self.statistics.prefill_tokens += prefill;
    }

    fn count_time(&mut self, parts: &[Part], started: Instant) {
        let (decode, prefill) = self.tokens(parts);
        let per_token = started.elapsed().as_secs_f64() / (decode + prefill) as f64;
        self.statistics.decode_seconds += per_token * decode as f64;
        self.statistics.prefill_seconds += per_token * prefill as f64;
    }

    /// Tokens being written, and tokens of prompts. A single token is counted as written.
    fn tokens(&self, parts: &[Part]) -> (usize, usize) {
        let decode = parts.iter().filter(|part| part.tokens == 1).count();
        let all: usize = parts.iter().map(|part| part.tokens).sum();
        (decode, all - decode)
    }
}

/// What came out of a pass, a row for each token that was asked for.
#[allow(clippy::large_enum_variant)] // there is one at a time
enum After {
    Hidden(Tensor<2>),
    /// On the host, row after row.
    Logits(Vec<f32>),
}

impl After {
    /// The logits of the `wanted` ones of all `rows`, row after row.
    fn logits(&self, decoder: &Decoder, rows: usize, wanted: &[usize]) -> Cow<'_, [f32]> {
        let hidden = match self {
            After::Hidden(hidden) => hidden.clone(),
            After::Logits(logits) if wanted.len() == rows => return logits.into(),
            After::Logits(logits) => {
                let vocab_size = logits.len() / rows;
                let row = |&row: &usize| &logits[row * vocab_size..][..vocab_size];
                return wanted.iter().flat_map(row).copied().collect();
            }
        };
        let hidden = if wanted.len() == rows {
            hidden
        } else {
            let indices: Vec<i64> = wanted.iter().map(|&row| row as i64).collect();
            let count = indices.len();
            let indices = TensorData::new(indices, [count]);
            let device = hidden.device();
            hidden.select(0, Tensor::<1, Int>::from_data(indices, &device))
        };
        let logits = decoder.logits(hidden).try_into_vec_as::<f32>();
        logits.expect("logits are floats").into()
    }
}
