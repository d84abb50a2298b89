//! What a data set looks like, in the shape of the paper's tables (arXiv 2502.11330v2): Table 1 (new
//! answers beside the original ones), 2 (rows after each phase), 6 (tags), 8 (source data) and 9 (what
//! verification removed).
//!
//! The paper names its metrics but neither tools nor options, so its figures cannot be expected again:
//! * ROUGE is `rouge_score`'s F, without its stemmer unless asked for; the paper says no more.
//! * GLEU is given over words and over characters, each as the mean of rows and over the whole corpus;
//!   which of them the paper prints is not said, and its values suggest characters.
//! * BERTScore needs an encoder, which a person names. The paper's values, 81 to 86, are those of `roberta-large`'s 17th layer
//!   without rescaling.
//! * BLEURT is left out: it is a learned model of its own.
//! * Lengths are characters, as the sizes in the paper's Table 8 suggest.
//! * Table 6 counts rows that have a tag, not phrases. The paper's counts are those after phase 4.
//! * Table 8 counts question-answer pairs of the source files where the config names them; with only a
//!   data set at hand, of the rows that were kept.
//! * Table 9 is over the kept rows whose draft has the tag, because only their verdicts are in the data
//!   set. The paper does not say what its percentages are of.

mod answers;
pub mod bert_score;
pub mod gleu;
mod ngrams;
pub mod porter;
pub mod rouge;
mod sources;
mod tables;

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use sysgen_core::RunConfig;

use crate::dataset::Line;
use crate::input::Places;
use crate::manifest::{Funnel, TagCounts, percent};
use crate::open::DataSet;
use crate::tag::Tag;
use crate::verify::Label;

use bert_score::BertScorer;

pub use answers::{AnswerStatistics, GleuStatistics};
pub use sources::SourceStatistics;

/// The tables.
#[derive(Clone, Debug, Serialize)]
pub struct Statistics {
    /// The file.
    pub dataset: String,
    /// Rows in it.
    pub rows: usize,
    /// Lines that could not be read.
    pub damaged: Places,
    /// Table 1; none when no answer was written anew.
    pub answers: Option<AnswerStatistics>,
    /// Table 2; none without a manifest.
    pub funnel: Option<Funnel>,
    /// Table 6, in canonical order; tags that no row has are in it.
    pub tags: BTreeMap<Tag, TagCounts>,
    /// Table 8.
    pub sources: Sources,
    /// Table 9, by source.
    pub removed: BTreeMap<String, BTreeMap<Tag, Removed>>,
}

/// Table 8 and what it is about.
#[derive(Clone, Debug, Serialize)]
pub struct Sources {
    /// `source files` when the config led to them, else `kept rows`.
    pub of: &'static str,
    /// By file name.
    pub by_source: BTreeMap<String, SourceStatistics>,
}

/// What verification removed of one tag in one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Removed {
    /// Kept rows whose draft has the tag.
    pub drafted: usize,
    /// Of these, judged Bad, in percent.
    pub bad_percent: f64,
    /// Of these, judged None, in percent.
    pub none_percent: f64,
}

/// What the tables are made with.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// With it, Table 8 is about the files that it names.
    pub config: Option<&'a RunConfig>,
    /// ROUGE compares stems.
    pub stemmer: bool,
    /// With it, Table 1 has BERTScore.
    pub bert_scorer: Option<&'a BertScorer>,
    /// Pairs of answers that BERTScore is taken of, spread evenly; all without it.
    pub bert_score_pairs: Option<usize>,
}

/// Computes the tables.
///
/// # Errors
/// A data set or source file that cannot be read.
pub fn statistics(data_set: &DataSet, options: Options<'_>) -> Result<Statistics> {
    let mut rows = 0;
    let mut answers = answers::Sums::default();
    let mut kept_rows = sources::Sums::default();
    let mut tags: BTreeMap<Tag, TagCounts> =
        Tag::CANONICAL.map(|tag| (tag, TagCounts::default())).into();
    let mut verdicts: BTreeMap<String, BTreeMap<Tag, TagCounts>> = BTreeMap::new();
    let damaged = data_set.for_each_chunk(|lines| {
        rows += lines.len();
        answers.add(&lines, options.stemmer);
        for line in &lines {
            kept_rows.add_line(line);
            count_tags(line, &mut tags);
            count_tags(
                line,
                verdicts.entry(line.sysgen.source.clone()).or_default(),
            );
        }
        Ok(())
    })?;
    let mut answers = answers.finish();
    if let (Some(answers), Some(scorer)) = (&mut answers, options.bert_scorer) {
        let limit = options.bert_score_pairs;
        answers.bert_score = bert_score::score_data_set(data_set, scorer, answers.pairs, limit)?;
    }
    let sources = match options.config {
        Some(config) => Sources {
            of: "source files",
            by_source: sources::of_files(&config.data)?.finish(),
        },
        None => Sources {
            of: "kept rows",
            by_source: kept_rows.finish(),
        },
    };
    Ok(Statistics {
        dataset: data_set.path.display().to_string(),
        rows,
        damaged,
        answers,
        funnel: data_set
            .manifest
            .as_ref()
            .map(|manifest| manifest.funnel.clone()),
        tags,
        sources,
        removed: verdicts
            .into_iter()
            .map(|(source, tags)| {
                (
                    source,
                    tags.iter()
                        .map(|(tag, counts)| (*tag, removed(counts)))
                        .collect(),
                )
            })
            .collect(),
    })
}

fn count_tags(line: &Line, tags: &mut BTreeMap<Tag, TagCounts>) {
    for verdict in &line.sysgen.tags {
        let counts = tags.entry(verdict.tag).or_default();
        counts.drafted += 1;
        *counts.labels.entry(verdict.label).or_default() += 1;
        counts.kept += usize::from(verdict.kept);
    }
}

fn removed(counts: &TagCounts) -> Removed {
    let share = |label| {
        percent(
            counts.labels.get(&label).copied().unwrap_or(0),
            counts.drafted,
        )
    };
    Removed {
        drafted: counts.drafted,
        bad_percent: share(Label::Bad),
        none_percent: share(Label::None),
    }
}
