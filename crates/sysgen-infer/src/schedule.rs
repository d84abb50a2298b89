//! Which tokens go through the model in which step. Every step takes one token of each text that is being
//! written, and fills up with prompts, oldest first. Order and chunks change when a token is computed,
//! never its value.

use std::ops::ControlFlow;
use std::time::Instant;

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use sysgen_model::{Decoder, KvCache, Run};

use crate::engine::Engine;
use crate::request::Refused;
use crate::statistics::Statistics;

/// Tokens of one step: enough to keep the processors busy, few enough not to stall texts being written.
const TOKENS_PER_STEP: usize = 512;
/// Prompt tokens that a step takes however many texts are being written.
const LEAST_PREFILL: usize = 64;
/// A shared prefix shorter than this is computed again rather than waited for and copied.
const LEAST_SHARED: usize = 16;

/// A request in the schedule's eyes: ids to read, then logits to look at, again and again.
pub(crate) trait Task: Send {
    type Outcome;

    /// The ids to read first, all of which fit into `max_length`; none ends the task.
    fn start(&mut self, max_length: usize) -> Result<Vec<u32>, Refused>;

    /// Looks at the logits after all ids so far; gives the ids to read next, none ends the task.
    fn advance(&mut self, logits: &[f32]) -> Result<Vec<u32>, Refused>;

    fn finish(self) -> Self::Outcome;
}

/// Runs all tasks; the outcome of each goes to `on_done` with the task's index.
pub(crate) fn run<T: Task>(
    engine: &Engine,
    tasks: Vec<T>,
    on_done: &mut dyn FnMut(usize, Result<T::Outcome, Refused>) -> ControlFlow<()>,
) -> Statistics {
    let slots = engine.slots.min(tasks.len());
    let mut schedule = Schedule::new(engine, slots);
    let mut waiting = tasks.into_iter().enumerate();
    loop {
        while schedule.has_room() {
            let Some((index, mut task)) = waiting.next() else {
                break;
            };
            let start = task
                .start(engine.max_length)
                .and_then(|ids| schedule.known(ids));
            let outcome = match start {
                Ok(ids) if !ids.is_empty() => {
                    schedule.admit(index, task, ids);
                    continue;
                }
                Ok(_) => Ok(task.finish()),
                Err(refused) => Err(refused),
            };
            if on_done(index, outcome).is_break() {
                return schedule.statistics;
            }
        }
        if schedule.is_idle() || (engine.stop)() {
            return schedule.statistics;
        }
        for (index, outcome) in schedule.step() {
            if on_done(index, outcome).is_break() {
                return schedule.statistics;
            }
        }
    }
}

/// The slots, and the cache they have in common.
struct Schedule<'a, T> {
    decoder: &'a Decoder,
    cache: KvCache,
    slots: Vec<Slot<T>>,
    admitted: usize,
    statistics: Statistics,
}

/// One place in the cache and the text that occupies it.
struct Slot<T> {
    /// The text so far.
    ids: Vec<u32>,
    /// How many of them the cache has. A slot without work keeps these for a prompt that starts alike.
    held: usize,
    work: Option<Work<T>>,
}

struct Work<T> {
    index: usize,
    task: T,
    /// Place in the order of admission.
    turn: usize,
    /// Nothing of it has gone through the model yet.
    fresh: bool,
}

/// A slot's part of a step.
#[derive(Clone, Copy)]
struct Part {
    slot: usize,
    tokens: usize,
}

impl<'a, T: Task> Schedule<'a, T> {
    fn new(engine: &Engine<'a>, slots: usize) -> Schedule<'a, T> {
        let empty = || Slot {
            ids: Vec::new(),
            held: 0,
            work: None,
        };
        Schedule {
            decoder: engine.decoder,
            cache: KvCache::new(&engine.decoder.config, slots),
            slots: (0..slots).map(|_| empty()).collect(),
            admitted: 0,
            statistics: Statistics {
                slots: engine.slots,
                ..Statistics::default()
            },
        }
    }

    fn has_room(&self) -> bool {
        self.slots.iter().any(|slot| slot.work.is_none())
    }

    fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.work.is_none())
    }

    /// `ids`, if the model knows them all.
    fn known(&self, ids: Vec<u32>) -> Result<Vec<u32>, Refused> {
        let vocab_size = self.decoder.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Refused::UnknownId { id, vocab_size }),
            None => Ok(ids),
        }
    }

    /// Keys of longrope models depend on how long the text is in the end: neither may a long prompt be
    /// read in chunks, nor another text's keys be used.
    fn keys_depend_on_length(&self) -> bool {
        self.decoder.config.rope.long.is_some()
    }

    /// Gives the task the free slot whose former text starts most like `ids`.
    fn admit(&mut self, index: usize, task: T, ids: Vec<u32>) {
        let reusable = !self.keys_depend_on_length();
        let (slot, shared) = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.work.is_none())
            .map(|(number, slot)| (number, if reusable { slot.shared_with(&ids) } else { 0 }))
            .max_by_key(|&(number, shared)| (shared, std::cmp::Reverse(number)))
            .expect("called when there is room");
        self.statistics.reused_tokens += shared;
        self.slots[slot] = Slot {
            ids,
            held: shared,
            work: Some(Work {
                index,
                task,
                turn: self.admitted,
                fresh: true,
            }),
        };
        self.admitted += 1;
    }

    /// One pass through the model; the tasks that ended in it.
    fn step(&mut self) -> Vec<(usize, Result<T::Outcome, Refused>)> {
        let started = Instant::now();
        let parts = self.plan();
        self.count(&parts);
        let runs: Vec<Run> = parts
            .iter()
            .map(|part| {
                let slot = &self.slots[part.slot];
                Run {
                    slot: part.slot,
                    start: slot.held,
                    ids: &slot.ids[slot.held..slot.held + part.tokens],
                }
            })
            .collect();
        let hidden = self.decoder.forward_cached(&runs, &mut self.cache);

        for part in &parts {
            self.slots[part.slot].held += part.tokens;
        }
        // Texts that have been read to their end; the others go on with their prompts.
        let complete: Vec<usize> = (0..parts.len())
            .filter(|&row| self.slots[parts[row].slot].pending() == 0)
            .collect();
        let ended = self.advance(&parts, &complete, hidden);
        self.count_time(&parts, started);
        ended
    }

    /// Hands each complete text its logits.
    fn advance(
        &mut self,
        parts: &[Part],
        complete: &[usize],
        hidden: Tensor<2>,
    ) -> Vec<(usize, Result<T::Outcome, Refused>)> {
        if complete.is_empty() {
            return Vec::new();
        }
        let logits = host_logits(self.decoder, hidden, parts.len(), complete);
        let vocab_size = logits.len() / complete.len();
        let mut row_of = vec![None; self.slots.len()];
        for (row, &part) in complete.iter().enumerate() {
            row_of[parts[part].slot] = Some(row);
        }
        let known = |ids: Vec<u32>| match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Refused::UnknownId { id, vocab_size }),
            None => Ok(ids),
        };
        self.slots
            .par_iter_mut()
            .zip(row_of)
            .filter_map(|(slot, row)| {
                let logits = &logits[row? * vocab_size..][..vocab_size];
                let work = slot.work.as_mut()?;
                match work.task.advance(logits).and_then(known) {
                    Ok(ids) if !ids.is_empty() => {
                        slot.ids.extend(ids);
                        None
                    }
                    ended => slot
                        .work
                        .take()
                        .map(|work| (work.index, ended.map(|_| work.task))),
                }
            })
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(index, ended)| (index, ended.map(T::finish)))
            .collect()
    }

    /// What the next step reads: one token of each text being written, then prompts, oldest first.
    fn plan(&mut self) -> Vec<Part> {
        let mut prompts: Vec<(usize, usize)> = Vec::new();
        let mut parts = Vec::new();
        for (number, slot) in self.slots.iter().enumerate() {
            match &slot.work {
                Some(work) if !work.fresh && slot.pending() == 1 => parts.push(Part {
                    slot: number,
                    tokens: 1,
                }),
                Some(work) => prompts.push((work.turn, number)),
                None => {}
            }
        }
        prompts.sort_unstable();
        let mut room = TOKENS_PER_STEP
            .saturating_sub(parts.len())
            .max(LEAST_PREFILL);
        for (_, number) in prompts {
            if room == 0 {
                break;
            }
            if self.waits_for_shared_prefix(number) {
                continue;
            }
            let slot = &mut self.slots[number];
            let pending = slot.pending();
            let whole = self.decoder.config.rope.long.is_some();
            let tokens = if whole { pending } else { pending.min(room) };
            if let Some(work) = &mut slot.work {
                work.fresh = false;
            }
            parts.push(Part {
                slot: number,
                tokens,
            });
            room = room.saturating_sub(tokens);
        }
        parts
    }

    /// A fresh text takes over the longest prefix that another slot holds. When an older text is about to
    /// compute a longer one, it waits instead: the oldest never waits, so this ends.
    fn waits_for_shared_prefix(&mut self, number: usize) -> bool {
        let slot = &self.slots[number];
        let Some(work) = slot.work.as_ref().filter(|work| work.fresh) else {
            return false;
        };
        if self.keys_depend_on_length() {
            return false;
        }
        let (mut ready, mut from, mut coming) = (slot.held, number, slot.held);
        for (other, candidate) in self.slots.iter().enumerate() {
            if other == number {
                continue;
            }
            let shared = candidate.shared_with(&slot.ids);
            if shared > ready {
                (ready, from) = (shared, other);
            }
            if candidate
                .work
                .as_ref()
                .is_some_and(|older| older.turn < work.turn)
            {
                coming = coming.max(common_prefix(&candidate.ids, &slot.ids));
            }
        }
        if coming >= ready + LEAST_SHARED {
            return true;
        }
        if ready >= slot.held + LEAST_SHARED {
            self.statistics.reused_tokens += ready - slot.held;
            self.cache.copy(from, number, ready);
            self.slots[number].held = ready;
        }
        false
    }

    fn count(&mut self, parts: &[Part]) {
        let occupied = self.slots.iter().filter(|slot| slot.work.is_some());
        self.statistics.occupied += occupied.count();
        self.statistics.steps += 1;
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

impl<T> Slot<T> {
    /// Ids that the cache does not have yet.
    fn pending(&self) -> usize {
        self.ids.len() - self.held
    }

    /// How much of `ids` this slot's part of the cache can stand for. One token at least must still be
    /// read: its logits are not in the cache.
    fn shared_with(&self, ids: &[u32]) -> usize {
        common_prefix(&self.ids[..self.held], ids).min(ids.len() - 1)
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The logits of some rows of `hidden`, on the host, row after row.
fn host_logits(decoder: &Decoder, hidden: Tensor<2>, rows: usize, wanted: &[usize]) -> Vec<f32> {
    let hidden = if wanted.len() == rows {
        hidden
    } else {
        let indices: Vec<i64> = wanted.iter().map(|&row| row as i64).collect();
        let count = indices.len();
        let indices = TensorData::new(indices, [count]);
        let device = hidden.device();
        hidden.select(0, Tensor::<1, Int>::from_data(indices, &device))
    };
    decoder
        .logits(hidden)
        .try_into_vec_as::<f32>()
        .expect("logits are floats")
}
