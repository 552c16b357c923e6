//! The trace of a run, one line for each event: a checksum of all lines, and the last lines for whoever searches for
//! a failure.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};

/// The number of lines shown of a run that fails, unless `ATTACHD_SIM_LINES` is set.
const KEPT: usize = 60;

pub(super) struct Trace {
    /// This hasher always begins with the same keys.
    sum: DefaultHasher,
    pub(super) lines: u64,
    last: VecDeque<String>,
    kept: usize,
}

impl Default for Trace {
    fn default() -> Self {
        let kept = std::env::var("ATTACHD_SIM_LINES").ok().and_then(|kept| kept.parse().ok());
        Self { sum: DefaultHasher::default(), lines: 0, last: VecDeque::new(), kept: kept.unwrap_or(KEPT) }
    }
}

impl Trace {
    pub(super) fn line(&mut self, line: String) {
        self.sum.write(line.as_bytes());
        self.sum.write_u8(b'\n');
        self.lines += 1;
        if self.last.len() >= self.kept {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Returns the checksum. It is the same for the same lines.
    pub(super) fn sum(&self) -> u64 {
        self.sum.finish()
    }

    pub(super) fn last(&self) -> String {
        let lines: Vec<String> = self.last.iter().map(|line| format!("  {line}")).collect();
        lines.join("\n") + "\n"
    }
}
