//! Asks attachd-helper, the one privileged program, for what attachd may not do itself.
//!
//! One line to ask, one line of JSON as the answer. Its silence is an answer too: "unknown".

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::device::DevNum;
use crate::identity::Serial;

/// The helper answers in milliseconds; systemd may have to start it first.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The code for "no NBD server has this device open".
const NOT_OPEN: &str = "NOT_OPEN";

/// Where the helper listens.
#[derive(Debug, Clone)]
pub struct HelperClient {
    socket: PathBuf,
}

/// No usable answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HelperError {
    /// It does not answer.
    #[error("attachd-helper does not answer at {0}: {1}")]
    Silent(String, String),
    /// Nobody waits for its answer any more.
    #[error("the question to attachd-helper has no answer: {0}")]
    Died(String),
    /// It answered that it will not.
    #[error("attachd-helper refused: {message} ({code})")]
    Refused {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
}

/// NBD clients, by their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// The addresses. None, of a disk that is open: somebody who cannot be seen has it open.
    pub clients: Vec<String>,
    /// All of these use this disk. If not, some may use others: one server's clients cannot always be told apart.
    pub exact: bool,
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let candidates = if self.exact { "" } else { "; some of these may use other exports" };
        write!(f, "{}{candidates}", self.clients.join(", "))
    }
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    clients: Vec<String>,
    #[serde(default)]
    exact: bool,
}

impl HelperClient {
    /// A client of the helper that listens there.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Has udev look at the present disk of this serial again: marks a claimed one, un-marks one that is no longer claimed.
    pub async fn retrigger(&self, serial: Serial) -> Result<(), HelperError> {
        self.ask(&format!("retrigger {serial}\n")).await.map(drop)
    }

    /// The clients that have this device open; `None`: no NBD server has it open.
    pub async fn holders(&self, devnum: DevNum) -> Result<Option<Holders>, HelperError> {
        match self.ask(&format!("holders {devnum}\n")).await {
            Ok(Answer { clients, exact, .. }) => Ok(Some(Holders { clients, exact })),
            Err(HelperError::Refused { code, .. }) if code == NOT_OPEN => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the disks this host lives on written down, so that they are never claimed.
    pub async fn host_disks(&self) -> Result<(), HelperError> {
        self.ask("host-disks\n").await.map(drop)
    }

    /// Has nbd-server's main process told to read its files again.
    pub async fn reload(&self) -> Result<(), HelperError> {
        self.ask("reload\n").await.map(drop)
    }

    async fn ask(&self, line: &str) -> Result<Answer, HelperError> {
        let silent = |why: String| HelperError::Silent(self.socket.display().to_string(), why);
        let answer = match tokio::time::timeout(TIME_LIMIT, self.exchange(line)).await {
            Ok(answer) => answer.map_err(|error| silent(error.to_string()))?,
            Err(_) => return Err(silent(format!("no answer within {} s", TIME_LIMIT.as_secs()))),
        };
        let answer: Answer =
            serde_json::from_str(&answer).map_err(|error| silent(format!("not an answer: {error}")))?;
        if answer.ok { Ok(answer) } else { Err(HelperError::Refused { code: answer.code, message: answer.error }) }
    }

    async fn exchange(&self, line: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        Ok(answer)
    }
}
