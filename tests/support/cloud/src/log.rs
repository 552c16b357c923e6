//! The log: who called what, and what became of it.

use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt;

/// Parameters that say who calls, not what.
const NOT_LOGGED: [&str; 6] = ["apikey", "signature", "signatureversion", "expires", "response", "command"];

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// From 1 on, over all commands.
    pub number: u64,
    /// When it came.
    pub at: Timestamp,
    /// `GET` or `POST`.
    pub method: String,
    /// Such as `attachVolume`.
    pub command: String,
    /// What it says, by name in lower case; keys, signatures and times are left out.
    pub parameters: BTreeMap<String, String>,
    /// What became of it.
    pub outcome: Outcome,
    /// The server's answer was sent whole.
    pub answered: bool,
    /// When that was.
    pub answered_at: Option<Timestamp>,
    /// Nothing more becomes of it.
    pub over: bool,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is not decided yet.
    Pending,
    /// The server never heard of it.
    NotCarriedOut,
    /// It was carried out; the job that it has begun.
    Done(Option<String>),
    /// The server said no.
    Refused {
        /// The HTTP status.
        http: u16,
        /// In the server's words.
        text: String,
    },
}

impl Call {
    pub(crate) fn new(number: u64, method: &str, command: &str, parameters: &[(String, String)]) -> Call {
        let said = parameters.iter().map(|(name, value)| (name.to_lowercase(), value.clone()));
        let parameters = said.filter(|(name, _)| !NOT_LOGGED.contains(&name.as_str())).collect();
        let (method, command) = (method.to_owned(), command.to_owned());
        let outcome = Outcome::Pending;
        Call {
            number,
            at: Timestamp::now(),
            method,
            command,
            parameters,
            outcome,
            answered: false,
            answered_at: None,
            over: false,
        }
    }

    /// Whether the server has done what was asked.
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_))
    }

    /// A parameter, or "".
    pub fn get(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {} {}", self.number, self.method, self.command)?;
        self.parameters.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))?;
        match &self.outcome {
            Outcome::Pending => write!(f, ": pending")?,
            Outcome::NotCarriedOut => write!(f, ": not carried out")?,
            Outcome::Done(None) => write!(f, ": done")?,
            Outcome::Done(Some(job)) => write!(f, ": job {job}")?,
            Outcome::Refused { http, text } => write!(f, ": {http} {text}")?,
        }
        f.write_str(if self.answered { "" } else { " (no answer)" })
    }
}
