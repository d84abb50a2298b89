//! From one JSON row, in whatever format its data set uses, to the turns of a conversation.
//! The format is found out per row, from its keys. Which turns are used is left to `turns`.

use serde_json::{Map, Value};
use sysgen_core::message::{Message, Role};

type Object = Map<String, Value>;

/// Why a row cannot be used; the texts are what the funnel counts by, so they name no row.
pub(crate) type Reason = String;

/// The columns of data sets that hold one question and one answer, in the order they are tried.
const PAIRS: [(&str, &str, &str); 6] = [
    ("question", "answer", "question/answer"),
    ("question", "response", "question/response"),
    ("query", "response", "query/response"),
    ("problem", "solution", "problem/solution"),
    ("prompt", "response", "prompt/response"),
    ("prompt", "completion", "prompt/completion"),
];

/// The turns of one row, as they stand in it, and the name of its format.
pub(crate) fn messages_of(row: &Value) -> Result<(Vec<Message>, &'static str), Reason> {
    let Value::Object(row) = row else {
        return Err("not a JSON object".to_string());
    };
    let (mut messages, format) = turns_of(row)?;
    if let Some(system) = text_at(row, "system").or_else(|| text_at(row, "system_prompt"))
        && !system.trim().is_empty()
        && messages
            .first()
            .is_none_or(|first| first.role != Role::System)
    {
        messages.insert(0, Message::system(system));
    }
    Ok((messages, format))
}

fn turns_of(row: &Object) -> Result<(Vec<Message>, &'static str), Reason> {
    if let Some(list) = array_at(row, "messages") {
        return Ok((conversation(list)?.0, "messages"));
    }
    if let Some(list) = array_at(row, "conversations").or_else(|| array_at(row, "conversation")) {
        return conversation(list);
    }
    if let Some(instances) = array_at(row, "instances") {
        return Ok((self_instruct(row, instances)?, "self-instruct"));
    }
    let asks = ["instruction", "question", "query", "problem", "prompt"];
    if asks.iter().any(|key| row.contains_key(*key)) && has_options(row) {
        return Err("a list of options beside the question".to_string());
    }
    if row.contains_key("instruction") {
        let format = if row.contains_key("response") && !row.contains_key("input") {
            "instruction/response"
        } else {
            "Alpaca"
        };
        return Ok((alpaca(row)?, format));
    }
    if let (Some(prompt), Some(completion)) = (array_at(row, "prompt"), array_at(row, "completion"))
    {
        let messages = prompt.iter().chain(completion).map(openai_message);
        return Ok((messages.collect::<Result<_, _>>()?, "prompt/completion"));
    }
    for (question, answer, format) in PAIRS {
        if let (Some(question), Some(answer)) = (text_at(row, question), text_at(row, answer)) {
            let question = with_input(&question, &context(row)?);
            return Ok((
                vec![Message::user(question), Message::assistant(answer)],
                format,
            ));
        }
    }
    if asks.iter().any(|key| row.contains_key(*key)) || row.contains_key("turns") {
        return Err("a question without an answer".to_string());
    }
    Err("unknown format".to_string())
}

/// `{"role", "content"}`; the content may be null or a list of parts.
fn openai_message(value: &Value) -> Result<Message, Reason> {
    let Value::Object(message) = value else {
        return Err("a message is not a JSON object".to_string());
    };
    let called = ["tool_calls", "function_call"].iter().any(|key| {
        message.get(*key).is_some_and(|calls| {
            !calls.is_null() && calls.as_array().is_none_or(|list| !list.is_empty())
        })
    });
    if called {
        return Err("tool calls".to_string());
    }
    let Some(role) = text_at(message, "role") else {
        return Err("a message without a role".to_string());
    };
    let content = content_of(message.get("content").unwrap_or(&Value::Null))?;
    Ok(Message {
        role: role_named(&role)?,
        content,
    })
}

/// ShareGPT's `{"from", "value"}`, Capybara's `{"input", "output"}`, or `{"role", "content"}`, with the
/// name of what it is.
pub(crate) fn conversation(list: &[Value]) -> Result<(Vec<Message>, &'static str), Reason> {
    let mut messages = Vec::with_capacity(list.len());
    let mut format = "messages";
    for turn in list {
        let Value::Object(object) = turn else {
            return Err("a message is not a JSON object".to_string());
        };
        if let Some(from) = text_at(object, "from") {
            let value = ["value", "text", "content"]
                .iter()
                .find_map(|key| object.get(*key));
            format = "ShareGPT";
            let content = content_of(value.unwrap_or(&Value::Null))?;
            messages.push(Message {
                role: role_named(&from)?,
                content,
            });
        } else if object.contains_key("role") {
            messages.push(openai_message(turn)?);
        } else if let Some(input) = text_at(object, "input") {
            format = "Capybara";
            messages.push(Message::user(input));
            messages.push(Message::assistant(
                text_at(object, "output").unwrap_or_default(),
            ));
        } else {
            return Err("a message without a role".to_string());
        }
    }
    Ok((messages, format))
}

/// `instruction` with an optional `input`, or Dolly's `context`; the answer is `output` or `response`. `history` holds
/// earlier pairs.
fn alpaca(row: &Object) -> Result<Vec<Message>, Reason> {
    let answer = ["output", "response", "answer", "completion"]
        .iter()
        .find_map(|key| text_at(row, key));
    let (Some(instruction), Some(answer)) = (text_at(row, "instruction"), answer) else {
        return Err("a question without an answer".to_string());
    };
    let mut messages = Vec::new();
    for pair in array_at(row, "history").unwrap_or(&[]) {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                messages.push(Message::user(question));
                messages.push(Message::assistant(answer));
            }
            _ => return Err("a history that is not a list of pairs of texts".to_string()),
        }
    }
    let input = match text_at(row, "input").filter(|input| !input.trim().is_empty()) {
        Some(input) => input,
        None => context(row)?,
    };
    messages.push(Message::user(with_input(&instruction, &input)));
    messages.push(Message::assistant(answer));
    Ok(messages)
}

/// The passage that a question is about; empty where there is none.
fn context(row: &Object) -> Result<String, Reason> {
    match row.get("context") {
        Some(Value::String(text)) => Ok(text.clone()),
        context if is_blank(context) => Ok(String::new()),
        _ => Err("a context that is not a text".to_string()),
    }
}

/// Whether the question goes on in a list to choose from. Data sets write it in many ways, and without it many a question
/// cannot be answered.
fn has_options(row: &Object) -> bool {
    ["options", "choices"]
        .iter()
        .any(|key| !is_blank(row.get(*key)))
}

fn is_blank(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.trim().is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(object)) => object.is_empty(),
        Some(_) => false,
    }
}

/// Self-instruct's tasks: the first instance is the row's pair (published sets hold one each; further
/// ones repeat the same instruction).
fn self_instruct(row: &Object, instances: &[Value]) -> Result<Vec<Message>, Reason> {
    let (Some(instruction), Some(Value::Object(instance))) =
        (text_at(row, "instruction"), instances.first())
    else {
        return Err("a task without an instruction or an instance".to_string());
    };
    let input = text_at(instance, "input").unwrap_or_default();
    let Some(output) = text_at(instance, "output") else {
        return Err("a question without an answer".to_string());
    };
    Ok(vec![
        Message::user(with_input(&instruction, &input)),
        Message::assistant(output),
    ])
}

pub(crate) fn with_input(instruction: &str, input: &str) -> String {
    if input.trim().is_empty() {
        instruction.to_string()
    } else {
        format!("{instruction}\n{input}")
    }
}

pub(crate) fn role_named(name: &str) -> Result<Role, Reason> {
    Ok(match name.trim().to_ascii_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" | "human" | "prompter" => Role::User,
        "assistant" | "gpt" | "bing" | "chatgpt" | "bard" | "model" => Role::Assistant,
        "tool" | "observation" | "function" | "function_response" | "ipython" => Role::Tool,
        "function_call" | "tool_call" => return Err("tool calls".to_string()),
        _ => return Err("unknown role".to_string()),
    })
}

/// A text, null, or a list of parts `{"type": "text", "text" | "value"}`.
fn content_of(content: &Value) -> Result<String, Reason> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(text_of_part).collect(),
        _ => Err("a content that is not a text".to_string()),
    }
}

fn text_of_part(part: &Value) -> Result<String, Reason> {
    match part {
        Value::String(text) => Ok(text.clone()),
        Value::Object(object) if object.get("type").is_none_or(|kind| kind == "text") => {
            text_at(object, "text")
                .or_else(|| text_at(object, "value"))
                .ok_or_else(|| "a content part without a text".to_string())
        }
        _ => Err("a content part that is not a text".to_string()),
    }
}

fn text_at(row: &Object, key: &str) -> Option<String> {
    row.get(key).and_then(Value::as_str).map(str::to_string)
}

fn array_at<'a>(row: &'a Object, key: &str) -> Option<&'a [Value]> {
    row.get(key).and_then(Value::as_array).map(Vec::as_slice)
}
