//! Where the values of a config were given, what is wrong with them, and the rules that many keys share.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::Path;

use crate::config::origin::{Origins, key_and_section};
use crate::config::why_no_model;

/// The given values' places, and what has been found wrong so far.
pub(super) struct Given<'a> {
    pub(super) origins: &'a Origins,
    /// Key, line (those of `--set` last) and what is told.
    pub(super) faults: RefCell<Vec<(String, usize, String)>>,
}

impl Given<'_> {
    pub(super) fn in_file_order(self) -> Vec<String> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|(_, line, _)| *line);
        faults.into_iter().map(|(.., fault)| fault).collect()
    }

    /// Notes the first thing that is wrong with `key`, `""` for the file as a whole.
    pub(super) fn fault(&self, key: &str, fault: String) {
        let mut faults = self.faults.borrow_mut();
        if !faults.iter().any(|(known, ..)| known == key) {
            faults.push((key.to_string(), self.origins.line_of(key), fault));
        }
    }

    /// Whether the rule `holds`; noted as a fault where it does not.
    pub(super) fn check(
        &self,
        holds: bool,
        key: &str,
        value: impl Display,
        rule: impl Display,
    ) -> bool {
        if !holds {
            let (name, section) = key_and_section(key);
            let at = self.origins.at(key);
            self.fault(key, format!("{at}: {name} = {value}{section} {rule}"));
        }
        holds
    }

    pub(super) fn required(&self, path: &Path, key: &str, example: &str) -> bool {
        let given = !path.as_os_str().is_empty();
        if !given {
            let (name, section) = key_and_section(key);
            let at = self.origins.at(key);
            self.fault(
                key,
                format!("{at}: {name}{section} is missing; add {example}"),
            );
        }
        given
    }

    pub(super) fn at_least(&self, value: usize, least: usize, key: &str) {
        self.check(
            value >= least,
            key,
            value,
            format_args!("must be at least {least}"),
        );
    }

    pub(super) fn sampling(&self, temperature: f64, top_p: f64, section: &str) {
        self.check(
            temperature.is_finite() && temperature >= 0.0,
            &format!("{section}.temperature"),
            temperature,
            "must be 0 (greedy) or more, and finite",
        );
        self.check(
            top_p > 0.0 && top_p <= 1.0,
            &format!("{section}.top_p"),
            top_p,
            "must be above 0 and at most 1",
        );
    }

    pub(super) fn model(&self, path: &Path, key: &str) {
        if let Some(rule) = why_no_model(path) {
            self.check(false, key, quoted(path), rule);
        }
    }

    pub(super) fn file(&self, path: &Path, key: &str) {
        let rule = if !path.exists() {
            "does not exist; give a file, relative to the current directory"
        } else if path.is_dir() {
            "is a folder; give a file in it"
        } else {
            return;
        };
        self.check(false, key, quoted(path), rule);
    }
}

/// As it would be written in the file.
pub(super) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
