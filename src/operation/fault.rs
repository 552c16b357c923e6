//! Why an operation failed.

use crate::reason::Code;

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The code for programs.
    pub code: Code,
    /// What happened, to what, and what to do next.
    pub message: String,
}

impl Fault {
    /// Returns a fault with this message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
