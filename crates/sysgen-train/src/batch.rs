//! Packed rows become one micro-batch: tokens, and the targets at the positions that predict them.
//!
//! The shift by one (position `t − 1` predicts token `t`) happens here and nowhere else.

use sysgen_model::Tokens;

use crate::example::Example;

/// What one forward pass sees, and what it is asked.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, time]`, padded on the right with segment 0; positions start anew in every segment.
    pub tokens: Tokens,
    /// Flat positions in `[batch · time]` whose next token is learnt, ascending.
    pub predict_at: Vec<u32>,
    /// The token learnt at each of them.
    pub targets: Vec<u32>,
    /// Tokens without padding.
    pub token_count: usize,
    /// The rows in it, by name.
    pub row_ids: Vec<String>,
    /// How many of the targets belong to each of them.
    pub row_targets: Vec<usize>,
    /// The answers are the student's own words: there is nothing to learn from them but what a teacher thinks of them.
    pub on_policy: bool,
}

impl Batch {
    /// Lays `rows` (indices into `examples`) out as one micro-batch, as wide as its longest row.
    pub fn new(examples: &[Example], rows: &[Vec<usize>], pad_id: u32) -> Batch {
        let tokens_in =
            |row: &Vec<usize>| row.iter().map(|&e| examples[e].ids.len()).sum::<usize>();
        let time = rows.iter().map(tokens_in).max().unwrap_or(0);
        let cells = rows.len() * time;
        let mut tokens = Tokens {
            batch: rows.len(),
            time,
            ids: vec![pad_id; cells],
            positions: vec![0; cells],
            segments: vec![0; cells],
        };
        let (mut predict_at, mut targets, mut row_ids) = (Vec::new(), Vec::new(), Vec::new());
        let mut token_count = 0;
        let mut row_targets = Vec::new();
        for (row, members) in rows.iter().enumerate() {
            let mut cell = row * time;
            for (segment, &member) in members.iter().enumerate() {
                let example = &examples[member];
                for (position, (&id, &learn)) in example.ids.iter().zip(&example.learn).enumerate()
                {
                    tokens.ids[cell] = id;
                    tokens.positions[cell] = position as u32;
                    tokens.segments[cell] = segment as u32 + 1;
                    if learn && position > 0 {
                        predict_at.push(cell as u32 - 1);
                        targets.push(id);
                    }
                    cell += 1;
                }
                row_targets.push(targets.len() - row_targets.iter().sum::<usize>());
                token_count += example.ids.len();
                row_ids.push(example.id.clone());
            }
        }
        Batch {
            tokens,
            predict_at,
            targets,
            token_count,
            row_ids,
            row_targets,
            on_policy: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(id: &str, ids: &[u32], learnt: &[usize]) -> Example {
        let learn = (0..ids.len()).map(|t| learnt.contains(&t)).collect();
        Example {
            id: id.into(),
            ids: ids.to_vec(),
            learn,
            set: 0,
        }
    }

    #[test]
    fn position_t_minus_1_predicts_token_t_inside_its_own_segment() {
        let examples = [
            example("a", &[10, 11, 12], &[1, 2]),
            example("b", &[20, 21], &[1]),
            example("c", &[30, 31], &[1]),
        ];
        let batch = Batch::new(&examples, &[vec![0, 1], vec![2]], 9);
        assert_eq!(batch.tokens.ids, [10, 11, 12, 20, 21, 30, 31, 9, 9, 9]);
        assert_eq!(batch.tokens.positions, [0, 1, 2, 0, 1, 0, 1, 0, 0, 0]);
        assert_eq!(batch.tokens.segments, [1, 1, 1, 2, 2, 1, 1, 0, 0, 0]);
        assert_eq!(batch.predict_at, [0, 1, 3, 5]);
        assert_eq!(batch.targets, [11, 12, 21, 31]);
        assert_eq!(batch.token_count, 7);
        assert_eq!(batch.row_ids, ["a", "b", "c"]);
        assert_eq!(batch.row_targets, [2, 1, 1]);
    }

    #[test]
    fn the_first_token_of_a_conversation_is_never_learnt_from_its_neighbour() {
        let examples = [
            example("a", &[10, 11], &[1]),
            example("b", &[20, 21], &[0, 1]),
        ];
        let batch = Batch::new(&examples, &[vec![0, 1]], 0);
        assert_eq!(batch.targets, [11, 21]);
    }

    #[test]
    fn padding_is_never_learnt() {
        let pad_id = 11; // also a token of the text: masking goes by position, not by id
        let examples = [
            example("a", &[10, 11, 11], &[1, 2]),
            example("b", &[20], &[]),
        ];
        let batch = Batch::new(&examples, &[vec![0], vec![1]], pad_id);
        assert_eq!(batch.predict_at, [0, 1]);
        assert_eq!(batch.targets, [11, 11]);
        assert!(
            batch
                .predict_at
                .iter()
                .all(|&at| batch.tokens.segments[at as usize] != 0)
        );
    }
}
