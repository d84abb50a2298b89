//! `[data.columns]`: rows whose columns have names of their own are put into a known format.

use serde_json::{Map, Value};
use sysgen_core::config::ColumnsSection;
use sysgen_core::message::Message;

use crate::input::format::{self, Reason, conversation, with_input};

/// The name that rows read by their configured columns are counted under.
const BY_COLUMNS: &str = "data.columns";

/// The turns of one row, by the configured columns where there are any and by its format otherwise.
pub(crate) fn messages_of(
    row: &Value,
    columns: &ColumnsSection,
) -> Result<(Vec<Message>, &'static str), Reason> {
    let named = [&columns.messages, &columns.question];
    let (mut messages, format) = match (row, named.iter().all(|name| name.is_empty())) {
        (_, true) => format::messages_of(row)?,
        (Value::Object(row), false) => (by_columns(row, columns)?, BY_COLUMNS),
        (_, false) => return Err("not a JSON object".to_string()),
    };
    if !columns.system.is_empty()
        && let Some(Value::String(system)) = row.get(&columns.system)
        && !system.trim().is_empty()
    {
        messages.retain(|message| message.role != sysgen_core::Role::System);
        messages.insert(0, Message::system(system));
    }
    Ok((messages, format))
}

fn by_columns(row: &Map<String, Value>, columns: &ColumnsSection) -> Result<Vec<Message>, Reason> {
    if !columns.messages.is_empty() {
        let Some(list) = row.get(&columns.messages).and_then(Value::as_array) else {
            return Err(format!("no list of turns in column {}", columns.messages));
        };
        return Ok(conversation(list)?.0);
    }
    let mut question = text(row, &columns.question)?;
    if let Some(Value::String(input)) = row.get(&columns.input) {
        question = with_input(&question, input);
    }
    let answer = text(row, &columns.answer)?;
    Ok(vec![Message::user(question), Message::assistant(answer)])
}

/// A number is a text, too: the answer of a sum for example.
fn text(row: &Map<String, Value>, column: &str) -> Result<String, Reason> {
    match row.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => Err(format!("no text in column {column}")),
    }
}

/// The row's own id.
pub(crate) fn own_id(row: &Value, columns: &ColumnsSection) -> Option<String> {
    let column = if columns.id.is_empty() {
        "id"
    } else {
        &columns.id
    };
    match row.get(column)? {
        Value::String(id) if !id.trim().is_empty() => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}
