//! What a program says on standard output.

use std::fmt;
use std::io::Write;

/// Prints a line. A reader who went away, as `head` does, is no reason to fail: what matters is on disk.
pub fn tell(text: impl fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
