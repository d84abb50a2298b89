//! How far a run is: a bar on a terminal, a line now and then when the output goes elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sysgen_core::tell::duration;

use crate::throughput::Throughput;

/// Between two lines when there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    rows: usize,
    rows_done: usize,
    /// Answers that earlier runs had got, those got since, and how many are still to come at the start.
    had: usize,
    answers: usize,
    expected: usize,
    tokens: usize,
    started: Instant,
    last_line: Instant,
    throughput: Throughput,
}

impl Progress {
    /// Of `rows` rows, `done` need nothing more; `had` answers are there, and about `expected` are to come.
    pub(crate) fn new(
        rows: usize,
        done: usize,
        had: usize,
        expected: usize,
        throughput: Throughput,
    ) -> Progress {
        let shown = std::io::stderr().is_terminal() && tracing::enabled!(tracing::Level::INFO);
        let bar = shown.then(|| {
            let style = ProgressStyle::with_template("{bar:30} {msg}");
            let bar = ProgressBar::new(100);
            bar.set_style(style.expect("the template is a constant"));
            bar
        });
        let now = Instant::now();
        Progress {
            bar,
            rows,
            rows_done: done,
            had,
            answers: 0,
            expected,
            tokens: 0,
            started: now,
            last_line: now,
            throughput,
        }
    }

    /// One more answer, for which `tokens` were read or written.
    pub(crate) fn answer(&mut self, tokens: usize) {
        self.answers += 1;
        self.tokens += tokens;
        self.show();
    }

    /// One more row needs nothing more.
    pub(crate) fn row(&mut self) {
        self.rows_done += 1;
        self.show();
    }

    pub(crate) fn finish(&mut self) {
        self.throughput.note_now(self.rows_done, self.tokens);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let (tokens, seconds) = self.totals();
        tracing::info!(
            "{}/{} rows  {tokens} tokens read and written in {}, {}",
            self.rows_done,
            self.rows,
            duration(seconds),
            self.speed()
        );
    }

    /// Tokens read and written so far, and the seconds it took.
    pub(crate) fn totals(&self) -> (usize, f64) {
        (self.tokens, self.started.elapsed().as_secs_f64())
    }

    fn show(&mut self) {
        self.throughput.note(self.rows_done, self.tokens);
        if let Some(bar) = &self.bar {
            bar.set_position(self.percent());
            bar.set_message(self.message());
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!("{}", self.message());
        }
    }

    /// Of the answers: rows are done in bunches, when the last phase comes to them.
    fn percent(&self) -> u64 {
        let had = self.had + self.answers;
        // Retries make it a little more than expected, dropped rows a little less.
        let all = (self.had + self.expected).max(had + 1);
        match self.rows_done == self.rows {
            true => 100,
            false => (100 * had / all) as u64,
        }
    }

    fn speed(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        format!("{:.0} tokens/s", self.tokens as f64 / seconds)
    }

    fn message(&self) -> String {
        let done = format!(
            "{} %  {}/{} rows  {}",
            self.percent(),
            self.rows_done,
            self.rows,
            self.speed()
        );
        if self.answers == 0 || self.rows_done == self.rows {
            return done;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let to_come = self.expected.saturating_sub(self.answers);
        let left = seconds / self.answers as f64 * to_come as f64;
        format!("{done}  {} left", duration(left))
    }
}
