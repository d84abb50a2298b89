//! The effective template: the model's own, changed by the policies of `[model]` (`system_role`, `default_system`)
//! and given a stop token if it has none. It is what is used here and what is exported, so that `transformers`
//! renders the same text from the exported folder.
//!
//! A change is Jinja written around the model's template, never an edit inside it: it prepares `messages` (or cuts
//! the finished text) and leaves the rest to the template. Every change is verified by rendering.

use anyhow::{Context, Result, bail, ensure};
use sysgen_core::config::{DefaultSystem, SystemRole};
use sysgen_core::{Message, RunConfig, started};

use crate::markup::{ANSWER, Markup, SECOND, SYSTEM, USER};
use crate::template::{SpecialTokens, Template};
use crate::tokenizer::Tokenizer;

/// How system messages are treated, as `[model]` says, and what else of a run decides about its texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatOptions {
    /// What becomes of a system message.
    pub system_role: SystemRole,
    /// What becomes of the text a template adds when there is no system message.
    pub default_system: DefaultSystem,
    /// Tells a template that knows `enable_thinking` not to ask for thoughts.
    pub without_thinking: bool,
    /// The time that `strftime_now` tells, in seconds since 1970 (UTC); the clock's if none.
    pub now: Option<u64>,
}

impl ChatOptions {
    /// Those of a run. Its date is the one on which the work in its output folder began.
    pub fn of(config: &RunConfig) -> ChatOptions {
        ChatOptions {
            system_role: config.model.system_role,
            default_system: config.model.default_system,
            without_thinking: !config.model.enable_thinking,
            now: started(&config.output_dir),
        }
    }
}

/// What templates that can ask for thoughts read.
const THINKING: &str = "enable_thinking";
/// The answer to it of a caller who does not say.
const NO_THINKING: &str = "{%- if enable_thinking is not defined -%}\n\
                           {%- set enable_thinking = false -%}\n\
                           {%- endif %}";

/// What separates the system text from the user's under `merge_first_user`.
const MERGE_SEPARATOR: &str = "\n\n";

/// The effective template for `source`. Innermost first: the default text is cut, the stop token is added, the
/// system message is placed; so a merged system message counts as "no system message" for a hidden default.
pub(crate) fn effective(
    source: &str,
    tokenizer: &Tokenizer,
    options: ChatOptions,
) -> Result<Template> {
    let special_tokens = tokenizer.special_tokens();
    let mut template = Template::new(source, special_tokens)?;
    if options.without_thinking && source.contains(THINKING) && !source.contains(NO_THINKING) {
        template = Template::new(&prefixed(NO_THINKING, template.source()), special_tokens)?;
    }
    if options.default_system == DefaultSystem::Strip {
        template = without_default(template, special_tokens)
            .context("model.default_system = \"strip\" is not possible with this chat template")?;
    }
    let markup = Markup::of(&template, special_tokens)?;
    if turn_end(&markup, tokenizer).is_none() {
        template = with_stop_token(template, &markup, special_tokens)?;
    }
    if tokenizer.begins_with_bos() && !markup.writes_bos {
        template = with_bos(template, tokenizer)?;
    }
    let placed = match options.system_role {
        SystemRole::Native => Ok(template),
        SystemRole::OwnTurn => own_turn(template, special_tokens)
            .context("model.system_role = \"own_turn\" is not possible with this chat template"),
        SystemRole::MergeFirstUser => merged(template, special_tokens).context(
            "model.system_role = \"merge_first_user\" is not possible with this chat template",
        ),
        SystemRole::Error => refusing(template, special_tokens),
    }?;
    Ok(match options.now {
        Some(now) => placed.at(now),
        None => placed,
    })
}

/// The token that ends an answer in the template's text, white space before it aside.
pub(crate) fn turn_end(markup: &Markup, tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.leading_token(markup.answer_end.trim_start())
}

/// `source` with `prefix` before it. The line break after the prefix's last block is taken by `trim_blocks`, which
/// leaves `source` at the start of a line as it was.
fn prefixed(prefix: &str, source: &str) -> String {
    format!("{prefix}\n{source}")
}

/// A Jinja string literal.
fn literal(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('\'', "\\'")
        .replace('\n', "\\n")
        .replace('\r', "\\r");
    format!("'{escaped}'")
}

/// Cuts what comes before the first user turn, BOS excepted, when there is no system message. Conversations with
/// tools keep it: their description stands there.
fn without_default(template: Template, special_tokens: &SpecialTokens) -> Result<Template> {
    let markup = Markup::of(&template, special_tokens)?;
    let (Some(hidden), Some(user_start)) = (&markup.hidden, &markup.user_start) else {
        bail!(
            "it does not write all user turns alike, so the end of the default text cannot be told"
        );
    };
    if hidden.trim().is_empty() {
        return Ok(template);
    }
    ensure!(
        !user_start.is_empty(),
        "it opens a user turn with nothing, so the end of the default text cannot be told"
    );
    let start = literal(user_start);
    let bos = if markup.writes_bos {
        "bos_token + "
    } else {
        ""
    };
    let original = template.source();
    // A template's last line break is not printed (keep_trailing_newline); here the template no longer comes last.
    let original = original.strip_suffix('\n').unwrap_or(original);
    let source = format!(
        "{{%- set sysgen_first = messages[0]['role'] if messages else '' -%}}\n\
         {{%- set sysgen_text %}}\n{original}{{%+ endset %}}\
         {{%- if sysgen_first == 'user' and not tools %}}\
         {{{{- {bos}{start} + sysgen_text.split({start}, 1)[1] }}}}\
         {{%- elif sysgen_first == 'assistant' %}}\
         {{{{- raise_exception('default_system = \"strip\": the conversation has to begin with a system or a user message') }}}}\
         {{%- else %}}{{{{- sysgen_text }}}}{{%- endif %}}"
    );
    let stripped = Template::new(&source, special_tokens)?;
    let conversation = [
        Message::user(USER),
        Message::assistant(ANSWER),
        Message::user(SECOND),
    ];
    let with_system = [&[Message::system(SYSTEM)], &conversation[..]].concat();
    for prompt in [false, true] {
        let before = template.render(&conversation, prompt)?;
        let after = stripped.render(&conversation, prompt)?;
        ensure!(
            before.replacen(hidden.as_str(), "", 1) == after,
            "cutting the default text changes the turns"
        );
        if let Ok(text) = template.render(&with_system, prompt) {
            ensure!(
                stripped.render(&with_system, prompt)? == text,
                "cutting the default text changes the system turn"
            );
        }
    }
    Ok(stripped)
}

/// Ends every answer with eos. SOLAR's template writes nothing after an answer: a model trained on it would never
/// learn to stop.
fn with_stop_token(
    template: Template,
    markup: &Markup,
    special_tokens: &SpecialTokens,
) -> Result<Template> {
    let Some(eos) = special_tokens.get("eos_token") else {
        bail!(
            "the chat template ends an answer without a special token and the tokenizer has no eos_token to end it with"
        );
    };
    let content = if markup.trims {
        "message['content'] | trim"
    } else {
        "message['content']"
    };
    let prefix = format!(
        "{{%- set sysgen_turns = namespace(messages=[]) -%}}\n\
         {{%- for message in messages -%}}\n\
         {{%- if message['role'] == 'assistant' -%}}\n\
         {{%- set sysgen_turns.messages = sysgen_turns.messages + [dict(message, content={content} + eos_token)] -%}}\n\
         {{%- else -%}}\n\
         {{%- set sysgen_turns.messages = sysgen_turns.messages + [message] -%}}\n\
         {{%- endif -%}}\n\
         {{%- endfor -%}}\n\
         {{%- set messages = sysgen_turns.messages %}}"
    );
    let stopped = Template::new(&prefixed(&prefix, template.source()), special_tokens)?;
    let conversation = [
        Message::user(USER),
        Message::assistant(ANSWER),
        Message::user(SECOND),
    ];
    let expected =
        template
            .render(&conversation, true)?
            .replacen(ANSWER, &format!("{ANSWER}{eos}"), 1);
    ensure!(
        stopped.render(&conversation, true)? == expected,
        "the chat template ends an answer without a special token, and adding eos_token changes other turns"
    );
    Ok(stopped)
}

/// Writes the system message as a turn of its own, in the markup of a user's turn under the name `system`, and hands
/// the template the rest: its ban on system messages is not met and its alternation check counts from the first user
/// turn. A template that already writes such a turn is left alone.
fn own_turn(template: Template, special_tokens: &SpecialTokens) -> Result<Template> {
    let markup = Markup::of(&template, special_tokens)?;
    let Some(user_start) = &markup.user_start else {
        bail!("it does not write all user turns alike");
    };
    let turns = [
        Message::user(USER),
        Message::assistant(ANSWER),
        Message::user(SECOND),
    ];
    let with_system = [&[Message::system(SYSTEM)], &turns[..]].concat();
    let plain = template.render(&turns, true)?;
    let tail = plain
        .split_once(user_start.as_str())
        .map_or("", |(_, tail)| tail);
    if let Ok(text) = template.render(&with_system, true)
        && text.contains(SYSTEM)
        && text.ends_with(&format!("{user_start}{tail}"))
    {
        return Ok(template);
    }
    let system_start = ["user", "User", "USER"]
        .into_iter()
        .zip(["system", "System", "SYSTEM"])
        .find(|(user, _)| user_start.matches(user).count() == 1)
        .map(|(user, system)| user_start.replace(user, system));
    let Some(system_start) = system_start else {
        bail!(
            "it opens a user's turn with {user_start:?}, which does not name the role; use \"merge_first_user\""
        );
    };
    let bos = if markup.writes_bos {
        "bos_token + "
    } else {
        ""
    };
    let no_bos = if markup.writes_bos {
        "{%- set bos_token = '' -%}\n"
    } else {
        ""
    };
    let content = if markup.trims {
        "messages[0]['content'] | trim"
    } else {
        "messages[0]['content']"
    };
    let prefix = format!(
        "{{%- if messages and messages[0]['role'] == 'system' -%}}\n\
         {{{{- {bos}{} + {content} + {} -}}}}\n\
         {no_bos}\
         {{%- set messages = messages[1:] -%}}\n\
         {{%- endif %}}",
        literal(&system_start),
        literal(&markup.user_end)
    );
    let rewritten = Template::new(&prefixed(&prefix, template.source()), special_tokens)?;
    let bos_text = if markup.writes_bos {
        special_tokens.get("bos_token").map_or("", String::as_str)
    } else {
        ""
    };
    let body = plain.strip_prefix(bos_text).unwrap_or(&plain);
    let expected = format!("{bos_text}{system_start}{SYSTEM}{}{body}", markup.user_end);
    ensure!(
        rewritten.render(&with_system, true)? == expected,
        "a system turn before the others changes them"
    );
    ensure!(
        rewritten.render(&turns, true)? == plain,
        "it would change conversations without a system message"
    );
    Ok(rewritten)
}

/// Writes BOS first, as the tokenizer does where a text is not a conversation: `apply_chat_template` and servers add none to
/// a conversation, and would give the exported model a beginning that it has never seen. Left alone where a text after a
/// written BOS has other ids, or where the template writes one in another place.
fn with_bos(template: Template, tokenizer: &Tokenizer) -> Result<Template> {
    let special_tokens = tokenizer.special_tokens();
    let written = Template::new(
        &prefixed("{{- bos_token -}}", template.source()),
        special_tokens,
    )?;
    let ids = |template: &Template| -> Result<Vec<u32>> {
        let text = template.render(&[Message::user(USER)], true)?;
        tokenizer.with_bos(tokenizer.encode(&text))
    };
    Ok(match (ids(&written), ids(&template)) {
        (Ok(with), Ok(without)) if with == without => written,
        _ => template,
    })
}

/// Puts the system text before the first user's.
fn merged(template: Template, special_tokens: &SpecialTokens) -> Result<Template> {
    let separator = literal(MERGE_SEPARATOR);
    let prefix = format!(
        "{{%- if messages and messages[0]['role'] == 'system' -%}}\n\
         {{%- if messages | length < 2 or messages[1]['role'] != 'user' -%}}\n\
         {{{{- raise_exception('system_role = \"merge_first_user\": the system message has to be followed by a user message') -}}}}\n\
         {{%- endif -%}}\n\
         {{%- set messages = [dict(messages[1], content=messages[0]['content'] + {separator} + messages[1]['content'])] + messages[2:] -%}}\n\
         {{%- endif %}}"
    );
    let rewritten = Template::new(&prefixed(&prefix, template.source()), special_tokens)?;
    let rest = [Message::assistant(ANSWER), Message::user(SECOND)];
    let given = [&[Message::system(SYSTEM), Message::user(USER)], &rest[..]].concat();
    let joined = [
        &[Message::user(format!("{SYSTEM}{MERGE_SEPARATOR}{USER}"))],
        &rest[..],
    ]
    .concat();
    ensure!(
        rewritten.render(&given, true)? == template.render(&joined, true)?,
        "merging changes other turns"
    );
    Ok(rewritten)
}

/// Refuses any system message.
fn refusing(template: Template, special_tokens: &SpecialTokens) -> Result<Template> {
    let prefix = "{%- for message in messages -%}\n\
                  {%- if message['role'] == 'system' -%}\n\
                  {{- raise_exception('system messages are refused by system_role = \"error\"') -}}\n\
                  {%- endif -%}\n\
                  {%- endfor %}";
    Template::new(&prefixed(prefix, template.source()), special_tokens)
}
