//! `metrics.jsonl`: one line for each logged step, and never two for the same one, however often the run was resumed.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sysgen_core::files::write_atomically;
use sysgen_core::jsonl::read_lines;

/// One line. Names follow `transformers` and TRL; a line of step 0 has only the loss before training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Optimizer steps done.
    pub step: usize,
    /// Passes over the data done.
    pub epoch: f64,
    /// Mean loss of the step's supervised tokens, before its update; null when it was not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Global gradient norm before clipping; absent when it was not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens seen since the start of the run, without padding.
    pub num_tokens: u64,
    /// Tokens learnt in this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised_tokens: Option<usize>,
    /// Learnt tokens of this step by all of its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised_share: Option<f64>,
    /// Tokens of this step by its seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Tokens learnt in this step by its seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervised_tokens_per_second: Option<f64>,
    /// Seconds spent in steps since the start of the run.
    pub seconds: f64,
    /// Mean loss of the held-out rows after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Share of the fixed system messages that the model obeyed after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obedience: Option<f64>,
    /// Set when the student wrote the answers of this step itself; its loss is then the distance from the teacher alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_policy: Option<bool>,
    /// Set when the loss is far above those before it: the rows of the step with the highest losses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spike_rows: Option<Vec<String>>,
    /// Set when the step was skipped: the rows in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped_rows: Option<Vec<String>>,
}

/// What the lines of every file of steps have.
#[derive(Deserialize)]
struct Numbered {
    step: usize,
}

/// Drops lines after `step` (all of them for None), and whatever an interrupted write left at the end of the file.
///
/// # Errors
/// When the file is there but cannot be read or replaced.
pub fn keep_until(path: &Path, step: Option<usize>) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut kept = Vec::new();
    for line in read_lines(path)? {
        let (_, text) = line?;
        if serde_json::from_str::<Numbered>(&text).is_ok_and(|line| Some(line.step) <= step) {
            kept.push(text);
        }
    }
    write_atomically(path, |file| {
        kept.iter().try_for_each(|line| writeln!(file, "{line}"))
    })
    .with_context(|| format!("rewriting {}", path.display()))
}

/// All whole lines of a metrics file.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for line in read_lines(path)? {
        if let Ok(line) = serde_json::from_str(&line?.1) {
            lines.push(line);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_after_the_checkpoint_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lines: Vec<String> = (0..6)
            .map(|step| {
                serde_json::to_string(&Line {
                    step,
                    ..Line::default()
                })
                .unwrap()
            })
            .collect();
        std::fs::write(&path, format!("{}\n{{\"step\":6,\"ep", lines.join("\n"))).unwrap();
        keep_until(&path, Some(3)).unwrap();
        let steps: Vec<usize> = read(&path).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [0, 1, 2, 3]);
        keep_until(&dir.path().join("absent.jsonl"), Some(3)).unwrap();
        keep_until(&path, None).unwrap();
        assert!(read(&path).unwrap().is_empty());
    }
}
