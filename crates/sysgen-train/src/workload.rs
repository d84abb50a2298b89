//! What `bench` trains on: token ids from a file that PyTorch is measured on too, or random ones.

use std::path::Path;

use anyhow::{Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sysgen_model::read_ids;
use sysgen_train::batch::Batch;
use sysgen_train::example::Example;

/// The tensor of the inputs file, `[batches, batch, seq]`.
const TENSOR: &str = "train.input_ids";
/// Different batches where the ids are random.
const RANDOM_BATCHES: usize = 4;
/// Start of the random ids.
const SEED: u64 = 99;

/// The shape of a step's work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows of a step.
    pub(crate) batch: usize,
    /// Tokens of a row.
    pub(crate) seq: usize,
    /// Parts a step is cut into.
    pub(crate) micro_batches: usize,
    /// Share of each row's tokens that is learnt, at its end.
    pub(crate) supervised_share: f64,
    /// Ids are below it.
    pub(crate) vocab_size: usize,
}

/// The micro-batches of each step; step `s` takes number `s % len`.
pub(crate) fn steps(inputs: Option<&Path>, shape: Shape) -> Result<Vec<Vec<Batch>>> {
    ensure!(
        shape.batch > 0 && shape.seq > 1,
        "--batch must be at least 1 and --seq at least 2: the first token of a row is never learnt"
    );
    ensure!(
        (1..=shape.batch).contains(&shape.micro_batches),
        "--micro-batches {} cannot cut {} rows (--batch); use 1 to {}",
        shape.micro_batches,
        shape.batch,
        shape.batch
    );
    ensure!(
        shape.supervised_share > 0.0 && shape.supervised_share <= 1.0,
        "--supervised-share {} must be above 0 and at most 1",
        shape.supervised_share
    );
    let rows = match inputs {
        Some(path) => from_file(path, shape)?,
        None => random(shape),
    };
    Ok(rows.into_iter().map(|rows| batches(rows, shape)).collect())
}

/// The first rows and tokens of every batch in the file.
fn from_file(path: &Path, shape: Shape) -> Result<Vec<Vec<Vec<u32>>>> {
    let file = read_ids(path, TENSOR)?;
    let (batch, seq) = match file.shape.as_slice() {
        &[batches, batch, seq] if batches > 0 => (batch, seq),
        other => anyhow::bail!(
            "tensor `{TENSOR}` in {} has shape {other:?}; it must be [batches, batch, seq]",
            path.display()
        ),
    };
    ensure!(
        shape.batch <= batch && shape.seq <= seq,
        "tensor `{TENSOR}` in {} has {batch} rows of {seq} tokens; use --batch and --seq up to these",
        path.display()
    );
    if let Some(id) = file.ids.iter().find(|&&id| id as usize >= shape.vocab_size) {
        anyhow::bail!(
            "tensor `{TENSOR}` in {} holds token id {id}, the model's vocab_size is {}",
            path.display(),
            shape.vocab_size
        );
    }
    let batches = file.ids.chunks(batch * seq);
    let rows = |ids: &[u32]| -> Vec<Vec<u32>> {
        let rows = ids.chunks(seq).take(shape.batch);
        rows.map(|row| row[..shape.seq].to_vec()).collect()
    };
    Ok(batches.map(rows).collect())
}

fn random(shape: Shape) -> Vec<Vec<Vec<u32>>> {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut ids = |count: usize| -> Vec<u32> {
        (0..count)
            .map(|_| random.random_range(0..shape.vocab_size as u32))
            .collect()
    };
    (0..RANDOM_BATCHES)
        .map(|_| (0..shape.batch).map(|_| ids(shape.seq)).collect())
        .collect()
}

fn batches(rows: Vec<Vec<u32>>, shape: Shape) -> Vec<Batch> {
    let learnt = ((shape.seq as f64 * shape.supervised_share).round() as usize).max(1);
    let example = |(row, ids): (usize, Vec<u32>)| Example {
        id: format!("row {row}"),
        learn: (0..ids.len()).map(|t| t >= shape.seq - learnt).collect(),
        ids,
        set: 0,
    };
    let examples: Vec<Example> = rows.into_iter().enumerate().map(example).collect();
    let rows: Vec<Vec<usize>> = (0..examples.len()).map(|row| vec![row]).collect();
    let rows_per_part = shape.batch.div_ceil(shape.micro_batches);
    rows.chunks(rows_per_part)
        .map(|rows| Batch::new(&examples, rows, 0))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        batch: 3,
        seq: 8,
        micro_batches: 1,
        supervised_share: 1.0,
        vocab_size: 50,
    };

    #[test]
    fn everything_but_a_rows_first_token_is_learnt() {
        let steps = steps(None, SHAPE).unwrap();
        assert_eq!(steps.len(), RANDOM_BATCHES);
        assert_eq!(steps[0][0].targets.len(), 3 * 7);
        assert_ne!(steps[0][0].tokens.ids, steps[1][0].tokens.ids);
    }

    #[test]
    fn a_share_is_the_end_of_each_row() {
        let shape = Shape {
            supervised_share: 0.25,
            micro_batches: 2,
            ..SHAPE
        };
        let step = &steps(None, shape).unwrap()[0];
        let rows: Vec<usize> = step.iter().map(|part| part.tokens.batch).collect();
        assert_eq!(rows, [2, 1]);
        assert_eq!(step[0].predict_at, [5, 6, 13, 14]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        for (shape, flag) in [
            (Shape { seq: 1, ..SHAPE }, "--seq"),
            (
                Shape {
                    micro_batches: 4,
                    ..SHAPE
                },
                "--micro-batches",
            ),
            (
                Shape {
                    supervised_share: 0.0,
                    ..SHAPE
                },
                "--supervised-share",
            ),
        ] {
            let message = steps(None, shape).unwrap_err().to_string();
            assert!(message.contains(flag), "{message}");
        }
    }
}
