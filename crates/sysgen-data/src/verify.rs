//! Phase 3: does each tag fit its phrases? The same model answers Good, Bad or None per tag, either in
//! eight written lines (paper Table 13) or by the probability of the three labels.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sysgen_core::message::Message;

use crate::generator::{LabelStep, Scores};
use crate::prompt::PromptFile;
use crate::tag::{Phrase, Tag, render};

const BUILT_IN: &str = include_str!("prompts/verify.txt");

/// The verifier's judgement of one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Label {
    /// The tag is there and fits.
    Good,
    /// The tag is there and does not fit.
    Bad,
    /// The tag is not there.
    None,
    /// The verifier wrote no readable line for it; its phrases are kept.
    Unread,
}

impl Label {
    /// The name in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Label::Good => "Good",
            Label::Bad => "Bad",
            Label::None => "None",
            Label::Unread => "Unread",
        }
    }
}

/// What the verifier can say, in the order its probabilities are stored.
const LABELS: [Label; 3] = [Label::Good, Label::Bad, Label::None];

/// The judgement of one tag and how clear it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The best label.
    pub label: Label,
    /// log P(Good) − log P(best other label), in nats; only when labels were scored.
    pub margin: Option<f32>,
}

/// The verify prompt: the file at `path`, or the built-in one when `path` is empty. Places:
/// `{filtered}` is the outcome of phase 2 with its tags, `{annotated}` the draft as it was written.
pub(crate) fn prompt_file(path: &Path) -> Result<PromptFile> {
    PromptFile::load(
        path,
        BUILT_IN,
        &["{filtered}", "{annotated}"],
        "generate.verify_prompt",
    )
}

/// The prompt for one draft. `question` and `answer` may be used by prompts of one's own.
pub(crate) fn prompt(
    file: &PromptFile,
    phrases: &[Phrase],
    annotated: &str,
    question: &str,
    answer: &str,
) -> Vec<Message> {
    file.fill(&[
        ("{filtered}", &render(phrases)),
        ("{annotated}", annotated.trim()),
        ("{question}", question),
        ("{answer}", answer),
    ])
}

/// The eight lines as forced text with a choice at the end of each.
pub(crate) fn label_steps() -> Vec<LabelStep> {
    let labels = [" Good", " Bad", " None"].map(str::to_string);
    let line = |i: usize, tag: &Tag| format!("{}<<{tag}>>:", if i == 0 { "" } else { "\n" });
    Tag::IN_PROMPTS
        .iter()
        .enumerate()
        .map(|(i, tag)| LabelStep {
            forced: line(i, tag),
            labels: labels.to_vec(),
        })
        .collect()
}

/// Verdicts from the eight scores of `label_steps`.
pub(crate) fn from_scores(scores: &[Scores]) -> BTreeMap<Tag, Verdict> {
    Tag::IN_PROMPTS
        .iter()
        .zip(scores)
        .map(|(tag, scores)| {
            let [good, bad, none] = scores.log_probabilities[..] else {
                unreachable!("label_steps offers three labels")
            };
            (
                *tag,
                Verdict {
                    label: LABELS[scores.best],
                    margin: Some(good - bad.max(none)),
                },
            )
        })
        .collect()
}

/// Verdicts from eight written lines; a tag without a readable line is `Unread`, and of two lines the
/// first counts.
pub(crate) fn from_text(text: &str) -> BTreeMap<Tag, Verdict> {
    let mut verdicts = BTreeMap::new();
    for line in text.lines() {
        if let Some((tag, label)) = judgement_in(line) {
            verdicts.entry(tag).or_insert(Verdict {
                label,
                margin: None,
            });
        }
    }
    for tag in Tag::CANONICAL {
        verdicts.entry(tag).or_insert(Verdict {
            label: Label::Unread,
            margin: None,
        });
    }
    verdicts
}

/// The tag at the beginning of a line and the word after its colon: `<<Role>>: Bad (gives the answer away)`.
fn judgement_in(line: &str) -> Option<(Tag, Label)> {
    let (name, judged) = line.split_once(':')?;
    let name = name.trim_matches(|c: char| !c.is_alphabetic());
    let tag = Tag::CANONICAL
        .into_iter()
        .find(|tag| tag.name().eq_ignore_ascii_case(name))?;
    let judged = judged.trim_start_matches(|c: char| !c.is_alphabetic());
    let end = judged
        .find(|c: char| !c.is_alphabetic())
        .unwrap_or(judged.len());
    let (word, rest) = judged.split_at(end);
    // `Good|Bad|None` is the format written again.
    let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || "*_`".contains(c));
    if rest.starts_with(['|', '/']) {
        return None;
    }
    let label = LABELS
        .into_iter()
        .find(|known| known.name().eq_ignore_ascii_case(word))?;
    Some((tag, label))
}

/// Whether the phrases of a tag stay. `threshold` is the least margin, in nats; written labels have no
/// margin and go by the label.
pub(crate) fn keeps(verdict: &Verdict, threshold: f64) -> bool {
    match (verdict.margin, verdict.label) {
        (Some(margin), _) => f64::from(margin) >= threshold,
        (None, Label::Good | Label::Unread) => true,
        (None, Label::Bad | Label::None) => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_example_is_readable_in_the_papers_order() {
        let shown =
            &BUILT_IN[BUILT_IN.find("## [Example").unwrap()..BUILT_IN.find("Write these").unwrap()];
        let order: Vec<&str> = shown
            .lines()
            .filter_map(|line| line.strip_prefix("<<")?.split_once(">>"))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            order,
            [
                "Task",
                "Tool",
                "Style",
                "Action",
                "Content",
                "Background",
                "Role",
                "Format"
            ]
        );
        let verdicts = from_text(shown);
        assert_eq!(verdicts[&Tag::Action].label, Label::Bad);
        assert!(
            verdicts
                .values()
                .all(|verdict| verdict.label != Label::Unread)
        );
    }

    #[test]
    fn forced_lines_and_labels_are_the_written_format() {
        let written: String = label_steps()
            .iter()
            .map(|step| format!("{}{}", step.forced, step.labels[0]))
            .collect();
        assert!(written.starts_with("<<Task>>: Good\n<<Tool>>: Good\n"));
        assert!(
            from_text(&written)
                .values()
                .all(|verdict| verdict.label == Label::Good)
        );
    }

    #[test]
    fn an_unreadable_line_keeps_its_phrases() {
        let verdicts =
            from_text("<<Task>>: Good\n<<Style>>: perhaps\n**Role**: bad.\n<<Task>>: Bad");
        assert_eq!(verdicts[&Tag::Task].label, Label::Good);
        assert_eq!(verdicts[&Tag::Style].label, Label::Unread);
        assert_eq!(verdicts[&Tag::Role].label, Label::Bad);
        assert!(keeps(&verdicts[&Tag::Style], 0.0) && !keeps(&verdicts[&Tag::Role], 0.0));
    }

    #[test]
    fn a_reason_after_the_label_leaves_it_readable() {
        for (line, label) in [
            ("<<Content>>: Bad (gives the answer away)", Label::Bad),
            ("<<Content>>: Bad: it gives the answer away", Label::Bad),
            (
                "- **Content**: **None**, there is no such phrase",
                Label::None,
            ),
            ("3. <<Content>>: Good - fits", Label::Good),
            ("<<Content>>: Good|Bad|None", Label::Unread),
            ("<<Content>>: **Good** / Bad", Label::Unread),
            ("<<Content>>: Goodness", Label::Unread),
            ("<<Content>>: not Bad", Label::Unread),
            ("The <<Content>> is: Bad", Label::Unread),
        ] {
            assert_eq!(from_text(line)[&Tag::Content].label, label, "{line}");
        }
    }

    #[test]
    fn the_threshold_moves_the_margin() {
        let verdict = Verdict {
            label: Label::Good,
            margin: Some(0.5),
        };
        assert!(keeps(&verdict, 0.5) && !keeps(&verdict, 0.6));
        assert!(keeps(
            &Verdict {
                label: Label::Bad,
                margin: Some(-0.5)
            },
            -1.0
        ));
    }
}
