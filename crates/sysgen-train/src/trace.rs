//! `sysgen-train trace`: from a step to its rows, and from a row to its steps.

use anyhow::{Result, ensure};
use clap::Args;
use sysgen_core::command_line::RunArguments;
use sysgen_core::{RunConfig, tell};
use sysgen_train::row_losses::{self, StepRows};

#[derive(Args)]
#[group(id = "what", required = true, multiple = false, args = ["step", "row"])]
pub(crate) struct TraceArguments {
    #[command(flatten)]
    pub(crate) run: RunArguments,
    /// Shows the rows of this optimizer step, the highest loss first.
    #[arg(long, value_name = "N")]
    step: Option<usize>,
    /// Shows the steps that trained on this row, and its loss in each.
    #[arg(long, value_name = "ID")]
    row: Option<String>,
}

/// Looks it up in the run's `row_losses.jsonl`.
pub(crate) fn trace(config: &RunConfig, arguments: &TraceArguments) -> Result<()> {
    let path = config.output_dir.join(row_losses::FILE);
    let steps = row_losses::read(&path)?;
    ensure!(
        !steps.is_empty(),
        "{} has no steps yet; train first",
        path.display()
    );
    if let Some(number) = arguments.step {
        let last = steps.last().map_or(0, |step| step.step);
        let found = steps.iter().find(|step| step.step == number);
        let Some(step) = found else {
            anyhow::bail!(
                "step {number} is not in {}, which ends at step {last}",
                path.display()
            );
        };
        tell(of_step(step));
    } else if let Some(row) = &arguments.row {
        let lines = of_row(&steps, row);
        ensure!(
            lines.len() > 1,
            "no step in {} trained on row {row}; it may be held out, too long, or not met yet",
            path.display()
        );
        tell(lines.join("\n"));
    }
    Ok(())
}

fn of_step(step: &StepRows) -> String {
    let mut lines = vec![format!(
        "step {}: {} rows, loss {}\n{:>10}  {:>7}  row",
        step.step,
        step.rows.len(),
        match step.loss() {
            loss if loss.is_finite() => format!("{loss:.4}"),
            _ => "not finite".to_string(),
        },
        "loss",
        "learnt"
    )];
    for (row, loss, tokens) in step.worst_first() {
        lines.push(format!("{:>10}  {tokens:>7}  {row}", number(loss, tokens)));
    }
    lines.join("\n")
}

fn of_row(steps: &[StepRows], row: &str) -> Vec<String> {
    let mut lines = vec![format!("{:>8}  {:>10}  learnt", "step", "loss")];
    for step in steps {
        for (place, _) in step.rows.iter().enumerate().filter(|(_, id)| *id == row) {
            let learnt = step.supervised_tokens.get(place).copied().unwrap_or(0);
            let loss = number(step.losses.get(place).copied().flatten(), learnt);
            lines.push(format!("{:>8}  {loss:>10}  {learnt}", step.step));
        }
    }
    lines
}

fn number(loss: Option<f32>, learnt: usize) -> String {
    match loss {
        Some(loss) => format!("{loss:.4}"),
        None if learnt == 0 => "none".to_string(),
        None => "not finite".to_string(),
    }
}
