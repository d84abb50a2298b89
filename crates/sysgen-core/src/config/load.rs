//! The config file and `--set` become a `RunConfig`. Unknown keys and wrong types are errors that point
//! at the line. The keys a section has and their types are read off the sections' own defaults, so
//! that there is no second list of them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::RunConfig;
use super::check;
use super::origin::{Origin, Origins, key_and_section};
use crate::files::explain;

/// Names closer than this (Jaro-Winkler, 0 to 1) are offered as what was meant.
const SIMILAR: f64 = 0.8;

/// Sections whose presence decides what runs.
const STAGES: [&str; 4] = ["generate", "train", "distill", "export"];

pub(super) fn load(path: &Path, overrides: &[String]) -> Result<RunConfig> {
    let text = fs::read_to_string(path).map_err(|error| explain("read", path, error))?;
    let mut draft = Draft::from_file(path, text.trim_start_matches('\u{feff}'))?;
    for argument in overrides {
        if let Err(fault) = draft.set(argument) {
            draft.faults.push(fault.to_string());
        }
    }
    // What a misspelt key was to say is unknown, so the rules would find faults that are none.
    none_wrong(&draft.faults)?;
    let config =
        RunConfig::deserialize(draft.values).with_context(|| draft.origins.file().to_string())?;
    none_wrong(&check::faults(&config, &draft.origins))?;
    Ok(config)
}

/// One fault is one line; several stand below their number.
fn none_wrong(faults: &[String]) -> Result<()> {
    match faults {
        [] => Ok(()),
        [fault] => bail!("{fault}"),
        faults => bail!("{} mistakes:\n  {}", faults.len(), faults.join("\n  ")),
    }
}

/// The values given so far.
struct Draft {
    values: Table,
    origins: Origins,
    /// Every section and key there is, at its default.
    known: Table,
    /// What was wrong with keys and types so far.
    faults: Vec<String>,
}

impl Draft {
    fn from_file(path: &Path, text: &str) -> Result<Draft> {
        let mut draft = Draft {
            values: Table::new(),
            origins: Origins::new(path.display().to_string()),
            known: Table::try_from(RunConfig::with_all_sections())
                .expect("defaults can be written as TOML"),
            faults: Vec::new(),
        };
        let parsed = DeTable::parse(text).map(|table| (table, text.parse::<Table>()));
        let (table, values) = match parsed {
            Ok((table, Ok(values))) => (table, values),
            Ok((_, Err(error))) | Err(error) => {
                let line = line_of(text, error.span().map_or(0, |span| span.start));
                let message = error.message().replace('\n', ", ");
                bail!("{}: {message}", draft.origins.line(line));
            }
        };
        draft.read(text, table.get_ref(), &values, "");
        draft.values = values;
        Ok(draft)
    }

    /// Checks the keys and types of one section of the file and notes their lines. `spans` and `values`
    /// are the same table.
    fn read(&mut self, text: &str, spans: &DeTable, values: &Table, section: &str) {
        // In the order of the file, so that its faults are too.
        let mut entries: Vec<_> = spans.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, spanned) in entries {
            let line = line_of(text, key.span().start);
            let name: &str = key.get_ref();
            let dotted = join(section, name);
            self.origins.record(&dotted, Origin::Line(line));
            let value = &values[name];
            if let (DeValue::Table(spans), Value::Table(values)) = (spanned.get_ref(), value)
                && self.known_section(&dotted)
            {
                self.read(text, spans, values, &dotted);
            } else if let Err(fault) = self.read_key(&self.origins.line(line), &dotted, value) {
                self.faults.push(fault.to_string());
            }
        }
    }

    fn read_key(&self, at: &str, dotted: &str, value: &Value) -> Result<()> {
        ensure!(
            !self.find(at, dotted)?.is_table(),
            "{at}: `{dotted}` is a section; write [{dotted}] and its keys below it"
        );
        self.accept(at, dotted, value)
    }

    fn known_section(&self, dotted: &str) -> bool {
        self.find("", dotted).is_ok_and(Value::is_table)
    }

    /// Applies one `--set`.
    fn set(&mut self, argument: &str) -> Result<()> {
        let at = format!("--set {argument}");
        let (key, raw) = argument
            .split_once('=')
            .with_context(|| format!("{at}: write section.key=value"))?;
        let (key, raw) = (key.trim(), raw.trim());
        let parsed = raw.parse::<Value>().ok();
        match (self.find(&at, key)?, parsed) {
            (Value::Table(_), Some(Value::Table(values))) => {
                self.section(key, argument);
                for (name, value) in values {
                    self.set(&format!("{key}.{name}={value}"))?;
                }
                Ok(())
            }
            (Value::Table(_), Some(Value::Boolean(true))) if STAGES.contains(&key) => {
                self.section(key, argument);
                Ok(())
            }
            (Value::Table(_), Some(Value::Boolean(false))) if STAGES.contains(&key) => {
                self.values.remove(key);
                self.origins.forget(key);
                Ok(())
            }
            (Value::Table(known), _) => {
                let example = known.keys().next().map_or("key", String::as_str);
                let or = if STAGES.contains(&key) {
                    format!(", or {key}=true or {key}=false to put the section in or take it out")
                } else {
                    String::new()
                };
                bail!("{at}: `{key}` is a section; set its keys, as in {key}.{example}=…{or}");
            }
            (_, parsed) => {
                // `output_dir=2026` means the text: what the shell passes has no quotes.
                let text = Value::String(raw.to_string());
                let value = match parsed {
                    Some(value) if self.accept(&at, key, &value).is_ok() => value,
                    Some(value) if self.accept(&at, key, &text).is_err() => {
                        return self.accept(&at, key, &value);
                    }
                    _ => text,
                };
                self.accept(&at, key, &value)?;
                let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
                self.section(section, argument)
                    .insert(name.to_string(), value);
                self.origins.record(key, Origin::Set(argument.to_string()));
                Ok(())
            }
        }
    }

    /// The table of a section, put in by `argument` when the file has none.
    fn section(&mut self, section: &str, argument: &str) -> &mut Table {
        let mut table = &mut self.values;
        let mut dotted = String::new();
        for name in section.split('.').filter(|name| !name.is_empty()) {
            dotted = join(&dotted, name);
            if !table.contains_key(name) {
                self.origins
                    .record(&dotted, Origin::Set(argument.to_string()));
            }
            let value = table
                .entry(name)
                .or_insert_with(|| Value::Table(Table::new()));
            if !value.is_table() {
                // The file has a value in the place of a section, which is a fault that is noted already.
                *value = Value::Table(Table::new());
            }
            table = value.as_table_mut().expect("it is a table now");
        }
        table
    }

    /// The default of a key or section, or an error that says what was meant.
    fn find(&self, at: &str, dotted: &str) -> Result<&Value> {
        let mut section = String::new();
        let mut table = &self.known;
        let mut parts = dotted.split('.').peekable();
        while let Some(name) = parts.next() {
            let Some(value) = table.get(name) else {
                bail!("{}", self.unknown(at, &section, table, name));
            };
            if parts.peek().is_none() {
                return Ok(value);
            }
            section = join(&section, name);
            table = value
                .as_table()
                .with_context(|| format!("{at}: `{section}` is a key, not a section"))?;
        }
        bail!("{at}: a key is missing before `=`")
    }

    fn unknown(&self, at: &str, section: &str, table: &Table, name: &str) -> String {
        let place = match section {
            "" => "at the top of the file".to_string(),
            section => format!("in [{section}]"),
        };
        let mut elsewhere = Vec::new();
        sections_with(&self.known, "", name, &mut elsewhere);
        let hint = match (meant(table, name), elsewhere.as_slice()) {
            (Some(keys), _) => format!("did you mean {keys}?"),
            (None, []) => {
                let keys: Vec<String> = table.keys().map(|key| format!("`{key}`")).collect();
                format!("its keys are {}", keys.join(", "))
            }
            (None, sections) => format!("it belongs to {}", sections.join(", ")),
        };
        format!("{at}: unknown key `{name}` {place}; {hint}")
    }

    /// Whether `value` has the type of the key; otherwise an error that says what is allowed.
    fn accept(&self, at: &str, dotted: &str, value: &Value) -> Result<()> {
        let Err(message) = self.read_with(dotted, value.clone()) else {
            return Ok(());
        };
        let expected = match self.find(at, dotted)? {
            // Its default is one word, which looks like a text.
            _ if dotted == "train.lora_target_modules" => {
                "a module in quotes, or a list of modules".to_string()
            }
            Value::Integer(_) => "a whole number, 0 or more".to_string(),
            Value::Float(_) => "a number".to_string(),
            Value::Boolean(_) => "true or false".to_string(),
            Value::Array(_) if dotted == "data.weights" => {
                "a list of numbers, one for each file".to_string()
            }
            Value::Array(_) if dotted == "train.report_to" => {
                "`tensorboard`, or a list with it".to_string()
            }
            Value::Array(_) if dotted == "train.devices" => {
                "`cpu`, `cuda` or `cuda:<index>`, or a list of them".to_string()
            }
            Value::Array(_) => "a file in quotes, or a list of files".to_string(),
            // A word no key accepts makes serde list those that are.
            _ => match self.read_with(dotted, Value::String("\0".to_string())) {
                Ok(()) => "text in quotes".to_string(),
                Err(listing) => after_expected(&listing).unwrap_or(message),
            },
        };
        let (key, section) = key_and_section(dotted);
        Err(anyhow!(
            "{at}: {key} = {value}{section} is not allowed; expected {expected}"
        ))
    }

    /// Reads the defaults with one value in the place of `dotted`; the error is serde's.
    fn read_with(&self, dotted: &str, value: Value) -> Result<(), String> {
        let mut whole = self.known.clone();
        let mut table = &mut whole;
        let (sections, name) = dotted.rsplit_once('.').unwrap_or(("", dotted));
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let Some(Value::Table(inner)) = table.get_mut(section) else {
                return Err(format!("`{section}` is not a section"));
            };
            table = inner;
        }
        table.insert(name.to_string(), value);
        RunConfig::deserialize(whole)
            .map(|_| ())
            .map_err(|error| error.message().to_string())
    }
}

/// The keys of `table` that `name` may stand for: one spelt nearly so, or else those that have it among
/// their words (`epochs`) or are abbreviated by it (`lr`).
fn meant(table: &Table, name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let similar = table
        .keys()
        .map(|key| (strsim::jaro_winkler(key, &name), key))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, key)) = similar {
        return Some(format!("`{key}`"));
    }
    let initials =
        |key: &str| -> String { key.split('_').flat_map(|w| w.chars().next()).collect() };
    let holds = |key: &str| format!("_{key}_").contains(&format!("_{name}_"));
    let keys: Vec<String> = table
        .keys()
        .filter(|key| !name.is_empty() && (holds(key) || initials(key) == name))
        .map(|key| format!("`{key}`"))
        .collect();
    (!keys.is_empty()).then(|| keys.join(" or "))
}

/// What serde says is expected: "unknown variant `a`, expected `b` or `c`" gives "`b` or `c`".
fn after_expected(message: &str) -> Option<String> {
    let (_, expected) = message.rsplit_once("expected ")?;
    let expected = expected.lines().next()?;
    Some(expected.replace("one of ", "").trim().to_string())
}

fn sections_with(table: &Table, section: &str, name: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        if let Value::Table(inner) = value {
            let inner_section = join(section, key);
            if inner.get(name).is_some_and(|value| !value.is_table()) {
                found.push(format!("[{inner_section}]"));
            }
            sections_with(inner, &inner_section, name, found);
        }
    }
}

fn join(section: &str, name: &str) -> String {
    match section {
        "" => name.to_string(),
        section => format!("{section}.{name}"),
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests;
