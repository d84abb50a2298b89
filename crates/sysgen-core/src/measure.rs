//! What benchmarks say of their model and their process, alike in all of them.

use std::fmt;

use serde::Serialize;

/// The model that is measured, and where.
#[derive(Serialize)]
pub struct Measured {
    /// What computes, by name.
    pub device: String,
    /// The model's folder or `config.json`.
    pub model: String,
    /// How many numbers it has.
    pub parameters: usize,
    /// `loaded` or `random`.
    pub weights: &'static str,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:.1} million parameters, {} weights",
            self.model,
            self.parameters as f64 / 1e6,
            self.weights
        )
    }
}

/// The most memory that was held, in MiB.
#[derive(Serialize)]
pub struct PeakMemory {
    /// On the device, where it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_device_memory_mib: Option<u64>,
    /// By this process, where the system tells.
    pub peak_rss_mib: Option<u64>,
}

impl PeakMemory {
    /// Of this process so far, and of a device that has reserved so many bytes.
    pub fn with_device(bytes: Option<u64>) -> PeakMemory {
        PeakMemory {
            peak_device_memory_mib: bytes.map(|bytes| bytes >> 20),
            peak_rss_mib: peak_rss_mib(),
        }
    }
}

/// Lines, each with its line end before it.
impl fmt::Display for PeakMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mib) = self.peak_device_memory_mib {
            write!(f, "\npeak device memory: {mib} MiB")?;
        }
        if let Some(mib) = self.peak_rss_mib {
            write!(f, "\npeak memory of the process: {mib} MiB")?;
        }
        Ok(())
    }
}

/// The most memory this process has held so far, in MiB; `None` where the system does not tell (all but Linux).
pub fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.div_ceil(1024))
}

/// Lets [`peak_rss_mib`] count from here on, from what the process holds now. False where the system does not allow it.
pub fn forget_peak_rss() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Seconds since this process was started; `None` where the system does not tell (all but Linux).
pub fn process_seconds() -> Option<f64> {
    /// `USER_HZ`, which Linux has fixed for all programs (`man 5 proc`).
    const TICKS: f64 = 100.0;
    let status = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may hold anything; the start is the twentieth number after it.
    let start: f64 = status
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some((uptime - start / TICKS).max(0.0))
}

/// The middle one of these numbers, the upper of two; NaN of none.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The smallest of these numbers; infinity of none.
pub fn least(numbers: &[f64]) -> f64 {
    numbers.iter().copied().fold(f64::INFINITY, f64::min)
}

/// A number with so many decimals, for JSON that people read too.
pub fn rounded(number: f64, decimals: i32) -> f64 {
    let unit = 10_f64.powi(decimals);
    (number * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_upper_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 3.0);
        assert!(median(&[]).is_nan());
        assert_eq!(least(&[3.0, 1.0]), 1.0);
        assert_eq!(rounded(1.23456, 2), 1.23);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_memory_and_an_age() {
        assert!(peak_rss_mib().is_some_and(|mib| mib > 0));
        let before = std::hint::black_box(vec![1u8; 256 << 20]).len() as u64 >> 20;
        assert!(peak_rss_mib().is_some_and(|mib| mib > before));
        let forgotten = forget_peak_rss();
        assert!(!forgotten || peak_rss_mib().is_some_and(|mib| mib < before));
        assert!(process_seconds().is_some_and(|seconds| (0.0..3600.0).contains(&seconds)));
    }
}
