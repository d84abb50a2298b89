//! Which answers of a row are to be learnt: `"weight": 0` makes one context (OpenAI's key), and so does standing in the
//! prompt of a prompt/completion row, of which TRL learns the completion alone.

use serde_json::Value;
use sysgen_core::config::ColumnsSection;
use sysgen_core::message::{Message, Role};

use crate::input::format::role_named;

/// For each answer among `messages`, which are the turns of `row`: is it to be learnt?
pub(crate) fn answers(row: &Value, columns: &ColumnsSection, messages: &[Message]) -> Vec<bool> {
    let count = messages
        .iter()
        .filter(|message| message.role == Role::Assistant)
        .count();
    let list = |key: &str| row.get(key).and_then(Value::as_array);
    let by_name = !columns.messages.is_empty() || !columns.question.is_empty();
    let known = ["messages", "conversations", "conversation"];
    let turns = match by_name {
        true => list(&columns.messages),
        false => known.iter().find_map(|key| list(key)),
    };
    let learnt: Vec<bool> = match (turns, list("prompt"), list("completion")) {
        (Some(turns), ..) => of_turns(turns).collect(),
        (None, Some(prompt), Some(completion)) if !by_name => {
            let context = of_turns(prompt).map(|_| false);
            context.chain(of_turns(completion)).collect()
        }
        _ => Vec::new(),
    };
    // The formats without lists of turns say nothing of their answers.
    match learnt.len() == count {
        true => learnt,
        false => vec![true; count],
    }
}

/// One for each answer of a list of turns.
fn of_turns(turns: &[Value]) -> impl Iterator<Item = bool> {
    let is_answer = |turn: &&Value| {
        let speaker = turn.get("from").or_else(|| turn.get("role"));
        match speaker.and_then(Value::as_str) {
            Some(name) => role_named(name).is_ok_and(|role| role == Role::Assistant),
            None => turn.get("input").is_some(), // Capybara's question and answer in one
        }
    };
    let weight = |turn: &Value| turn.get("weight").and_then(Value::as_f64);
    let learnt = move |turn| weight(turn) != Some(0.0);
    turns.iter().filter(is_answer).map(learnt)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::input::columns::messages_of;

    fn learnt(row: &str, columns: &ColumnsSection) -> Vec<bool> {
        let row = serde_json::from_str(row).unwrap();
        let (messages, _) = messages_of(&row, columns).unwrap();
        answers(&row, columns, &messages)
    }

    #[test]
    fn an_answer_of_weight_zero_or_in_a_prompt_is_context() {
        let columns = ColumnsSection::default();
        let chat = r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0},
            {"role":"user","content":"c"},{"role":"assistant","content":"d","weight":null}]"#;
        let shared = r#"[{"from":"human","value":"a"},{"from":"gpt","value":"b","weight":0.0},
            {"from":"human","value":"c"},{"from":"gpt","value":"d","weight":1}]"#;
        let pairs = r#"[{"input":"a","output":"b","weight":0},{"input":"c","output":"d"}]"#;
        for row in [
            format!(r#"{{"messages":{chat}}}"#),
            format!(r#"{{"system":"s","conversations":{chat}}}"#),
            format!(r#"{{"conversations":{shared}}}"#),
            format!(r#"{{"conversation":{pairs}}}"#),
        ] {
            assert_eq!(learnt(&row, &columns), [false, true], "{row}");
        }
        let (prompt, completion) = chat.split_at(chat.rfind(",{").unwrap());
        let completion = completion.trim_start_matches(',');
        let row = format!(r#"{{"prompt":{prompt}],"completion":[{completion}}}"#);
        assert_eq!(
            learnt(&row.replace(r#","weight":0"#, ""), &columns),
            [false, true]
        );
        let named = ColumnsSection {
            messages: "turns".to_string(),
            ..ColumnsSection::default()
        };
        // The column that is named counts, not another one.
        let other = r#"[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]"#;
        let row = format!(r#"{{"messages":{other},"turns":{chat}}}"#);
        assert_eq!(learnt(&row, &named), [false, true]);
    }

    #[test]
    fn every_other_answer_is_learnt() {
        let columns = ColumnsSection::default();
        let history = r#"{"instruction":"c","output":"d","history":[["a","b"]]}"#;
        assert_eq!(learnt(history, &columns), [true, true]);
        assert_eq!(learnt(r#"{"question":"a","answer":"b"}"#, &columns), [true]);
        let text = r#"{"prompt":"a","completion":"b"}"#;
        assert_eq!(learnt(text, &columns), [true]);
    }
}
