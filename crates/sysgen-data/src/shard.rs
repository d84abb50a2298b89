//! One part of a run, for several processes on one output folder: shard i of n has every n-th row. Each
//! shard has a log of its own beside the others', and reads all of them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use sysgen_core::{OutputLock, lock_output, lock_part};

/// Which rows a process works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    index: usize,
    count: usize,
}

impl Shard {
    /// All rows.
    pub const WHOLE: Shard = Shard { index: 1, count: 1 };

    /// The shard that a cluster gave this process: `SLURM_PROCID` of `SLURM_NTASKS`, else `RANK` of
    /// `WORLD_SIZE` (both count from 0). `variable` reads the environment.
    ///
    /// # Errors
    /// Neither pair is set, or not to numbers that fit.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Shard> {
        for (rank, size) in [("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE")] {
            let (Some(index), Some(count)) = (variable(rank), variable(size)) else {
                continue;
            };
            let number = |name: &str, text: &str| {
                text.trim()
                    .parse::<usize>()
                    .with_context(|| format!("--shard auto: {name} = {text} is no number"))
            };
            let (index, count) = (number(rank, &index)?, number(size, &count)?);
            return Shard::new(index + 1, count)
                .with_context(|| format!("--shard auto: {rank} = {index} and {size} = {count}"));
        }
        bail!(
            "--shard auto: neither SLURM_PROCID and SLURM_NTASKS nor RANK and WORLD_SIZE are set; write --shard 1/4 for the first of four"
        )
    }

    fn new(index: usize, count: usize) -> Result<Shard> {
        if index == 0 || index > count {
            bail!("a shard is one of 1/{count} to {count}/{count}");
        }
        Ok(Shard { index, count })
    }

    /// Whether this is all rows.
    pub fn is_whole(self) -> bool {
        self.count == 1
    }

    /// Whether the row at this position in the input is one of the shard's.
    pub(crate) fn has(self, position: usize) -> bool {
        position % self.count == self.index - 1
    }

    /// The file that its answers go to.
    pub(crate) fn log_file(self) -> String {
        if self.is_whole() {
            "log.jsonl".to_string()
        } else {
            format!("log-{}.jsonl", self.part())
        }
    }

    /// Locks what the shard writes to. Shards of another count have some of the same rows.
    pub(crate) fn lock(self, directory: &Path) -> Result<OutputLock> {
        if self.is_whole() {
            return lock_output(directory);
        }
        let count = format!("-of-{:05}", self.count);
        lock_part(directory, &self.part(), |other| !other.ends_with(&count))
    }

    fn part(self) -> String {
        format!("{:05}-of-{:05}", self.index, self.count)
    }
}

impl Default for Shard {
    fn default() -> Shard {
        Shard::WHOLE
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Shard> {
        let (index, count) = text
            .split_once('/')
            .and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)))
            .ok_or_else(|| anyhow!("write the shard and how many there are, as 1/4, or auto"))?;
        Shard::new(index, count)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shards_count_from_one_and_cover_every_row_once() {
        for count in 1..6 {
            for position in 0..20 {
                let owners = (1..=count)
                    .filter(|index| {
                        format!("{index}/{count}")
                            .parse::<Shard>()
                            .unwrap()
                            .has(position)
                    })
                    .count();
                assert_eq!(owners, 1);
            }
        }
        for wrong in ["0/4", "5/4", "0/0", "1", "a/b", "1/4/2"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
        assert_eq!(
            "3/16".parse::<Shard>().unwrap().log_file(),
            "log-00003-of-00016.jsonl"
        );
        assert_eq!("1/1".parse::<Shard>().unwrap(), Shard::WHOLE);
    }

    #[test]
    fn clusters_count_from_zero() {
        let environment = |set: &'static [(&str, &str)]| {
            Shard::from_environment(|name| {
                let found = set.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| value.to_string())
            })
        };
        let slurm = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "4"),
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
        ];
        assert_eq!(
            environment(Box::leak(Box::new(slurm))).unwrap().to_string(),
            "1/4"
        );
        assert_eq!(
            environment(&[("RANK", "1"), ("WORLD_SIZE", "2")])
                .unwrap()
                .to_string(),
            "2/2"
        );
        let error = format!(
            "{:#}",
            environment(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err()
        );
        assert!(error.contains("RANK = 2 and WORLD_SIZE = 2"), "{error}");
        assert!(environment(&[("RANK", "2")]).is_err());
    }
}
