//! Prompt files: a system part and a user part with places to fill in. The built-in ones stand in
//! `prompts/`; a config may name others.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sysgen_core::hash::hash_bytes;
use sysgen_core::message::Message;

const SYSTEM_MARK: &str = "--- system ---";
const USER_MARK: &str = "--- user ---";

/// A prompt with places such as `{conversation}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PromptFile {
    system: String,
    user: String,
    /// The file as it is.
    pub(crate) text: String,
    /// blake3 of the file's bytes.
    pub(crate) hash: String,
}

impl PromptFile {
    /// Reads `path`, or takes `built_in` when it is empty. The file has a part after a line
    /// `--- system ---` and one after a line `--- user ---`; without these lines all of it is the
    /// user's turn.
    ///
    /// # Errors
    /// A file that cannot be read, has an empty user part, or has none of the places in `needs`.
    pub(crate) fn load(
        path: &Path,
        built_in: &str,
        needs: &[&str],
        key: &str,
    ) -> Result<PromptFile> {
        let text = if path.as_os_str().is_empty() {
            built_in.to_string()
        } else {
            std::fs::read_to_string(path)
                .with_context(|| format!("{key}: reading {}", path.display()))?
        };
        let prompt = PromptFile::parse(&text);
        if prompt.user.is_empty() {
            bail!(
                "{key}: {} has nothing after its line `{USER_MARK}`",
                path.display()
            );
        }
        let has = |place: &&str| prompt.user.contains(*place) || prompt.system.contains(*place);
        if !needs.iter().any(has) {
            bail!(
                "{key}: {} has none of the places {}, so every row would get the same prompt",
                path.display(),
                needs.join(", ")
            );
        }
        Ok(prompt)
    }

    fn parse(text: &str) -> PromptFile {
        let hash = hash_bytes(text.as_bytes());
        let mut system = String::new();
        let mut user = String::new();
        let mut part = &mut user;
        for line in text.lines() {
            match line.trim() {
                SYSTEM_MARK => part = &mut system,
                USER_MARK => part = &mut user,
                _ => {
                    part.push_str(line);
                    part.push('\n');
                }
            }
        }
        PromptFile {
            system: system.trim().to_string(),
            user: user.trim().to_string(),
            text: text.to_string(),
            hash,
        }
    }

    /// The turns with every place filled in. A place that is not in `values` stays as it is: prompts
    /// may hold JSON.
    pub(crate) fn fill(&self, values: &[(&str, &str)]) -> Vec<Message> {
        let mut messages = Vec::with_capacity(2);
        if !self.system.is_empty() {
            messages.push(Message::system(fill(&self.system, values)));
        }
        messages.push(Message::user(fill(&self.user, values)));
        messages
    }
}

/// One pass from left to right, so that a value which itself holds `{answer}` is left alone.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(brace) = rest.find('{') {
        let (before, from) = rest.split_at(brace);
        filled.push_str(before);
        match values.iter().find(|(place, _)| from.starts_with(place)) {
            Some((place, value)) => {
                filled.push_str(value);
                rest = &from[place.len()..];
            }
            None => {
                filled.push('{');
                rest = &from[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_filled_in_again_and_other_braces_stay() {
        let prompt = PromptFile::parse(
            "--- system ---\n{\"a\": {}}\n--- user ---\nQ: {question}\nA: {answer}\n",
        );
        let messages = prompt.fill(&[("{question}", "what is {answer}?"), ("{answer}", "42")]);
        assert_eq!(
            messages,
            [
                Message::system("{\"a\": {}}"),
                Message::user("Q: what is {answer}?\nA: 42")
            ]
        );
    }

    #[test]
    fn a_file_without_parts_is_the_users_turn() {
        assert_eq!(
            PromptFile::parse("Say {question}").fill(&[("{question}", "hi")]),
            [Message::user("Say hi")]
        );
    }
}
