//! What a run writes down as it goes: `metrics.jsonl`, the losses of every row, TensorBoard's events; and the watch over the
//! loss, which knows only what was written.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sysgen_core::AppendLog;

use crate::metrics::{self, Line};
use crate::row_losses::{self, StepRows};
use crate::tensorboard::EventFile;
use crate::watch::LossWatch;

/// The losses of this many last logged steps are averaged where a run is summed up.
const LAST_STEPS: usize = 10;
/// Rows named where a loss jumps.
const NAMED_ROWS: usize = 3;

/// The open files of a run.
pub(crate) struct Journal {
    metrics_path: PathBuf,
    metrics: AppendLog,
    rows: AppendLog,
    events: Option<EventFile>,
    /// Of the data's answers, and of the student's own words: their losses are not alike.
    watches: [LossWatch; 2],
}

impl Journal {
    /// Goes on with what is there of the first `done` steps; what is there of later ones was not kept by a checkpoint and is
    /// dropped. `is_on_policy` says of a step, counted from 0, whether the student wrote its answers.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub(crate) fn open(
        output_dir: &Path,
        done: usize,
        tensorboard: bool,
        is_on_policy: impl Fn(usize) -> bool,
    ) -> Result<Journal> {
        let metrics_path = output_dir.join("metrics.jsonl");
        let rows_path = output_dir.join(row_losses::FILE);
        for path in [&metrics_path, &rows_path] {
            metrics::keep_until(path, (done > 0).then_some(done))?;
        }
        let (metrics, rows) = (
            AppendLog::open(&metrics_path)?,
            AppendLog::open(&rows_path)?,
        );
        let mut watches = [LossWatch::default(), LossWatch::default()];
        for step in row_losses::read(&rows_path)? {
            watches[usize::from(is_on_policy(step.step - 1))].add(step.loss());
        }
        let events = match tensorboard {
            true => {
                let folder = output_dir.join("runs");
                Some(EventFile::start(&folder, &metrics::read(&metrics_path)?)?)
            }
            false => None,
        };
        Ok(Journal {
            metrics_path,
            metrics,
            rows,
            events,
            watches,
        })
    }

    /// A line of `metrics.jsonl`, and its events.
    pub(crate) fn add(&mut self, line: &Line) -> Result<()> {
        self.metrics.append(line)?;
        self.events
            .iter_mut()
            .try_for_each(|events| events.add(line))
    }

    /// The rows of a step. Where its loss jumps, this is said, and the rows with the highest losses come back.
    pub(crate) fn add_rows(
        &mut self,
        rows: &StepRows,
        loss: f64,
        on_policy: bool,
    ) -> Result<Option<Vec<String>>> {
        self.rows.append(rows)?;
        let Some(score) = self.watches[usize::from(on_policy)].add(loss) else {
            return Ok(None);
        };
        let worst = rows.worst_first().into_iter().take(NAMED_ROWS);
        let worst: Vec<String> = worst.map(|(row, ..)| row.to_string()).collect();
        tracing::warn!(
            "step {}: the loss {loss:.3} is {score:.0} standard deviations above what the last ones lead to; the rows with the highest: {}",
            rows.step,
            worst.join(", ")
        );
        Ok(Some(worst))
    }

    /// Everything is on disk when this returns: before a checkpoint says so.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.rows.sync()
    }

    /// All lines of `metrics.jsonl`.
    pub(crate) fn lines(&self) -> Result<Vec<Line>> {
        metrics::read(&self.metrics_path)
    }
}

/// The training loss that a run is summed up with.
pub(crate) fn mean_of_last_losses(lines: &[Line]) -> Option<f64> {
    let last: Vec<f64> = lines
        .iter()
        .rev()
        .filter_map(|line| line.loss)
        .take(LAST_STEPS)
        .collect();
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}
