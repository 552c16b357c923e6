//! Shows one thing on several lines: the names on the left, the values on the right.

use std::fmt::{self, Write};

/// The lines so far.
#[derive(Default)]
pub(super) struct Lines(String);

impl Lines {
    /// Adds a line. A line without a name belongs to the line before.
    pub(super) fn line(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.0, "{name:<12}{text}");
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
