//! One thing told on several lines: names on the left, what they are on the right.

use std::fmt::{self, Write};

/// The lines so far.
#[derive(Default)]
pub(super) struct Lines(String);

impl Lines {
    /// Adds a line. Without a name it belongs to the one before.
    pub(super) fn line(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.0, "{name:<12}{text}");
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
