//! `manifest.json`: what became of every row, as in the paper's Table 2, and what the data set depends
//! on. It is written last, so a data set with a manifest is complete. Speed is not in it: the same run
//! gives the same bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sysgen_core::config::{Deduplicate, Variant};
use sysgen_core::files::write_atomically;

use crate::input::{Places, ReadCounts};
use crate::log::{Key, Phase};
use crate::steps::UNANSWERED;
use crate::tag::{RejectReason, Tag};
use crate::verify::Label;

/// How many rows entered a phase, why some left, and how many went on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseCounts {
    /// Rows that entered.
    pub rows: usize,
    /// Rows that were left out, by reason.
    pub dropped: BTreeMap<String, usize>,
    /// Rows that went on.
    pub left: usize,
}

/// What became of every row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Funnel {
    /// From the files to rows.
    pub read: ReadCounts,
    /// Phases 1 and 2.
    pub draft: PhaseCounts,
    /// Phase 3.
    pub verify: PhaseCounts,
    /// Phase 4.
    pub respond: PhaseCounts,
    /// Rows in the data set.
    pub kept: usize,
    /// Of the rows that entered the phases.
    pub kept_percent: f64,
}

/// How one tag fared over all rows of the data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagCounts {
    /// Rows whose draft has it.
    pub drafted: usize,
    /// The verifier's labels on them.
    pub labels: BTreeMap<Label, usize>,
    /// Rows whose system message has it.
    pub kept: usize,
}

/// The choice of rows, phrases and shape, which no answer in the log depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Selection {
    pub(crate) variant: Variant,
    pub(crate) common_system_message: String,
    pub(crate) limit: usize,
    pub(crate) shuffle: bool,
    /// `data.deduplicate`, with its threshold.
    pub(crate) deduplicate: Deduplicate,
    pub(crate) minhash_threshold: f64,
    /// Words of a sequence, and the hashes of the benchmarks' files.
    pub(crate) decontaminate_ngram: usize,
    pub(crate) decontaminate: Vec<String>,
    pub(crate) seed: u64,
    #[serde(default)]
    pub(crate) verify_threshold: f64,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) selection: Selection,
    /// Everything the texts depend on.
    pub(crate) key: Key,
    pub(crate) funnel: Funnel,
    /// Pieces of drafts that are no phrases.
    pub(crate) rejected_pieces: BTreeMap<RejectReason, usize>,
    pub(crate) tags: BTreeMap<Tag, TagCounts>,
    /// Tokens read and written for the rows of this selection, by phase.
    pub(crate) tokens: BTreeMap<Phase, TokenCounts>,
    /// blake3 of `dataset.jsonl`.
    pub(crate) dataset_hash: String,
}

/// Tokens read and written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Prompt tokens.
    pub read: usize,
    /// Reply tokens.
    pub written: usize,
}

impl Manifest {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("writing the manifest")?;
        text.push('\n');
        write_atomically(path, |file| file.write_all(text.as_bytes()))
    }

    /// The manifest at `path`; none when it is absent or of another version.
    pub(crate) fn read(path: &Path) -> Option<Manifest> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }
}

impl Funnel {
    /// Counts one row that was left out.
    pub(crate) fn drop_row(&mut self, phase: Phase, reason: &str) {
        let counts = match phase {
            Phase::Draft => &mut self.draft,
            Phase::Verify => &mut self.verify,
            Phase::Respond => &mut self.respond,
        };
        *counts.dropped.entry(reason.to_string()).or_default() += 1;
    }

    /// Rows that were left out because an endpoint did not answer them.
    pub(crate) fn unanswered(&self) -> usize {
        [&self.draft, &self.verify, &self.respond]
            .iter()
            .filter_map(|phase| phase.dropped.get(UNANSWERED))
            .sum()
    }

    /// Fills in the rows that entered and left each phase.
    pub(crate) fn add_up(&mut self) {
        let mut rows = self.read.rows;
        for phase in [&mut self.draft, &mut self.verify, &mut self.respond] {
            phase.rows = rows;
            rows -= phase.dropped.values().sum::<usize>();
            phase.left = rows;
        }
        self.kept = rows;
        self.kept_percent = percent(rows, self.read.rows);
    }
}

/// Two decimals, as the paper's table has them.
pub(crate) fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 * 10_000.0 / whole as f64).round() / 100.0
    }
}

impl fmt::Display for Funnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WIDTH: usize = 46;
        let read = &self.read;
        for file in &read.files {
            writeln!(f, "  {file}")?;
        }
        let mut line = |name: &str, rows: usize, places: Option<&Places>| {
            let places = places.map_or(String::new(), |places| format!("  {places}"));
            writeln!(f, "  {name:<WIDTH$} {rows:>9}{places}")
        };
        line("rows in the files", read.found, None)?;
        for (reason, places) in &read.unreadable {
            line(&format!("  - {reason}"), places.count, Some(places))?;
        }
        if read.with_system > 0 {
            line("  - has a system message", read.with_system, None)?;
        }
        for (name, places) in [
            ("  - shares text with a benchmark", &read.contaminated),
            ("  - repeats an earlier row", &read.duplicates),
            ("  - nearly repeats an earlier row", &read.near_duplicates),
        ] {
            if places.count > 0 {
                line(name, places.count, Some(places))?;
            }
        }
        if read.beyond_limit > 0 {
            line("  - beyond data.limit", read.beyond_limit, None)?;
        }
        if read.rows != read.used {
            line("conversations, a row for each answer", read.used, None)?;
        }
        line("rows for the phases", read.rows, None)?;
        for (name, phase) in [
            ("draft, filter", &self.draft),
            ("verify", &self.verify),
            ("respond", &self.respond),
        ] {
            for (reason, rows) in &phase.dropped {
                line(&format!("  - {name}: {reason}"), *rows, None)?;
            }
            line(&format!("after {name}"), phase.left, None)?;
        }
        write!(
            f,
            "  {:<WIDTH$} {:>9}  ({:.2} %)",
            "kept", self.kept, self.kept_percent
        )
    }
}
