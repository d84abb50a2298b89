//! How a program says things to a person.

use std::fmt;
use std::io::Write;

/// Prints a line on standard output. A reader who went away, as `head` does, is no reason to fail: what matters is on disk.
pub fn tell(text: impl fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// For a person: `0.4 s`, `40 s`, `3 min 5 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_units_at_most() {
        for (seconds, said) in [
            (0.44, "0.4 s"),
            (12.96, "12 s"),
            (59.9, "59 s"),
            (185.0, "3 min 5 s"),
            (7800.0, "2 h 10 min"),
        ] {
            assert_eq!(duration(seconds), said);
        }
    }
}
