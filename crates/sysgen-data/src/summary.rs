//! What a run has to show for itself.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::manifest::{Funnel, TagCounts};
use crate::tag::Tag;
use crate::verify::Label;

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The data set; complete unless `interrupted` or `other_shards`.
    pub dataset: PathBuf,
    /// What became of every row.
    pub funnel: Funnel,
    /// How each tag fared.
    pub tags: BTreeMap<Tag, TagCounts>,
    /// The first rows of the data set.
    pub samples: Vec<Sample>,
    /// The run was asked to stop; running it again goes on.
    pub interrupted: bool,
    /// This shard's rows are answered, others' are not yet: there is no data set so far.
    pub other_shards: bool,
    /// Tokens read and written by this process.
    pub tokens: usize,
    /// Seconds this process generated for.
    pub seconds: f64,
}

/// The funnel and the tags, for a person.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.funnel)?;
        if self.tags.is_empty() {
            return Ok(());
        }
        let of = |label| move |counts: &TagCounts| counts.labels.get(&label).copied().unwrap_or(0);
        let columns = ["rows with the tag", "drafted", "bad", "none", "kept"];
        write!(f, "\n\n  {:<18}", columns[0])?;
        for column in &columns[1..] {
            write!(f, " {column:>8}")?;
        }
        for (tag, counts) in &self.tags {
            let (bad, none) = (of(Label::Bad)(counts), of(Label::None)(counts));
            write!(
                f,
                "\n  {:<18} {:>8} {bad:>8} {none:>8} {:>8}",
                tag.name(),
                counts.drafted,
                counts.kept
            )?;
        }
        Ok(())
    }
}

/// One row to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The row's id.
    pub id: String,
    /// The first question.
    pub question: String,
    /// The system message, if any.
    pub system: Option<String>,
    /// The source data's answer to it.
    pub original_answer: String,
    /// The answer in the data set.
    pub answer: String,
}
