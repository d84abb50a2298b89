//! A chat template, compiled once: messages become the text `transformers` renders. Tokens are left to `tokenizer`,
//! changes of the template to `policy`.

use std::collections::BTreeMap;
use std::error::Error as _;

use anyhow::{Context, Result};
use minijinja::{Environment, Value};
use sysgen_core::Message;

use crate::jinja::{self, Raised};

/// Special tokens by the name templates know them: `bos_token` -> `<s>`.
pub type SpecialTokens = BTreeMap<String, String>;

/// Why a conversation has no text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template called `raise_exception`; the template's own words.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    /// The template failed, e.g. by indexing an empty conversation; the engine's words.
    #[error("the chat template fails on this conversation: {0}")]
    Failed(String),
}

/// A compiled chat template with the special tokens it may print.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    special_tokens: Vec<(String, Value)>,
}

const NAME: &str = "chat_template";

impl Template {
    /// Compiles `source`. An error names the line of the template.
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<Template> {
        // Jinja reads every line break as one character.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let mut environment = jinja::environment();
        environment
            .add_template_owned(NAME, without_generation_tags(&source))
            .map_err(|error| anyhow::anyhow!("line {}: {error}", error.line().unwrap_or(0)))
            .context("the chat template cannot be compiled")?;
        let special_tokens = special_tokens
            .iter()
            .map(|(name, text)| (name.clone(), Value::from(text.as_str())))
            .collect();
        Ok(Template {
            environment,
            source,
            special_tokens,
        })
    }

    /// The same with `strftime_now` telling this time, in seconds since 1970, instead of today's.
    pub(crate) fn at(mut self, now: u64) -> Template {
        jinja::set_clock(&mut self.environment, now);
        self
    }

    /// Whether it writes the date.
    pub(crate) fn writes_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation, with the header that opens the model's answer if asked for.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.render_values(&values(messages), add_generation_prompt)
    }

    /// As [`Template::render`], for messages with any keys (tool calls, names), as `transformers` passes them on.
    pub fn render_json(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let messages: Vec<Value> = messages.iter().map(Value::from_serialize).collect();
        self.render_values(&messages, add_generation_prompt)
    }

    pub(crate) fn render_values(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let given = [
            ("messages", Value::from(messages.to_vec())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let special = self
            .special_tokens
            .iter()
            .map(|(name, text)| (name.as_str(), text.clone()));
        let context: Value = given.into_iter().chain(special).collect();
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Failed(error.to_string()))?;
        template.render(context).map_err(|error| raised(&error))
    }
}

/// Messages as the engine sees them; made once per conversation, cloned by reference.
pub(crate) fn values(messages: &[Message]) -> Vec<Value> {
    messages
        .iter()
        .map(|message| {
            [
                ("role", Value::from(message.role.as_str())),
                ("content", Value::from(message.content.as_str())),
            ]
            .into_iter()
            .collect()
        })
        .collect()
}

fn raised(error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref::<Raised>() {
            return TemplateError::Raised(message.clone());
        }
        cause = inner.source();
    }
    TemplateError::Failed(match error.line() {
        Some(line) => format!("line {line}: {error}"),
        None => error.to_string(),
    })
}

/// `{% generation %}` marks the assistant's words for transformers' mask and prints nothing itself. The mask here
/// needs no marks, so the pair becomes a block that is always entered, with the same white-space signs.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let end = start + length + 2;
        let inner = &rest[start + 2..end - 2];
        let word = inner
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        text.push_str(&rest[..start]);
        match replacement {
            Some(replacement) => text.push_str(&rest[start..end].replacen(word, replacement, 1)),
            None => text.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tokens() -> SpecialTokens {
        SpecialTokens::from([("bos_token".to_owned(), "<s>".to_owned())])
    }

    #[test]
    fn generation_tags_print_nothing() {
        let source = "{{ bos_token }}{%- for m in messages -%}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}";
        let template = Template::new(source, &tokens()).unwrap();
        assert_eq!(
            template
                .render(&[Message::user("a"), Message::user("b")], false)
                .unwrap(),
            "<s>ab"
        );
    }

    #[test]
    fn a_refusal_carries_the_templates_own_words() {
        let template =
            Template::new("{{ raise_exception('Roles must alternate') }}", &tokens()).unwrap();
        let error = template.render(&[], false).unwrap_err();
        assert!(
            matches!(&error, TemplateError::Raised(words) if words == "Roles must alternate"),
            "{error}"
        );
    }

    #[test]
    fn an_undefined_element_is_an_error_and_an_undefined_name_prints_nothing() {
        let template =
            Template::new("{{ eos_token }}{{ messages[0]['role'] }}", &tokens()).unwrap();
        assert_eq!(
            template.render(&[Message::user("a")], false).unwrap(),
            "user"
        );
        assert!(matches!(
            template.render(&[], false),
            Err(TemplateError::Failed(_))
        ));
    }

    #[test]
    fn a_broken_template_names_its_line() {
        let error = Template::new("a\n{% if %}", &tokens()).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
