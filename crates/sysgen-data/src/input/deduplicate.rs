//! Rows that repeat an earlier row are left out: the same text but for case and white space (`exact`), or nearly the same words
//! (`minhash`: Broder 1997, with the bands of Indyk and Motwani's locality-sensitive hashing). Of rows that
//! are the same the first in source order stays, so the outcome depends on the files alone.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;
use sysgen_core::config::{DataSection, Deduplicate};
use sysgen_core::message::{Message, Role};
use sysgen_core::record::Record;

use crate::input::counts::ReadCounts;
use crate::input::words::{self, mix, sequence, sequences};

/// Words of one shingle.
const SHINGLE: usize = 5;
/// Hash functions of a signature.
const HASHES: usize = 128;
/// Least share of the pairs at the threshold that meet in some band.
const RECALL: f64 = 0.99;
/// Rows whose signatures are made at once.
const CHUNK: usize = 4096;

/// Takes the rows that repeat an earlier one out of `records` and counts them.
pub(crate) fn deduplicate(records: &mut Vec<Record>, data: &DataSection, counts: &mut ReadCounts) {
    if data.deduplicate == Deduplicate::None {
        return;
    }
    let texts: Vec<u64> = records
        .par_iter()
        .map(|record| {
            let texts: Vec<u64> = spoken(record).map(words::text).collect();
            sequence(&texts)
        })
        .collect();
    let mut seen = HashSet::with_capacity(records.len());
    let mut texts = texts.iter();
    records.retain(|record| {
        let is_new = texts.next().is_none_or(|text| seen.insert(*text));
        if !is_new {
            counts.duplicates.add(|| place(record));
        }
        is_new
    });
    if data.deduplicate == Deduplicate::Minhash {
        let repeats = near_duplicates(records, data.minhash_threshold);
        let mut repeats = repeats.iter();
        records.retain(|record| {
            let repeats = repeats.next().is_some_and(|repeats| *repeats);
            if repeats {
                counts.near_duplicates.add(|| place(record));
            }
            !repeats
        });
    }
}

fn place(record: &Record) -> String {
    format!("{}:{}", record.source, record.line)
}

/// What makes two conversations the same: all but the system message, which may be replaced.
fn spoken(record: &Record) -> impl Iterator<Item = &str> {
    let spoken = |message: &&Message| message.role != Role::System;
    record
        .messages
        .iter()
        .filter(spoken)
        .map(|message| message.content.as_str())
}

/// For each record, whether it has a similarity of at least `threshold` to an earlier one that stays.
fn near_duplicates(records: &[Record], threshold: f64) -> Vec<bool> {
    const NONE: u32 = u32::MAX;
    let rows_of_band = rows_of_band(threshold);
    let bands = HASHES / rows_of_band;
    // Which record was last in a band's bucket, and which was there before a record.
    let mut newest: HashMap<u64, u32> = HashMap::new();
    let mut before: Vec<u32> = vec![NONE; records.len() * bands];
    let mut repeats = vec![false; records.len()];
    for start in (0..records.len()).step_by(CHUNK) {
        let end = (start + CHUNK).min(records.len());
        let signed: Vec<(Vec<u64>, Vec<u64>)> = records[start..end]
            .par_iter()
            .map(|record| {
                let shingles = shingles(record);
                let buckets = buckets(&shingles, rows_of_band);
                (shingles, buckets)
            })
            .collect();
        for (i, (own, buckets)) in (start..end).zip(&signed) {
            if own.is_empty() {
                continue;
            }
            let mut compared = HashSet::new();
            'bands: for (band, bucket) in buckets.iter().enumerate() {
                let mut other = newest.get(bucket).copied().unwrap_or(NONE);
                while other != NONE {
                    let j = other as usize;
                    if compared.insert(j) {
                        // Most candidates are found, so it is not worth keeping everyone's shingles.
                        let theirs = if j >= start {
                            similarity(own, &signed[j - start].0)
                        } else {
                            similarity(own, &shingles(&records[j]))
                        };
                        if theirs >= threshold {
                            repeats[i] = true;
                            break 'bands;
                        }
                    }
                    other = before[j * bands + band];
                }
            }
            if !repeats[i] {
                for (band, bucket) in buckets.iter().enumerate() {
                    let earlier = newest.insert(*bucket, i as u32);
                    before[i * bands + band] = earlier.unwrap_or(NONE);
                }
            }
        }
    }
    repeats
}

/// The different shingles of a conversation, in ascending order.
fn shingles(record: &Record) -> Vec<u64> {
    let words: Vec<u64> = spoken(record).flat_map(words::words).collect();
    let mut shingles: Vec<u64> = sequences(&words, SHINGLE).collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The bucket of each band: the hash of `rows_of_band` smallest hashes, and of the band.
fn buckets(shingles: &[u64], rows_of_band: usize) -> Vec<u64> {
    let mut signature = [u32::MAX; HASHES];
    for &shingle in shingles {
        for (i, least) in signature.iter_mut().enumerate() {
            // Multiply-shift: the factors are odd, the upper half is the hash.
            let factor = FACTORS[i];
            let hash = (shingle.wrapping_mul(factor).wrapping_add(factor >> 7) >> 32) as u32;
            *least = hash.min(*least);
        }
    }
    signature
        .chunks_exact(rows_of_band)
        .enumerate()
        .map(|(band, rows)| {
            rows.iter()
                .fold(band as u64, |hash, row| mix(hash ^ u64::from(*row)))
        })
        .collect()
}

static FACTORS: std::sync::LazyLock<[u64; HASHES]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|i| mix(i as u64 + 1) | 1));

/// Jaccard similarity of two ascending lists.
fn similarity(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                both += 1;
                i += 1;
                j += 1;
            }
        }
    }
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

/// The longest bands in which a pair at the threshold still meets with probability `RECALL`: what meets
/// by chance is then compared for nothing as seldom as possible.
fn rows_of_band(threshold: f64) -> usize {
    let meets = |rows: usize| {
        let bands = (HASHES / rows) as i32;
        1.0 - (1.0 - threshold.powi(rows as i32)).powi(bands)
    };
    (1..=HASHES)
        .rev()
        .find(|rows| meets(*rows) >= RECALL)
        .unwrap_or(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(line: usize, question: &str, answer: &str) -> Record {
        Record {
            id: line.to_string(),
            source: "a.jsonl".to_string(),
            line,
            messages: vec![
                Message::system(format!("system {line}")),
                Message::user(question),
                Message::assistant(answer),
            ],
            learnt_answers: vec![true],
        }
    }

    fn left(
        records: &[Record],
        deduplicate: Deduplicate,
        threshold: f64,
    ) -> (Vec<usize>, ReadCounts) {
        let mut records = records.to_vec();
        let mut counts = ReadCounts::default();
        let data = DataSection {
            deduplicate,
            minhash_threshold: threshold,
            ..DataSection::default()
        };
        super::deduplicate(&mut records, &data, &mut counts);
        (records.iter().map(|record| record.line).collect(), counts)
    }

    #[test]
    fn the_same_text_in_another_case_or_spacing_is_a_duplicate() {
        let records = [
            record(1, "What is 3+4?", "7"),
            record(2, "what  is 3+4?\n", "7"),
            record(3, "What is 3-4?", "7"),
            record(4, "What is", "3+4? 7"),
            record(5, "What is 3+4?", "7 "),
        ];
        let (lines, counts) = left(&records, Deduplicate::Exact, 0.8);
        assert_eq!(lines, [1, 3, 4]);
        assert_eq!(counts.duplicates.count, 2);
        assert_eq!(counts.duplicates.first, ["a.jsonl:2", "a.jsonl:5"]);
        assert_eq!(left(&records, Deduplicate::None, 0.8).0.len(), 5);
    }

    /// 60 words, of which the one at `change` is another.
    fn long(change: usize) -> String {
        (0..60)
            .map(|i| {
                if i == change {
                    format!("other{change} ")
                } else {
                    format!("word{i} ")
                }
            })
            .collect()
    }

    /// One word changed in 61 touches five of 57 shingles: similarity 52/62 = 0.839.
    #[test]
    fn nearly_the_same_words_are_near_duplicates_by_the_threshold() {
        let records = [
            record(1, &long(99), "Yes"),
            record(2, &long(30), "Yes"),
            record(3, "Something else, which is of no use to anybody.", "No"),
            record(4, &long(99).to_uppercase(), "Yes."),
        ];
        let (lines, counts) = left(&records, Deduplicate::Minhash, 0.83);
        assert_eq!(lines, [1, 3]);
        assert_eq!(
            (counts.duplicates.count, counts.near_duplicates.count),
            (0, 2)
        );
        assert_eq!(left(&records, Deduplicate::Minhash, 0.85).0, [1, 2, 3]);
    }

    #[test]
    fn texts_without_words_are_no_near_duplicates() {
        let records = [record(1, "?", "!"), record(2, "!", "?")];
        assert_eq!(left(&records, Deduplicate::Minhash, 0.5).0, [1, 2]);
    }

    /// Every pair compared, against what the bands find: 600 rows in families of random closeness.
    #[test]
    fn bands_find_what_comparing_all_pairs_finds() {
        let mut random = 1;
        let mut next = |below: u64| {
            random = mix(random);
            random % below
        };
        let records: Vec<Record> = (0..600)
            .map(|i| {
                let family = next(60);
                let changes: Vec<u64> = (0..next(12)).map(|_| next(40)).collect();
                let text: String = (0..40)
                    .map(|w| {
                        let own = if changes.contains(&w) { next(1000) } else { 0 };
                        format!("f{family}w{w}o{own} ")
                    })
                    .collect();
                record(i + 1, &text, "a")
            })
            .collect();
        for threshold in [0.3, 0.5, 0.8] {
            let mut kept: Vec<Vec<u64>> = Vec::new();
            let mut expected = Vec::new();
            for record in &records {
                let own = shingles(record);
                if kept.iter().all(|other| similarity(&own, other) < threshold) {
                    kept.push(own);
                    expected.push(record.line);
                }
            }
            let (found, _) = left(&records, Deduplicate::Minhash, threshold);
            let differ = found.iter().filter(|line| !expected.contains(line)).count();
            assert!(
                expected.len() < 590 && differ * 100 <= records.len(),
                "{threshold}: {differ}"
            );
        }
    }

    #[test]
    fn bands_are_as_long_as_the_recall_allows() {
        assert_eq!(rows_of_band(0.8), 6);
        assert_eq!(rows_of_band(1.0), HASHES);
        assert!(rows_of_band(0.1) >= 1);
    }
}
