//! How far a run is: a bar on a terminal, a line now and then when the output goes elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::throughput::Throughput;

/// Between two lines when there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    rows: usize,
    rows_done: usize,
    answers: usize,
    answers_expected: usize,
    tokens: usize,
    started: Instant,
    last_line: Instant,
    throughput: Throughput,
}

impl Progress {
    /// Of `rows` rows, `done` need nothing more; the others need about `answers_expected` answers.
    pub(crate) fn new(
        rows: usize,
        done: usize,
        answers_expected: usize,
        throughput: Throughput,
    ) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} rows  {msg}");
            let bar = ProgressBar::new(rows as u64);
            bar.set_style(style.expect("the template is a constant"));
            bar.set_position(done as u64);
            bar
        });
        let now = Instant::now();
        Progress {
            bar,
            rows,
            rows_done: done,
            answers: 0,
            answers_expected,
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

    /// `rows` more rows need nothing more.
    pub(crate) fn rows(&mut self, rows: usize) {
        self.rows_done += rows;
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
            self.message()
        );
    }

    /// Tokens read and written so far, and the seconds it took.
    pub(crate) fn totals(&self) -> (usize, f64) {
        (self.tokens, self.started.elapsed().as_secs_f64())
    }

    fn show(&mut self) {
        self.throughput.note(self.rows_done, self.tokens);
        if let Some(bar) = &self.bar {
            bar.set_position(self.rows_done as u64);
            bar.set_message(self.message());
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!("{}/{} rows  {}", self.rows_done, self.rows, self.message());
        }
    }

    fn message(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        let speed = format!("{:.0} tokens/s", self.tokens as f64 / seconds);
        if self.answers == 0 || self.rows_done == self.rows {
            return speed;
        }
        // Retries make it a little more than expected, dropped rows a little less.
        let to_come = self.answers_expected.saturating_sub(self.answers);
        let left = seconds / self.answers as f64 * to_come as f64;
        format!("{speed}  {} left", duration(left))
    }
}

/// For a person: `40 s`, `3 min 5 s`, `2 h 10 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}
