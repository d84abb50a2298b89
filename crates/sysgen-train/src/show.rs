//! What a person sees while a run goes on: a progress bar on a terminal, plain lines where the output is piped.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use sysgen_core::tell::duration;

use crate::metrics::Line;

/// The first steps are shown one by one, so that a wrong start is seen at once.
const FIRST_LINES: usize = 5;
/// Between later plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the steps of a run.
pub struct Show {
    bar: Option<ProgressBar>,
    total_steps: usize,
    first_step: usize,
    started: Instant,
    last_line: Cell<Instant>,
}

impl Show {
    /// For a run of `total_steps` of which `done` are done.
    pub fn steps(total_steps: usize, done: usize) -> Show {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr())
            && tracing::enabled!(tracing::Level::INFO);
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(total_steps as u64).with_position(done as u64);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
                .expect("the template has only known keys");
            bar.set_style(style);
            bar
        });
        let now = Instant::now();
        Show {
            bar,
            total_steps,
            first_step: done,
            started: now,
            last_line: Cell::new(now),
        }
    }

    /// A step was done.
    pub fn step(&self, line: &Line) {
        let message = self.describe(line);
        if let Some(bar) = &self.bar {
            bar.set_position(line.step as u64);
            bar.set_message(message);
            return;
        }
        let early = line.step - self.first_step <= FIRST_LINES;
        if early
            || line.eval_loss.is_some()
            || line.step == self.total_steps
            || self.last_line.get().elapsed() > LINE_INTERVAL
        {
            self.last_line.set(Instant::now());
            tracing::info!("step {}/{}  {message}", line.step, self.total_steps);
        }
    }

    /// A checkpoint was written.
    pub fn saved(&self, path: &Path) {
        let message = format!("saved {}", path.display());
        match &self.bar {
            Some(bar) => bar.suspend(|| tracing::info!("{message}")),
            None => tracing::info!("{message}"),
        }
    }

    /// The last step is done.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }

    fn describe(&self, line: &Line) -> String {
        let mut words = match line.loss {
            Some(loss) => format!("loss {loss:.4}"),
            None => "loss not finite".to_string(),
        };
        if let Some(loss) = line.eval_loss {
            words += &format!("  held-out {loss:.4}");
        }
        if let Some(rate) = line.learning_rate {
            words += &format!("  lr {rate:.2e}");
        }
        if let Some(speed) = line.tokens_per_second {
            words += &format!("  {speed:.0} tokens/s");
        }
        if let Some(obedience) = line.obedience {
            words += &format!("  obeyed {:.0} %", 100.0 * obedience);
        }
        if let Some(share) = line.supervised_share {
            words += &format!("  {:.0} % learnt", 100.0 * share);
        }
        let (done, to_come) = (line.step - self.first_step, self.total_steps - line.step);
        if to_come > 0 {
            let left = self.started.elapsed().as_secs_f64() / done.max(1) as f64 * to_come as f64;
            words += &format!("  {} left", duration(left));
        }
        words
    }
}
