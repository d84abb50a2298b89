//! `row_losses.jsonl`: for every step the rows in it and the loss of each, so that a step leads to its rows and a row to its
//! steps. One short line a step; what an interrupted run wrote after its checkpoint is dropped like that of `metrics.jsonl`.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sysgen_core::jsonl::read_lines;

/// The file's name in the output folder.
pub const FILE: &str = "row_losses.jsonl";

/// The rows of one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRows {
    /// Optimizer steps done, this one included.
    pub step: usize,
    /// The rows, in the order of the micro-batches.
    pub rows: Vec<String>,
    /// Mean loss of each row's learnt tokens before the update; null where it learns nothing or is not finite.
    pub losses: Vec<Option<f32>>,
    /// Learnt tokens of each row.
    pub supervised_tokens: Vec<usize>,
}

impl StepRows {
    /// The mean loss of all learnt tokens of the step; not a number when that of a row is not finite.
    pub fn loss(&self) -> f64 {
        let rows = self.losses.iter().zip(&self.supervised_tokens);
        let sum: f64 = rows
            .filter(|(_, tokens)| **tokens > 0)
            .map(|(loss, &tokens)| loss.map_or(f64::NAN, f64::from) * tokens as f64)
            .sum();
        sum / self.supervised_tokens.iter().sum::<usize>().max(1) as f64
    }

    /// The rows with the highest losses first; those that learn nothing last.
    pub fn worst_first(&self) -> Vec<(&str, Option<f32>, usize)> {
        let rows = self.rows.iter().map(String::as_str);
        let losses = self.losses.iter().copied();
        let tokens = self.supervised_tokens.iter().copied();
        let mut all: Vec<_> = rows
            .zip(losses)
            .zip(tokens)
            .map(|((r, l), t)| (r, l, t))
            .collect();
        let weight = |loss: Option<f32>| loss.unwrap_or(f32::NEG_INFINITY);
        all.sort_by(|a, b| weight(b.1).total_cmp(&weight(a.1)));
        all
    }
}

/// All whole lines of the file; none where it is not there.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<StepRows>> {
    let mut steps = Vec::new();
    if path.exists() {
        for line in read_lines(path)? {
            if let Ok(step) = serde_json::from_str(&line?.1) {
                steps.push(step);
            }
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_with_a_row_that_is_not_finite_has_no_loss() {
        let step = |losses: [Option<f32>; 3]| StepRows {
            losses: losses.to_vec(),
            supervised_tokens: vec![3, 0, 1],
            ..StepRows::default()
        };
        // A row without learnt tokens has none either, and does not count.
        assert_eq!(step([Some(1.0), None, Some(3.0)]).loss(), 1.5);
        assert!(step([Some(1.0), None, None]).loss().is_nan());
    }
}
