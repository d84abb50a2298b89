//! How fast a run was at every moment, for the report: `throughput.jsonl` beside the log. Nothing
//! depends on it: a line that cannot be written or read is passed over.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The file's name.
const FILE: &str = "throughput.jsonl";
/// The least time between two lines.
const EVERY: Duration = Duration::from_secs(1);
/// A long run has about this many lines for every tripling of its time.
const LINES: u32 = 200;

/// What one process had done by a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// When the process began to generate, in milliseconds since 1970: tells the processes apart.
    pub(crate) started: u64,
    /// Since then.
    pub(crate) seconds: f64,
    /// Rows that need nothing more, those of earlier processes included.
    pub(crate) rows: usize,
    /// Tokens read and written since then.
    pub(crate) tokens: usize,
}

/// Writes the moments of this process.
pub(crate) struct Throughput {
    file: Option<File>,
    started: (u64, Instant),
    last: Duration,
}

impl Throughput {
    /// For a run whose data goes to `directory`.
    pub(crate) fn of(directory: &Path) -> Throughput {
        let path = directory.join(FILE);
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Throughput {
            file: OpenOptions::new().append(true).create(true).open(path).ok(),
            started: (since_1970.as_millis() as u64, Instant::now()),
            last: Duration::ZERO,
        }
    }

    /// Notes how far the run is, now and then.
    pub(crate) fn note(&mut self, rows: usize, tokens: usize) {
        let elapsed = self.started.1.elapsed();
        if elapsed - self.last >= EVERY.max(elapsed / LINES) {
            self.note_now(rows, tokens);
        }
    }

    /// Notes how far the run is.
    pub(crate) fn note_now(&mut self, rows: usize, tokens: usize) {
        let elapsed = self.started.1.elapsed();
        self.last = elapsed;
        let moment = Moment {
            started: self.started.0,
            seconds: (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            rows,
            tokens,
        };
        if let (Some(file), Ok(line)) = (&mut self.file, serde_json::to_string(&moment)) {
            // One write, so that the lines of several processes do not mix.
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// The moments of all processes of a run, in the order they were written; none when there is no file.
pub(crate) fn read(directory: &Path) -> Vec<Moment> {
    let text = std::fs::read_to_string(directory.join(FILE)).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
