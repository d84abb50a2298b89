//! What a chat template writes around the turns, found by rendering conversations of known words. It never reads the
//! template's source, so it holds for any template; what is done with the findings is left to `policy` and `chat`.

use anyhow::{Result, bail};
use sysgen_core::Message;

use crate::template::{SpecialTokens, Template};

/// Words that no template contains and that trimming or capitalising leaves findable.
pub(crate) const SYSTEM: &str = "Qzsystemqz";
pub(crate) const USER: &str = "Qzuserqz";
pub(crate) const ANSWER: &str = "Qzanswerqz";
pub(crate) const SECOND: &str = "Qzsecondqz";

/// The text around turns.
#[derive(Debug)]
pub(crate) struct Markup {
    /// Between the beginning (after BOS) and the first user turn of a conversation without a system message: a hidden
    /// default such as Qwen2.5's "You are Qwen…". Unknown where the template writes history unlike the last turns.
    pub(crate) hidden: Option<String>,
    /// What opens a user's turn. Unknown as above.
    pub(crate) user_start: Option<String>,
    /// What closes the user's turn of a conversation that ends with it.
    pub(crate) user_end: String,
    /// What follows an answer that ends the conversation.
    pub(crate) answer_end: String,
    /// Whether the text begins with BOS.
    pub(crate) writes_bos: bool,
    /// Whether white space around a turn's content is taken off.
    pub(crate) trims: bool,
}

impl Markup {
    /// Renders one user turn, an exchange, and an exchange with a second question, and takes them apart.
    pub(crate) fn of(template: &Template, special_tokens: &SpecialTokens) -> Result<Markup> {
        let question = [Message::user(USER)];
        let exchange = [Message::user(USER), Message::assistant(ANSWER)];
        let follow_up = [
            Message::user(USER),
            Message::assistant(ANSWER),
            Message::user(SECOND),
        ];

        let (opening, user_end) = around(&template.render(&question, false)?, USER)?;
        let (_, answer_end) = around(&template.render(&exchange, false)?, ANSWER)?;
        let padded = template.render(&[Message::user(format!("  {USER}  "))], false)?;

        let user_start = template
            .render(&follow_up, false)
            .ok()
            .and_then(|text| around(&text, ANSWER).ok())
            .and_then(|(_, after)| after.strip_prefix(answer_end.as_str()).map(str::to_owned))
            .and_then(|after| after.split_once(SECOND).map(|(start, _)| start.to_owned()));
        let bos = special_tokens.get("bos_token").map_or("", String::as_str);
        let writes_bos = !bos.is_empty() && opening.starts_with(bos);
        let hidden = user_start.as_ref().and_then(|start| {
            let before = opening.strip_suffix(start.as_str())?;
            Some(
                if writes_bos {
                    before.strip_prefix(bos).unwrap_or_default()
                } else {
                    before
                }
                .to_owned(),
            )
        });
        Ok(Markup {
            hidden,
            user_start,
            user_end,
            answer_end,
            writes_bos,
            trims: !padded.contains(&format!("  {USER}")),
        })
    }
}

/// The text before and after `word`, which has to occur once.
fn around(text: &str, word: &str) -> Result<(String, String)> {
    match text.split_once(word) {
        Some((before, after)) if !after.contains(word) => Ok((before.to_owned(), after.to_owned())),
        _ => bail!(
            "the chat template does not write a turn's content once and verbatim: it gives {text:?}"
        ),
    }
}
