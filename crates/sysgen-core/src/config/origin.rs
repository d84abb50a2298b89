//! Where each value of the config came from, so that every error can point at it.

use std::collections::BTreeMap;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// 1-based line of the config file.
    Line(usize),
    /// The argument of a `--set`.
    Set(String),
}

/// The origins of all given keys, by dotted name (`generate.draft.top_p`).
#[derive(Debug)]
pub(super) struct Origins {
    /// The config file, as the user named it.
    file: String,
    keys: BTreeMap<String, Origin>,
}

impl Origins {
    pub(super) fn new(file: String) -> Origins {
        Origins {
            file,
            keys: BTreeMap::new(),
        }
    }

    pub(super) fn record(&mut self, key: &str, origin: Origin) {
        self.keys.insert(key.to_string(), origin);
    }

    /// Forgets a section with all its keys.
    pub(super) fn forget(&mut self, section: &str) {
        let inside = format!("{section}.");
        self.keys
            .retain(|key, _| key != section && !key.starts_with(&inside));
    }

    /// Where `key` was given, or the section it belongs to, or else the file: `x.toml:12`, `x.toml` or
    /// `--set a.b=1`.
    pub(super) fn at(&self, key: &str) -> String {
        match self.find(key) {
            Some(Origin::Line(line)) => self.line(*line),
            Some(Origin::Set(argument)) => format!("--set {argument}"),
            None => self.file.clone(),
        }
    }

    /// The line of [`Origins::at`]: 0 for the file as a whole, beyond all lines for a `--set`.
    pub(super) fn line_of(&self, key: &str) -> usize {
        match self.find(key) {
            Some(Origin::Line(line)) => *line,
            Some(Origin::Set(_)) => usize::MAX,
            None => 0,
        }
    }

    fn find(&self, key: &str) -> Option<&Origin> {
        let mut name = key;
        loop {
            match self.keys.get(name) {
                Some(origin) => return Some(origin),
                None => name = name.rsplit_once('.')?.0,
            }
        }
    }

    /// `x.toml:12`.
    pub(super) fn line(&self, line: usize) -> String {
        format!("{}:{line}", self.file)
    }

    /// The config file, as the user named it.
    pub(super) fn file(&self) -> &str {
        &self.file
    }
}

/// `generate.draft.top_p` as a reader of the file sees it: the key, and ` in [generate.draft]`.
pub(super) fn key_and_section(key: &str) -> (&str, String) {
    match key.rsplit_once('.') {
        Some((section, key)) => (key, format!(" in [{section}]")),
        None => (key, String::new()),
    }
}
