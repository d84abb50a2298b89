//! `[distill]`: a teacher's next-token probabilities beside the data. Names follow TRL's GKD where it has them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[distill]`: present, `[train]` also learns from a teacher's probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillSection {
    /// Folder of the teacher, a Hugging Face model that is run beside the student; empty for the probabilities stored with
    /// the rows (`sysgen.teacher`); default empty.
    pub teacher: PathBuf,
    /// The distance between the two sides' probabilities; default `forward_kl`.
    pub divergence: DivergenceKind,
    /// The teacher's share of the mixture of `jsd`, between 0 and 1; default 0.5.
    pub beta: f64,
    /// Both sides' logits are divided by it; default 1.
    pub temperature: f64,
    /// Share of the distance in the loss, above 0 and at most 1; the rest is the cross-entropy of the data; default 0.5.
    pub alpha: f64,
    /// What happens when the two tokenizers are not the same; default `refuse`.
    pub cross_tokenizer: CrossTokenizer,
    /// Share of the steps whose answers the student writes itself, with the weights it has by then, from 0 to 1 (GKD's
    /// lambda); there the loss is the distance from the teacher alone. Default 0.
    pub on_policy: f64,
    /// Longest answer the student writes, in tokens; default 128.
    pub max_new_tokens: usize,
    /// Temperature the student writes at, 0 for the most likely tokens; default 0.9.
    pub on_policy_temperature: f64,
}

impl Default for DistillSection {
    fn default() -> DistillSection {
        DistillSection {
            teacher: PathBuf::new(),
            divergence: DivergenceKind::ForwardKl,
            beta: 0.5,
            temperature: 1.0,
            alpha: 0.5,
            cross_tokenizer: CrossTokenizer::Refuse,
            on_policy: 0.0,
            max_new_tokens: 128,
            on_policy_temperature: 0.9,
        }
    }
}

/// The distance between the teacher's and the student's probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceKind {
    /// KL(teacher ‖ student): cover what the teacher says.
    #[default]
    ForwardKl,
    /// KL(student ‖ teacher): say nothing the teacher would not.
    ReverseKl,
    /// The generalised Jensen-Shannon divergence, between the two.
    Jsd,
}

/// What happens when teacher and student have different tokenizers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrossTokenizer {
    /// An error that says how they differ.
    #[default]
    Refuse,
    /// Sorted probabilities are compared over spans of text that are whole tokens on both sides (ULD): a span's are those of
    /// its last token, times the probabilities of the tokens before it.
    Uld,
}
