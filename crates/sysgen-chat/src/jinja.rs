//! Jinja as Python's `jinja2` behaves inside `transformers` (`chat_template_utils.py:_compile_jinja_template`):
//! the functions, filters, string methods and printing rules chat templates rely on. What a conversation is,
//! is left to `template`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde::Serialize;

/// What `raise_exception` was called with; kept as the source of the engine's error so that a template's own
/// refusal can be told from a failure of the template.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub(crate) String);

/// An empty environment with transformers' settings.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(false);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|output, state, value| match value.kind() {
        // Python prints these three with a capital.
        ValueKind::Bool => Ok(output.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(output.write_str("None")?),
        _ => minijinja::escape_formatter(output, state, value),
    });
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone())
                .with_source(Raised(message)))
        },
    );
    // One reading of the clock for all rows: a run that crosses midnight must not change its prompts.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    set_clock(&mut environment, now);
    environment.add_filter("tojson", to_json);
    environment.add_filter("trim", trim_filter);
    environment
}

/// Has `strftime_now` tell this time, in seconds since 1970 (UTC).
pub(crate) fn set_clock(environment: &mut Environment, now: u64) {
    environment.add_function("strftime_now", move |format: String| strftime(now, &format));
}

/// Python's `str.strip()`: Unicode white space and the four ASCII separators that Rust does not count.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn trim_filter(text: String, characters: Option<String>) -> String {
    match characters {
        Some(set) => text.trim_matches(|c| set.contains(c)).to_owned(),
        None => trim(&text).to_owned(),
    }
}

/// Methods on strings and maps; `strip` and its kin follow Python's idea of white space.
fn method(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let (Some(text), true) = (value.as_str(), arguments.is_empty()) {
        match name {
            "strip" => return Ok(Value::from(trim(text))),
            "lstrip" => return Ok(Value::from(text.trim_start_matches(is_space))),
            "rstrip" => return Ok(Value::from(text.trim_end_matches(is_space))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: no HTML escapes, and a space after `,` and `:`.
fn to_json(value: Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    // Accepted because templates pass it; false is what transformers' own filter does.
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, formatter,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, Spaced,
        )),
    };
    written.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}")))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Python's default separators.
struct Spaced;

/// What stands before a value of an array or a key of an object.
fn separator(first: bool) -> &'static [u8] {
    if first { b"" } else { b", " }
}

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(separator(first))
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(separator(first))
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// The directives chat templates use, in UTC; another one is an error rather than a silently different prompt.
fn strftime(seconds: u64, format: &str) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let clock = seconds % 86_400;
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let (month_name, weekday) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive = characters.next();
        let piece = match directive {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('-') => match characters.next() {
                Some('d') => format!("{day}"),
                Some('m') => format!("{month}"),
                _ => return Err(unknown_directive(format)),
            },
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            _ => return Err(unknown_directive(format)),
        };
        text.push_str(&piece);
    }
    Ok(text)
}

fn unknown_directive(format: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("strftime_now: `{format}` has a directive that is not supported"),
    )
}

/// Year, month (1-12) and day of the Gregorian calendar, days counted from 1970-01-01. Whole years are taken off
/// one by one: it runs once per rendering that asks for the date.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    loop {
        let length = match month {
            2 => 28 + u64::from(leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if days < length {
            return (year, month, days + 1);
        }
        days -= length;
        month += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let mut environment = environment();
        environment
            .add_template_owned("t", source.to_owned())
            .unwrap();
        let value = serde_json::json!({"b": "<a> & 'é'", "a": [1, 2.5, null, true]});
        environment
            .get_template("t")
            .unwrap()
            .render(minijinja::context! { value })
            .unwrap()
    }

    // The expected texts are what jinja2 3.1.6 with transformers' settings prints.
    #[test]
    fn values_print_as_python_prints_them() {
        assert_eq!(
            render("{{ true }} {{ none }} {{ missing }}|"),
            "True None |"
        );
        assert_eq!(
            render("{{ value | tojson }}"),
            r#"{"b": "<a> & 'é'", "a": [1, 2.5, null, true]}"#
        );
        assert_eq!(render("{{ [1] | tojson(indent=4) }}"), "[\n    1\n]");
        assert_eq!(
            render(
                "{{ '\u{1f} x\u{3000}' | trim }}|{{ ' x\u{1c}'.strip() }}|{{ 'xay'.split('a')[-1] }}"
            ),
            "x|x|y"
        );
        assert_eq!(
            render(
                "{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}\n"
            ),
            "13"
        );
    }

    #[test]
    fn dates_follow_the_calendar() {
        let format = "%d %b %Y|%A, %B %-d|%H:%M:%S %I %p|%F";
        assert_eq!(
            strftime(0, format).unwrap(),
            "01 Jan 1970|Thursday, January 1|00:00:00 12 AM|1970-01-01"
        );
        // date -u -d @1709210096
        assert_eq!(
            strftime(1_709_210_096, format).unwrap(),
            "29 Feb 2024|Thursday, February 29|12:34:56 12 PM|2024-02-29"
        );
        assert!(strftime(0, "%Q").is_err());
    }
}
