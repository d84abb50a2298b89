//! Phase 1: the prompt that asks for a system message with every phrase tagged (paper Table 12).

use std::path::Path;

use anyhow::Result;
use sysgen_core::message::Message;

use crate::input::{Row, Turn};
use crate::prompt::PromptFile;

const BUILT_IN: &str = include_str!("prompts/draft.txt");

/// The draft prompt: the file at `path`, or the built-in one when `path` is empty. Places:
/// `{conversation}` is everything; `{history}` the earlier turns, `{question}` and `{answer}` the last one.
pub(crate) fn prompt_file(path: &Path) -> Result<PromptFile> {
    PromptFile::load(
        path,
        BUILT_IN,
        &["{conversation}", "{question}"],
        "generate.draft_prompt",
    )
}

/// The prompt for one row.
pub(crate) fn prompt(file: &PromptFile, row: &Row) -> Vec<Message> {
    let (last, earlier) = row.turns.split_last().expect("a row has at least one turn");
    let history = transcript(row.history.iter().chain(earlier));
    let conversation = transcript(row.history.iter().chain(&row.turns));
    file.fill(&[
        ("{conversation}", &conversation),
        ("{history}", &history),
        ("{question}", &last.question),
        ("{answer}", &last.answer),
    ])
}

fn transcript<'a>(turns: impl Iterator<Item = &'a Turn>) -> String {
    let spoken = |turn: &Turn| format!("User: {}\n\nAssistant: {}", turn.question, turn.answer);
    turns.map(spoken).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tag::{self, Tag};
    use sysgen_core::config::TagRules;

    #[test]
    fn the_built_in_demonstrations_are_tagged_as_they_ask() {
        let shown =
            &BUILT_IN[BUILT_IN.find("### 1").unwrap()..BUILT_IN.find("## [Conversation]").unwrap()];
        let (phrases, rejects) = tag::parse(shown, TagRules::Strict);
        assert_eq!(
            rejects.iter().map(|r| r.text.as_str()).collect::<Vec<_>>(),
            ["### 1", "### 2", "### 3"]
        );
        for tag in Tag::CANONICAL {
            assert!(
                phrases.iter().any(|phrase| phrase.tag == tag),
                "{tag} is not shown"
            );
        }
    }

    #[test]
    fn functions_are_listed_in_the_papers_order() {
        let places: Vec<usize> = Tag::IN_PROMPTS
            .iter()
            .enumerate()
            .map(|(i, tag)| BUILT_IN.find(&format!("{}. <<{tag}>>:", i + 1)).unwrap())
            .collect();
        assert!(places.is_sorted());
    }

    #[test]
    fn the_conversation_stands_in_the_prompt() {
        let turn = |q: &str, a: &str| Turn {
            question: q.to_string(),
            answer: a.to_string(),
        };
        let row = Row {
            id: "r".into(),
            source: "f".into(),
            line: 1,
            system: None,
            history: vec![turn("hi", "hello")],
            turns: vec![turn("1+1?", "2")],
        };
        let messages = prompt(&prompt_file(Path::new("")).unwrap(), &row);
        assert!(messages[1].content.contains("## [Conversation]\nUser: hi\n\nAssistant: hello\n\nUser: 1+1?\n\nAssistant: 2\n\n## [Generated"));
    }
}
