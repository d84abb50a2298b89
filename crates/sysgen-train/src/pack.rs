//! Which examples share a row: best-fit decreasing over whole conversations.
//!
//! Segments keep the conversations of a row apart (see [`crate::batch`]); here only lengths matter.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sysgen_core::hash::seed_from;

/// Lays examples of these lengths into rows of at most `capacity` tokens, best-fit decreasing.
///
/// Longest first, each into the fullest row that still has room; of equally long examples the one that comes first in
/// `order`. Returns the examples of every row. The number of rows depends on the lengths alone, not on `order`.
///
/// # Panics
/// When an example is longer than `capacity`: examples are cut to fit before they get here.
pub fn best_fit(lengths: &[usize], order: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut longest_first = order.to_vec();
    longest_first.sort_by_key(|&example| std::cmp::Reverse(lengths[example])); // stable
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new(); // (tokens left, row)
    for example in longest_first {
        let length = lengths[example];
        assert!(
            length <= capacity,
            "an example of {length} tokens in rows of {capacity}"
        );
        let (left, row) = match room.range((length, 0)..).next().copied() {
            Some(fullest) => {
                room.remove(&fullest);
                fullest
            }
            None => {
                rows.push(Vec::new());
                (capacity, rows.len() - 1)
            }
        };
        rows[row].push(example);
        room.insert((left - length, row));
    }
    rows
}

/// Lays the `members` of an epoch (examples, in any order) into rows, in the order they are trained on: a pure function of
/// the lengths, the seed and the epoch. Without `packing` every member has its own row.
pub fn epoch_rows(
    lengths: &[usize],
    mut members: Vec<usize>,
    capacity: usize,
    packing: bool,
    seed: u64,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let mut random =
        ChaCha8Rng::seed_from_u64(seed_from(&["epoch", &seed.to_string(), &epoch.to_string()]));
    members.shuffle(&mut random);
    let mut rows = if packing {
        best_fit(lengths, &members, capacity)
    } else {
        members.into_iter().map(|example| vec![example]).collect()
    };
    rows.shuffle(&mut random);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(count: usize) -> Vec<usize> {
        (0..count).map(|n| 1 + (n * 7919) % 97).collect()
    }

    #[test]
    fn every_example_is_in_exactly_one_row_and_no_row_overflows() {
        let lengths = lengths(500);
        let order: Vec<usize> = (0..lengths.len()).collect();
        let rows = best_fit(&lengths, &order, 100);
        let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, order);
        assert!(
            rows.iter()
                .all(|row| row.iter().map(|&e| lengths[e]).sum::<usize>() <= 100)
        );
    }

    #[test]
    fn the_fullest_row_with_room_is_taken() {
        // 6 | 5 | 4 fits both, and best beside the 6; 3 then fits beside the 5; 2 closes that row.
        let rows = best_fit(&[3, 5, 2, 6, 4], &[0, 1, 2, 3, 4], 10);
        assert_eq!(rows, vec![vec![3, 4], vec![1, 0, 2]]);
    }

    #[test]
    fn best_fit_wastes_little() {
        let lengths = lengths(500);
        let rows = best_fit(&lengths, &(0..lengths.len()).collect::<Vec<_>>(), 100);
        let tokens: usize = lengths.iter().sum();
        assert!(
            rows.len() <= tokens.div_ceil(100) * 11 / 9 + 1,
            "{} rows for {tokens} tokens",
            rows.len()
        );
    }

    #[test]
    fn the_order_is_a_function_of_seed_and_epoch() {
        let lengths = lengths(100);
        let all: Vec<usize> = (0..100).collect();
        let epoch = |seed, epoch| epoch_rows(&lengths, all.clone(), 100, true, seed, epoch);
        assert_eq!(epoch(1, 2), epoch(1, 2));
        assert_ne!(epoch(1, 2), epoch(1, 3));
        assert_ne!(epoch(1, 2), epoch(2, 2));
        assert_eq!(epoch(1, 2).len(), epoch(1, 3).len());
    }

    #[test]
    fn without_packing_a_row_is_a_conversation() {
        let rows = epoch_rows(&lengths(30), (0..30).collect(), 100, false, 0, 0);
        assert_eq!(rows.len(), 30);
        assert!(rows.iter().all(|row| row.len() == 1));
    }
}
