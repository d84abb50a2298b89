//! What was read, counted: per file, by format, and by the reason why a row was left out.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How many places of one reason are named; the rest is only counted.
const PLACES_NAMED: usize = 5;

/// Rows that share a reason for being left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// How many.
    pub count: usize,
    /// The first few, as `<file name>:<line>`.
    pub first: Vec<String>,
}

impl Places {
    pub(crate) fn add(&mut self, place: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < PLACES_NAMED {
            self.first.push(place());
        }
    }

    /// Adds the places of one more file.
    pub(crate) fn extend(&mut self, more: &Places) {
        self.count += more.count;
        let free = PLACES_NAMED.saturating_sub(self.first.len());
        self.first.extend(more.first.iter().take(free).cloned());
    }
}

/// `a.jsonl:1, a.jsonl:7, …`
impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.count > self.first.len() {
            ", …"
        } else {
            ""
        };
        write!(f, "{}{more}", self.first.join(", "))
    }
}

/// What one file held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCounts {
    /// The file's name.
    pub file: String,
    /// Rows in it, readable or not.
    pub found: usize,
    /// Readable rows, by format.
    pub formats: BTreeMap<String, usize>,
    /// Rows that could not be read, by reason.
    pub unreadable: BTreeMap<String, Places>,
}

/// What was read, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCounts {
    /// Each file, in the order of `data.path`.
    #[serde(default)]
    pub files: Vec<FileCounts>,
    /// Rows in the files, readable or not.
    pub found: usize,
    /// Rows that could not be read, by reason.
    pub unreadable: BTreeMap<String, Places>,
    /// Rows left out because they have a system message (`existing_system = "skip"`).
    pub with_system: usize,
    /// Rows that share a word sequence with a prompt of `data.decontaminate`.
    #[serde(default)]
    pub contaminated: Places,
    /// Rows with the text of an earlier one but for case and white space (`deduplicate`).
    #[serde(default)]
    pub duplicates: Places,
    /// Rows with nearly the words of an earlier one (`deduplicate = "minhash"`).
    #[serde(default)]
    pub near_duplicates: Places,
    /// Rows left out by `data.limit`.
    pub beyond_limit: usize,
    /// Conversations whose last question has no answer; the turns before it are used.
    pub last_question_unanswered: usize,
    /// Source rows that are used.
    pub used: usize,
    /// Rows for the phases: more than `used` when conversations are unrolled.
    pub rows: usize,
}

/// `rows.jsonl: 7 rows: 5 question/answer, 1 ShareGPT; 1 left out`
impl fmt::Display for FileCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} rows", self.file, self.found)?;
        let mut formats: Vec<_> = self.formats.iter().collect();
        formats.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        for (i, (format, rows)) in formats.into_iter().enumerate() {
            let before = if i == 0 { ": " } else { ", " };
            write!(f, "{before}{rows} {format}")?;
        }
        let unreadable: usize = self.unreadable.values().map(|places| places.count).sum();
        if unreadable > 0 {
            write!(f, "; {unreadable} left out")?;
        }
        Ok(())
    }
}
