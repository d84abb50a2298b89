//! Where the values of a config were given, and the rules that many keys share.

use std::fmt::Display;
use std::path::Path;

use anyhow::{Result, bail};

use crate::config::origin::{Origins, key_and_section};

/// The given values' places, for the errors.
pub(super) struct Given<'a> {
    pub(super) origins: &'a Origins,
}

impl Given<'_> {
    pub(super) fn check(
        &self,
        holds: bool,
        key: &str,
        value: impl Display,
        rule: impl Display,
    ) -> Result<()> {
        if !holds {
            let (name, section) = key_and_section(key);
            bail!("{}: {name} = {value}{section} {rule}", self.origins.at(key));
        }
        Ok(())
    }

    pub(super) fn required(&self, path: &Path, key: &str, example: &str) -> Result<()> {
        if path.as_os_str().is_empty() {
            let (name, section) = key_and_section(key);
            bail!(
                "{}: {name}{section} is missing; add {example}",
                self.origins.at(key)
            );
        }
        Ok(())
    }

    pub(super) fn at_least(&self, value: usize, least: usize, key: &str) -> Result<()> {
        self.check(
            value >= least,
            key,
            value,
            format!("must be at least {least}"),
        )
    }

    pub(super) fn sampling(&self, temperature: f64, top_p: f64, section: &str) -> Result<()> {
        self.check(
            temperature.is_finite() && temperature >= 0.0,
            &format!("{section}.temperature"),
            temperature,
            "must be 0 (greedy) or more, and finite",
        )?;
        self.check(
            top_p > 0.0 && top_p <= 1.0,
            &format!("{section}.top_p"),
            top_p,
            "must be above 0 and at most 1",
        )
    }

    pub(super) fn model(&self, path: &Path, key: &str) -> Result<()> {
        let rule = if !path.exists() {
            "does not exist; give the folder of a Hugging Face model, relative to the current directory"
        } else if !path.is_dir() {
            "is not a folder; give the folder of a Hugging Face model"
        } else if !path.join("config.json").is_file() {
            "has no config.json; give the folder of a Hugging Face model"
        } else {
            return Ok(());
        };
        self.check(false, key, quoted(path), rule)
    }

    pub(super) fn file(&self, path: &Path, key: &str) -> Result<()> {
        let rule = if !path.exists() {
            "does not exist; give a file, relative to the current directory"
        } else if path.is_dir() {
            "is a folder; give a file in it"
        } else {
            return Ok(());
        };
        self.check(false, key, quoted(path), rule)
    }
}

/// As it would be written in the file.
pub(super) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}
