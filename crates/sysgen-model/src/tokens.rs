//! A batch of token ids with what the decoder needs to know about each: its position and its segment.

/// Rows of tokens on the host, each list row-major `[batch, time]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Rows.
    pub batch: usize,
    /// Tokens per row, padding included.
    pub time: usize,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Positions for the rotary embedding; they restart in every segment.
    pub positions: Vec<u32>,
    /// Tokens see earlier tokens of the same segment of the same row only; 0 is padding, which nobody sees.
    pub segments: Vec<u32>,
}

impl Tokens {
    /// Rows that each hold several sequences one after the other, padded on the right to the longest row.
    pub fn packed(rows: &[Vec<&[u32]>], pad_id: u32) -> Tokens {
        let time = rows
            .iter()
            .map(|row| row.iter().map(|sequence| sequence.len()).sum())
            .max()
            .unwrap_or(0);
        let mut tokens = Tokens {
            batch: rows.len(),
            time,
            ids: Vec::new(),
            positions: Vec::new(),
            segments: Vec::new(),
        };
        for (row, sequences) in rows.iter().enumerate() {
            for (segment, sequence) in (1..).zip(sequences) {
                tokens.ids.extend_from_slice(sequence);
                tokens.positions.extend((0..).take(sequence.len()));
                tokens
                    .segments
                    .extend(std::iter::repeat_n(segment, sequence.len()));
            }
            let end = (row + 1) * time;
            tokens.ids.resize(end, pad_id);
            tokens.positions.resize(end, 0);
            tokens.segments.resize(end, 0);
        }
        tokens
    }

    /// One sequence per row, padded on the right to the longest.
    pub fn padded(sequences: &[&[u32]], pad_id: u32) -> Tokens {
        let rows: Vec<Vec<&[u32]>> = sequences.iter().map(|sequence| vec![*sequence]).collect();
        Tokens::packed(&rows, pad_id)
    }

    /// # Panics
    /// A list has another length than `batch * time`, or an id is not below `vocab_size`: bugs of the caller.
    pub(crate) fn assert_valid(&self, vocab_size: usize) {
        let count = self.batch * self.time;
        assert!(count > 0, "a batch without tokens");
        for (list, name) in [
            (&self.ids, "ids"),
            (&self.positions, "positions"),
            (&self.segments, "segments"),
        ] {
            assert_eq!(
                list.len(),
                count,
                "{name}: expected batch {} x time {}",
                self.batch,
                self.time
            );
        }
        assert_ids(&self.ids, vocab_size);
    }

    /// For each token, the length of the text it belongs to: its segment's highest position + 1.
    pub(crate) fn text_lengths(&self) -> Vec<usize> {
        let mut lengths = Vec::with_capacity(self.ids.len());
        for (segments, positions) in self
            .segments
            .chunks(self.time)
            .zip(self.positions.chunks(self.time))
        {
            for run in segments.chunk_by(|a, b| a == b) {
                let from = lengths.len() % self.time;
                let last = positions[from..from + run.len()]
                    .iter()
                    .max()
                    .map_or(0, |last| *last as usize + 1);
                lengths.extend(std::iter::repeat_n(last, run.len()));
            }
        }
        lengths
    }
}

/// # Panics
/// An id at or above `vocab_size`; the embedding table has no row for it.
pub(crate) fn assert_ids(ids: &[u32], vocab_size: usize) {
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        panic!("token id {id} is not below the model's vocab_size {vocab_size}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_restarts_positions_and_pads_with_segment_zero() {
        let tokens = Tokens::packed(&[vec![&[5, 6, 7], &[8, 9]], vec![&[4]]], 0);
        assert_eq!((tokens.batch, tokens.time), (2, 5));
        assert_eq!(tokens.ids, [5, 6, 7, 8, 9, 4, 0, 0, 0, 0]);
        assert_eq!(tokens.positions, [0, 1, 2, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(tokens.segments, [1, 1, 1, 2, 2, 1, 0, 0, 0, 0]);
        assert_eq!(tokens.text_lengths(), [3, 3, 3, 2, 2, 1, 1, 1, 1, 1]);
    }
}
