//! Phase 2: from a draft as the model wrote it to phrases in the canonical order. Pure; the rules
//! about tags are in `tag`.

use sysgen_core::config::TagRules;

use crate::tag::{self, Phrase, Reject};

/// What is left of a draft.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Valid phrases: Role, Content, Task, Action, Style, Background, Tool, Format; phrases of one tag
    /// keep the order they were written in.
    pub phrases: Vec<Phrase>,
    /// What was left out, and why.
    pub rejects: Vec<Reject>,
}

/// Filters one draft.
pub fn filter(draft: &str, rules: TagRules) -> Filtered {
    let (mut phrases, rejects) = tag::parse(draft, rules);
    // `Tag` is declared in the canonical order; the sort is stable.
    phrases.sort_by_key(|phrase| phrase.tag);
    Filtered { phrases, rejects }
}

/// The system message as a model reads it: tags gone, phrases joined by single spaces (paper Fig. 2).
pub fn system_text(phrases: &[Phrase]) -> String {
    phrases
        .iter()
        .map(|phrase| phrase.text.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tag::Tag;

    #[test]
    fn phrases_come_out_in_the_canonical_order_and_equal_tags_keep_theirs() {
        let draft: String = Tag::IN_PROMPTS
            .iter()
            .map(|t| format!("<<{t}>>{t} one<</{t}>> <<{t}>>{t} two<</{t}>>"))
            .collect();
        let texts: Vec<String> = filter(&draft, TagRules::Strict)
            .phrases
            .into_iter()
            .map(|p| p.text)
            .collect();
        let expected: Vec<String> = [
            "Role",
            "Content",
            "Task",
            "Action",
            "Style",
            "Background",
            "Tool",
            "Format",
        ]
        .iter()
        .flat_map(|t| [format!("{t} one"), format!("{t} two")])
        .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn the_system_text_has_no_tags() {
        let filtered = filter(
            "<<Task>>Add.<</Task>> hm <<Role>>You are a clerk.<</Role>>",
            TagRules::Strict,
        );
        assert_eq!(system_text(&filtered.phrases), "You are a clerk. Add.");
        assert_eq!(filtered.rejects.len(), 1);
    }
}
