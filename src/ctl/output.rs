//! Writes results to standard output and errors to standard error, for people or for programs.

use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::ApiAnswer;
use super::failure::{DONE, FAILED, Failure};

/// The chosen output format.
pub(super) struct Output {
    json: bool,
}

impl Output {
    /// Makes an output: JSON, or text for people.
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Returns whether JSON was asked for.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether a line can be written again and again: text for people, on a terminal.
    pub(super) fn is_live(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// Prints an answer: as received, or in words.
    pub(super) fn answer<T: DeserializeOwned>(
        &self,
        answer: &ApiAnswer,
        words: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json { self.json(&answer.text) } else { self.text(&words(&answer.read()?)) }
    }

    /// Prints an answer and returns it, for a command whose exit status depends on it. `words` may fail. JSON is
    /// printed as received even if it cannot be parsed.
    pub(super) fn answer_and_read<T: DeserializeOwned>(
        &self,
        answer: &ApiAnswer,
        words: impl FnOnce(&T) -> Result<String, Failure>,
    ) -> Result<T, Failure> {
        if self.json {
            self.json(&answer.text)?;
        }
        let read = answer.read()?;
        let words = words(&read)?;
        if !self.json {
            self.text(&words)?;
        }
        Ok(read)
    }

    /// Prints JSON: on several lines at a terminal, otherwise on one line.
    pub(super) fn json(&self, text: &str) -> Result<(), Failure> {
        let pretty = || serde_json::to_string_pretty(&serde_json::from_str::<Value>(text).ok()?).ok();
        let spread = if io::stdout().is_terminal() { pretty() } else { None };
        self.text(&format!("{}\n", spread.as_deref().unwrap_or(text)))
    }

    /// Prints text and flushes it.
    #[expect(clippy::unused_self, reason = "whoever prints has an Output")]
    pub(super) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Prints a remark to standard error. An error is ignored, because it could not be reported anywhere.
    #[expect(clippy::unused_self, reason = "whoever prints has an Output")]
    pub(super) fn remark(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Prints a failure and returns the exit status.
    pub(super) fn failure(&self, failure: &Failure) -> u8 {
        match failure {
            Failure::Reported { status, body } => {
                if self.json {
                    self.remark(&serde_json::to_string(body).unwrap_or_default());
                } else {
                    self.remark(&format!("attachctl: {}\ncode: {}", body.error, body.code));
                }
                *status
            }
            // The reader of the pipe has closed it (`| head`).
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => DONE,
            Failure::Output(error) => {
                self.remark(&format!("attachctl: the result cannot be written: {error}"));
                FAILED
            }
        }
    }
}
