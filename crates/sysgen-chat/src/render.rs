//! A conversation as token ids with the mask of what is learnt, in one pass. The mask comes from rendering prefixes
//! of the conversation, never from marks in the template or from searching ids.
//!
//! What is learnt is what the model would have to write: everything between the generation prompt and the end of the
//! stop token. The text is cut at exactly those places and each piece is tokenised after its context, so the ids
//! before an answer are those a prompt gives, and the ids of an answer are those that decode to it. Where the cut
//! follows or precedes a special token the ids equal those of the whole text; elsewhere (an answer that begins with
//! a line break after a header that ends with one) a token of the whole text could span the cut, and a model that
//! generates never writes such a token.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use sysgen_core::{Message, Role};

use crate::chat::Chat;
use crate::jinja::trim;
use crate::markup::{ANSWER, SYSTEM, USER};
use crate::template::{TemplateError, values};

/// Token ids and, for each, whether it is a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The conversation.
    pub ids: Vec<u32>,
    /// `learn[t]`: `ids[t]` belongs to an answer or is its stop token. As long as `ids`; `learn[0]` is false.
    pub learn: Vec<bool>,
    /// Where each answer stands in `ids`, stop token included: one range for each assistant message, in order. It is empty
    /// for an answer that is not learnt and that the template rewrites once the conversation goes on.
    pub answers: Vec<Range<usize>>,
}

/// A rendered conversation and where its answers stand, stop tokens included, in bytes; `None` for one that is not found as
/// it was written.
struct Layout {
    text: String,
    answers: Vec<Option<Range<usize>>>,
}

impl Chat {
    /// The text of a conversation by the effective template.
    pub fn render_text(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template
            .render(messages, add_generation_prompt)
            .map_err(|error| self.explain(error, messages))
    }

    /// The ids a model is given to answer `messages`: with the generation prompt, with BOS exactly where the
    /// tokenizer wants it. They are the beginning of what [`Chat::render`] gives once the answer is there.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let layout = self.layout(messages, &[], true)?;
        Ok(self.tokenise(&layout)?.ids)
    }

    /// The ids of a conversation and the mask of its answers.
    ///
    /// # Errors
    /// As [`Chat::render_learning`].
    pub fn render(&self, messages: &[Message]) -> Result<Rendered> {
        let answers = messages.iter().filter(|m| m.role == Role::Assistant);
        self.render_learning(messages, &vec![true; answers.count()])
    }

    /// The same where only some answers are learnt, one word for each, in order; the others are context. Templates that take
    /// the thoughts out of earlier answers (Qwen3) rewrite them, which is how the model will see them, too.
    ///
    /// # Errors
    /// The template refuses the conversation, drops its system message, or does not write an answer that is learnt after its
    /// own generation prompt.
    pub fn render_learning(&self, messages: &[Message], learnt: &[bool]) -> Result<Rendered> {
        let layout = self.layout(messages, learnt, false)?;
        self.tokenise(&layout)
    }

    /// Whether the template writes a system message, and still does once the answer is there.
    ///
    /// # Errors
    /// It does not, with the way out.
    pub fn takes_system_messages(&self) -> Result<()> {
        let exchange = [
            Message::system(SYSTEM),
            Message::user(USER),
            Message::assistant(ANSWER),
        ];
        self.prompt(&exchange[..2])?;
        self.render(&exchange)?;
        Ok(())
    }

    fn layout(
        &self,
        messages: &[Message],
        learnt: &[bool],
        add_generation_prompt: bool,
    ) -> Result<Layout> {
        let values = values(messages);
        let render = |count: usize, prompt: bool| {
            self.template
                .render_values(&values[..count], prompt)
                .map_err(|error| self.explain(error, &messages[..count]))
        };
        let text = render(messages.len(), add_generation_prompt)?;
        let (mut answers, mut written) = (Vec::new(), 0);
        for (index, message) in messages.iter().enumerate() {
            if message.role != Role::Assistant {
                continue;
            }
            let learnt = learnt.get(answers.len()).is_some_and(|learnt| *learnt);
            let (prompt, whole) = (render(index, true)?, render(index + 1, false)?);
            let found = self
                .answer(&text, &message.content, &prompt, &whole, written)
                .with_context(|| format!("message {}", index + 1));
            match found {
                Ok(answer) => {
                    written = answer.end;
                    answers.push(Some(answer));
                }
                Err(error) if learnt && self.moves_system_messages() => {
                    return Err(error.context(
                        "the chat template moves the system message once the answer is there; \
                         model.system_role = \"merge_first_user\" gives it a place that stays",
                    ));
                }
                Err(error) if learnt => return Err(error),
                Err(_) => answers.push(None),
            }
        }
        for message in messages
            .iter()
            .filter(|message| message.role == Role::System)
        {
            ensure!(
                text.contains(trim(&message.content)),
                "the chat template does not write the system message verbatim; set model.system_role"
            );
        }
        Ok(Layout { text, answers })
    }

    /// Where an answer stands in the `text` of its conversation, by the text up to it with the generation prompt and the text
    /// that ends with it. The answer before it ends at `written`.
    fn answer(
        &self,
        text: &str,
        content: &str,
        prompt: &str,
        whole: &str,
        written: usize,
    ) -> Result<Range<usize>> {
        ensure!(
            whole.starts_with(prompt) && prompt.len() >= written,
            "the chat template does not write an answer after its own generation prompt (the text up to the answer changes \
             once the answer is there), so what is learnt cannot be told"
        );
        ensure!(
            !prompt.is_empty(),
            "the chat template writes nothing before the answer"
        );
        let end = prompt.len() + self.answer_length(&whole[prompt.len()..], content)?;
        ensure!(
            text.starts_with(&whole[..end]),
            "the chat template rewrites an earlier answer once the conversation goes on: learn the last one alone, in a row of \
             its own for each answer (`\"weight\": 0` at the others, as data.multi_turn = \"unroll\" writes them)"
        );
        Ok(prompt.len()..end)
    }

    /// How many bytes of `tail` (what the template writes after the generation prompt) are the answer and its stop
    /// token.
    fn answer_length(&self, tail: &str, content: &str) -> Result<usize> {
        // Templates print an answer verbatim or trimmed.
        let forms = [
            content,
            content.trim_end(),
            content.trim_start(),
            trim(content),
        ];
        for form in forms {
            for (start, _) in tail.match_indices(form) {
                let stop = tail[start + form.len()..].trim_start();
                if let Some(token) = self
                    .stop_texts
                    .iter()
                    .find(|token| stop.starts_with(token.as_str()))
                {
                    return Ok(tail.len() - stop.len() + token.len());
                }
            }
        }
        if forms.iter().any(|form| tail.contains(form)) {
            bail!(
                "the answer is not followed by a stop token ({}) but by {tail:?}",
                self.stop_texts.join(" ")
            );
        }
        bail!("the chat template does not write the answer verbatim but {tail:?}")
    }

    fn tokenise(&self, layout: &Layout) -> Result<Rendered> {
        let text = layout.text.as_str();
        let mut found = layout.answers.iter().flatten().peekable();
        let first = found.peek().map_or(text.len(), |answer| answer.start);
        let ids = self
            .tokenizer
            .with_bos(self.tokenizer.encode(&text[..first]))?;
        let mut rendered = Rendered {
            learn: vec![false; ids.len()],
            answers: Vec::with_capacity(layout.answers.len()),
            ids,
        };
        for (index, answer) in layout.answers.iter().enumerate() {
            let start = rendered.ids.len();
            let Some(answer) = answer else {
                rendered.answers.push(start..start);
                continue;
            };
            found.next();
            let ids = self
                .tokenizer
                .encode_after(&text[..answer.start], &text[answer.clone()]);
            ensure!(
                ids.last().is_some_and(|id| self.stop_ids().contains(id)),
                "answer {}: its stop token is not a token of its own in {:?}",
                index + 1,
                ids.iter().map(|&id| self.token(id)).collect::<Vec<_>>()
            );
            rendered.push(ids, true);
            rendered.answers.push(start..rendered.ids.len());
            let next = found.peek().map_or(text.len(), |next| next.start);
            rendered.push(
                self.tokenizer
                    .encode_after(&text[..answer.end], &text[answer.end..next]),
                false,
            );
        }
        Ok(rendered)
    }

    /// Whether an answer is found in a conversation without a system message alone.
    fn moves_system_messages(&self) -> bool {
        let exchange = [
            Message::system(SYSTEM),
            Message::user(USER),
            Message::assistant(ANSWER),
        ];
        let found = |messages: &[Message]| {
            let prompt = self.render_text(&messages[..messages.len() - 1], true)?;
            let whole = self.render_text(messages, false)?;
            self.answer(&whole, ANSWER, &prompt, &whole, 0)
        };
        found(&exchange).is_err() && found(&exchange[1..]).is_ok()
    }

    /// Adds what to do to a refusal of system messages.
    fn explain(&self, error: TemplateError, messages: &[Message]) -> anyhow::Error {
        let has_system = messages.iter().any(|message| message.role == Role::System);
        let refused = matches!(&error, TemplateError::Raised(words) if words.to_lowercase().contains("system"));
        let error = anyhow::Error::from(error);
        if has_system && refused {
            return anyhow::anyhow!(
                "{error} (model.system_role = \"own_turn\" or \"merge_first_user\" gives the system message a place)"
            );
        }
        error
    }
}

impl Rendered {
    fn push(&mut self, ids: Vec<u32>, learn: bool) {
        self.learn.extend(std::iter::repeat_n(learn, ids.len()));
        self.ids.extend(ids);
    }
}
