//! Rows on their way through the phases. A local model gets them in chunks; in each wave every row of the chunk asks for what
//! it needs next. An endpoint gets a row's next request as soon as its last one is answered. Each answer is in the log the
//! moment it is known. What follows from the answers is left to `steps`, what is
//! written in the end to `finish`.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use anyhow::{Result, bail};
use sysgen_core::config::{GenerateSection, Variant};
use sysgen_core::interrupt;

use crate::generator::{Generator, Judgement, Outcome, Prompt, Reply};
use crate::input::Row;
use crate::log::{Answer, Answers, Entry, Log, Phase};
use crate::progress::Progress;
use crate::shard::Shard;
use crate::steps::{Ask, Plan, Request, Step};
use crate::summary::Summary;
use crate::throughput::Throughput;

/// Rows in flight per slot of the engine: enough that a slot which is free early finds another request.
const ROWS_PER_SLOT: usize = 16;
/// Answers after which a stream makes sure that the log is on the disk.
const ANSWERS_PER_SYNC: usize = 1024;

/// The rows' way through the phases, by the answers in the log.
pub(crate) struct Session<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) variant: Variant,
    /// None when no row needs the model.
    pub(crate) log: Option<Log>,
}

impl Session<'_> {
    pub(crate) fn answers(&self, row: &Row) -> Result<Answers> {
        self.log
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |log| log.entries(&row.id))
            .map(|entries| self.plan.answers(row, entries))
    }

    fn next(&self, row: &Row) -> Result<Step> {
        Ok(self.plan.next(row, &self.answers(row)?))
    }

    fn is_waiting(&self, row: &Row) -> Result<bool> {
        Ok(matches!(self.next(row)?, Step::Ask(_)))
    }

    pub(crate) fn count_waiting(&self, rows: &[&Row]) -> Result<usize> {
        let mut waiting = 0;
        for row in rows {
            waiting += usize::from(self.is_waiting(row)?);
        }
        Ok(waiting)
    }

    /// Has every waiting row answered, as long as nobody asks to stop. The number of rows that the endpoint did not
    /// answer this time.
    ///
    /// # Errors
    /// Such rows, unless they are to be left out.
    pub(crate) fn answer<'g>(
        &mut self,
        rows: &[&Row],
        shard: Shard,
        generate: &GenerateSection,
        open: impl FnOnce() -> Result<Box<dyn Generator + 'g>>,
        summary: &mut Summary,
    ) -> Result<usize> {
        let mut waiting = Vec::new();
        for row in rows {
            if self.is_waiting(row)? {
                waiting.push(*row);
            }
        }
        let log = self.log.as_mut().expect("a log is open");
        if waiting.is_empty() {
            return Ok(0);
        }
        let done = rows.len() - waiting.len();
        let had = rows.iter().map(|row| log.count(&row.id)).sum();
        if had > 0 {
            tracing::info!(
                "going on: {had} answers are there, {done} of {} rows need nothing more",
                rows.len()
            );
        }
        // Before the model is loaded: a log that cannot be written is known at once.
        log.write_to(shard)?;
        let mut generator = open()?;
        tracing::info!(
            "writing system messages and answers for {} rows",
            waiting.len()
        );
        let expected = waiting.iter().map(|row| self.answers_to_come(row)).sum();
        let throughput = Throughput::of(&summary.dataset.with_file_name(""));
        let mut progress = Progress::new(rows.len(), done, had, expected, throughput);
        let mut unanswered = BTreeMap::new();
        let generator = generator.as_mut();
        let outcome = match generator.takes_more() {
            Some(begun) => self.stream(&waiting, begun, generator, &mut progress, &mut unanswered),
            None => waiting
                .chunks(generate.batch_size.max(1) * ROWS_PER_SLOT)
                .try_for_each(|chunk| {
                    self.go_through(chunk, generator, &mut progress, &mut unanswered)
                }),
        };
        self.sync()?;
        progress.finish();
        (summary.tokens, summary.seconds) = progress.totals();
        outcome?;
        if let Some((row, reason)) = unanswered.first_key_value() {
            let rows = format!(
                "{} rows were not answered, {row} because of: {reason}",
                unanswered.len()
            );
            if !self.plan.skips_unanswered() {
                bail!(
                    "{rows}; all others are kept, run the same command again to ask for these once more, or leave them out with --set generate.openai.skip_unanswered=true"
                );
            }
            tracing::warn!("{rows}; left out (generate.openai.skip_unanswered)");
        }
        Ok(unanswered.len())
    }

    /// About how many answers a waiting row still needs: a draft, a judgement, and one per turn.
    fn answers_to_come(&self, row: &Row) -> usize {
        let turns = if self.variant == Variant::OriginalAnswer {
            0
        } else {
            row.turns.len()
        };
        let system = if row.system.is_some() { 0 } else { 2 };
        let had = self.log.as_ref().map_or(0, |log| log.count(&row.id));
        (system + turns).saturating_sub(had).max(1)
    }

    /// Takes every row through all it needs, each at its own pace, `begun` of them side by side; stops early when
    /// interrupted. `unanswered` as in `go_through`.
    fn stream(
        &mut self,
        rows: &[&Row],
        begun: usize,
        generator: &mut dyn Generator,
        progress: &mut Progress,
        unanswered: &mut BTreeMap<String, String>,
    ) -> Result<()> {
        let mut coming = rows.iter().copied();
        let mut under_way: HashMap<usize, (&Row, Place)> = HashMap::new();
        let mut prompts = Vec::new();
        for row in coming.by_ref().take(begun) {
            // Every row waits for an answer, or it would not be here.
            if let Some((place, prompt)) = self.ask(row)? {
                under_way.insert(prompts.len(), (row, place));
                prompts.push(prompt);
            }
        }
        let mut asked = prompts.len();
        let mut heard = 0;
        let mut failure = None;
        generator.complete(prompts, &mut |i, outcome| {
            heard += 1;
            let (row, place) = under_way.remove(&i).expect("a request has one outcome");
            let tokens = tokens_of(&outcome);
            let mut goes_on = Some(row);
            let next = || -> Result<Option<(&Row, Place, Prompt)>> {
                match answer_of(outcome, Answer::Reply) {
                    Ok(answer) => {
                        progress.answer(tokens);
                        let log = self.log.as_mut().expect("a log is open");
                        log.append(&place.entry(answer))?;
                        if heard % ANSWERS_PER_SYNC == 0 {
                            log.sync()?;
                        }
                    }
                    Err(reason) => {
                        unanswered.insert(row.id.clone(), reason);
                        goes_on = None;
                    }
                }
                while let Some(row) = goes_on.take().or_else(|| coming.next()) {
                    if let Some((place, prompt)) = self.ask(row)? {
                        return Ok(Some((row, place, prompt)));
                    }
                    progress.row();
                }
                Ok(None)
            };
            match next() {
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
                Ok(_) if interrupt::requested() => ControlFlow::Break(()),
                Ok(None) => ControlFlow::Continue(None),
                Ok(Some((row, place, prompt))) => {
                    under_way.insert(asked, (row, place));
                    asked += 1;
                    ControlFlow::Continue(Some(prompt))
                }
            }
        })?;
        all_heard(failure, heard, asked)
    }

    /// What `row` asks an endpoint for next; none when it needs nothing more.
    fn ask<'r>(&self, row: &'r Row) -> Result<Option<(Place<'r>, Prompt)>> {
        let Step::Ask(ask) = self.next(row)? else {
            return Ok(None);
        };
        match self.plan.request(row, &ask) {
            (place, Request::Complete(prompt)) => Ok(Some((Place::of(row, place, &ask), prompt))),
            (_, Request::Choose(_)) => bail!("an endpoint cannot choose labels"),
        }
    }

    fn sync(&self) -> Result<()> {
        self.log.as_ref().map_or(Ok(()), Log::sync)
    }

    /// Takes the rows of one chunk through all they need, wave by wave; stops early when interrupted.
    /// `unanswered` gets the rows that the model did not answer this time, with the reason.
    fn go_through(
        &mut self,
        chunk: &[&Row],
        generator: &mut dyn Generator,
        progress: &mut Progress,
        unanswered: &mut BTreeMap<String, String>,
    ) -> Result<()> {
        let mut waiting = chunk.to_vec();
        while !interrupt::requested() {
            let mut writes: Vec<Place> = Vec::new();
            let mut prompts: Vec<Prompt> = Vec::new();
            let mut choices: Vec<Place> = Vec::new();
            let mut judgements: Vec<Judgement> = Vec::new();
            let mut still_waiting = Vec::with_capacity(waiting.len());
            for row in waiting {
                if unanswered.contains_key(&row.id) {
                    continue;
                }
                let Step::Ask(ask) = self.next(row)? else {
                    progress.row();
                    continue;
                };
                still_waiting.push(row);
                let (place, request) = self.plan.request(row, &ask);
                let place = Place::of(row, place, &ask);
                match request {
                    Request::Complete(prompt) => {
                        writes.push(place);
                        prompts.push(prompt);
                    }
                    Request::Choose(judgement) => {
                        choices.push(place);
                        judgements.push(judgement);
                    }
                }
            }
            waiting = still_waiting;
            if waiting.is_empty() {
                break;
            }
            let asked = prompts.len() + judgements.len();
            let mut heard = 0;
            let mut failure = None;
            let log = self.log.as_mut().expect("a log is open");
            let mut note = |place: &Place, answer: Result<Answer, String>, tokens: usize| {
                heard += 1;
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(reason) => {
                        unanswered.insert(place.row.to_string(), reason);
                        return ControlFlow::Continue(None);
                    }
                };
                progress.answer(tokens);
                if let Err(error) = log.append(&place.entry(answer)) {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
                if interrupt::requested() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(None)
                }
            };
            if !prompts.is_empty() {
                generator.complete(prompts, &mut |i, outcome| {
                    let tokens = tokens_of(&outcome);
                    note(&writes[i], answer_of(outcome, Answer::Reply), tokens)
                })?;
            }
            if !judgements.is_empty() && !interrupt::requested() {
                generator.choose(judgements, &mut |i, outcome| {
                    let tokens = match &outcome {
                        Outcome::Done(judged) => judged.prompt_tokens,
                        _ => 0,
                    };
                    note(&choices[i], answer_of(outcome, Answer::Judged), tokens)
                })?;
            }
            all_heard(failure, heard, asked)?;
        }
        self.sync()
    }
}

/// That nothing failed and every request has its outcome, unless the run was asked to stop.
fn all_heard(failure: Option<anyhow::Error>, heard: usize, asked: usize) -> Result<()> {
    if let Some(failure) = failure {
        return Err(failure);
    }
    if heard < asked && !interrupt::requested() {
        bail!("the engine answered {heard} of {asked} requests; this is a fault of the program");
    }
    Ok(())
}

/// Tokens read and written for a reply.
fn tokens_of(outcome: &Outcome<Reply>) -> usize {
    match outcome {
        Outcome::Done(reply) => reply.prompt_tokens + reply.reply_tokens,
        _ => 0,
    }
}

/// What goes into the log; the reason when nothing does.
fn answer_of<T>(outcome: Outcome<T>, done: fn(T) -> Answer) -> Result<Answer, String> {
    match outcome {
        Outcome::Done(value) => Ok(done(value)),
        Outcome::TooLong(tokens) => Ok(Answer::TooLong(tokens)),
        Outcome::Refused(reason) => Ok(Answer::Refused(reason)),
        Outcome::Failed(reason) => Err(reason),
    }
}

/// Which request an outcome belongs to.
struct Place<'a> {
    row: &'a str,
    phase: Phase,
    attempt: usize,
    system_hash: Option<u64>,
}

impl<'a> Place<'a> {
    fn of(row: &'a Row, (phase, attempt): (Phase, usize), ask: &Ask) -> Place<'a> {
        Place {
            row: &row.id,
            phase,
            attempt,
            system_hash: ask.system_hash(),
        }
    }

    fn entry(&self, answer: Answer) -> Entry {
        Entry {
            row: self.row.to_string(),
            phase: self.phase,
            attempt: self.attempt,
            system_hash: self.system_hash,
            answer,
        }
    }
}
