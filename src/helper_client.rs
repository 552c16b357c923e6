//! Sends requests to attachd-helper, the privileged program.
//!
//! A request is one line; the answer is one line of JSON. No answer means "unknown". A silent helper is asked again
//! with a back-off until it answers, so that health does not report it as silent when it is back.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::device::DevNum;
use crate::identity::Serial;
use crate::reason::HelperCode;

/// The time limit of a request, from the moment it has a slot. The helper answers in milliseconds, but systemd may
/// have to start it first.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The limit of requests at one time: as many as the helper serves. More would overflow its socket's queue.
const AT_ONCE: usize = 16;

/// The pause before a full queue is tried again; other programs may have filled it.
const QUEUE_FULL: Duration = Duration::from_millis(20);

/// The first and the longest back-off before a silent helper is asked again; it doubles in between.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// The request that records the host's own disks.
const HOST_DISKS: &str = "host-disks\n";

/// A client of the helper. All clones share the slots and the known state of the helper.
#[derive(Debug, Clone)]
pub struct HelperClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The path of the helper's socket.
    socket: PathBuf,
    limit: Duration,
    slots: Semaphore,
    known: Mutex<LastKnown>,
    /// How many connections attachd itself has just now that have a disk open, and that are no handshakes.
    opened: Mutex<HashMap<DevNum, usize>>,
}

/// As long as it is held, attachd itself has a disk open by a connection to the NBD server.
pub struct HasOpen {
    shared: Arc<Shared>,
    devnum: DevNum,
}

impl Drop for HasOpen {
    fn drop(&mut self) {
        let mut opened = self.shared.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = opened.get_mut(&self.devnum) {
            *count -= 1;
            if *count == 0 {
                opened.remove(&self.devnum);
            }
        }
    }
}

/// The known state of the helper.
#[derive(Debug, Default)]
struct LastKnown {
    /// The outcome of the last request: success, or since when the helper is silent; `None`: not asked yet.
    last: Option<Result<(), (Instant, HelperError)>>,
    /// Whether the helper is being asked again until it answers.
    asking_again: bool,
}

/// Why there is no usable answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HelperError {
    /// The helper does not answer.
    #[error("attachd-helper does not answer at {0}: {1}")]
    Silent(String, String),
    /// The request's task has ended without an answer.
    #[error("the question to attachd-helper has no answer: {0}")]
    Died(String),
    /// The helper refused the request.
    #[error("attachd-helper refused: {message} ({code})")]
    Refused {
        /// The code, for programs.
        code: HelperCode,
        /// The message, for people.
        message: String,
    },
}

/// The NBD clients of a disk, by their addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// The addresses. If there is none and the disk is open, an unknown client has it open.
    pub clients: Vec<String>,
    /// Whether all of these use this disk. If not, some may use others, because one server's clients cannot always be
    /// told apart.
    pub exact: bool,
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let candidates = if self.exact { "" } else { "; some of these may use other exports" };
        write!(f, "{}{candidates}", self.clients.join(", "))
    }
}

/// Whether a disk can be opened exclusively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exclusive {
    /// It can at the moment, and the disk had this sequence number then.
    Free {
        /// The disk sequence number.
        diskseq: u64,
    },
    /// It cannot; the text says how the disk is used.
    Used(String),
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
    /// The fields of this answer.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The answer to `holders`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HoldersAnswer {
    /// The number of descriptors that the NBD servers have of the disk.
    pub(crate) open: usize,
    /// The number of connections of attachd's own to those servers: each may have one of these descriptors.
    #[serde(default, skip_serializing_if = "is_none")]
    pub(crate) own: usize,
    /// See [`Holders`].
    pub(crate) clients: Vec<String>,
    /// See [`Holders`].
    pub(crate) exact: bool,
}

/// The answer to `exclusive`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExclusiveAnswer {
    /// The disk's sequence number.
    pub(crate) diskseq: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

impl HelperClient {
    /// Makes a client of the helper at this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self::with(socket, TIME_LIMIT)
    }

    fn with(socket: PathBuf, limit: Duration) -> Self {
        let shared =
            Shared { socket, limit, slots: Semaphore::new(AT_ONCE), known: Mutex::default(), opened: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the outcome of the last request; `None`: not asked yet.
    pub fn state(&self) -> Option<Result<(), String>> {
        match &self.known().last {
            None => None,
            Some(Ok(())) => Some(Ok(())),
            Some(Err((_, error))) => Some(Err(error.to_string())),
        }
    }

    /// Makes udev process the present disk with this serial again. That marks a claimed disk and un-marks a disk that
    /// is no longer claimed.
    pub async fn retrigger(&self, serial: Serial) -> Result<(), HelperError> {
        self.ask(&format!("retrigger {serial}\n")).await.map(drop)
    }

    /// Returns the clients that have this device open; `None`: no NBD server has it open.
    pub async fn holders(&self, devnum: DevNum) -> Result<Option<Holders>, HelperError> {
        match self.ask(&format!("holders {devnum}\n")).await {
            Ok(answer) => {
                let HoldersAnswer { clients, exact, open, own } = self.read(answer)?;
                // A server opens a disk once for each connection: then these are attachd's.
                let nobody = open > 0 && open <= own.min(self.opened(devnum));
                Ok((!nobody).then_some(Holders { clients, exact }))
            }
            Err(HelperError::Refused { code: HelperCode::NotOpen, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Checks whether any process on this host has the disk open exclusively. The disk must be claimed and marked.
    pub async fn exclusive(&self, devnum: DevNum, serial: Serial) -> Result<Exclusive, HelperError> {
        match self.ask(&format!("exclusive {devnum} {serial}\n")).await {
            Ok(answer) => {
                let ExclusiveAnswer { diskseq } = self.read(answer)?;
                Ok(Exclusive::Free { diskseq })
            }
            Err(HelperError::Refused { code: HelperCode::InUseByHost, message }) => Ok(Exclusive::Used(message)),
            Err(error) => Err(error),
        }
    }

    /// Records the disks of this host, so that they are never claimed.
    pub async fn host_disks(&self) -> Result<(), HelperError> {
        self.ask(HOST_DISKS).await.map(drop)
    }

    /// Makes nbd-server's main process read its files again.
    pub async fn reload(&self) -> Result<(), HelperError> {
        self.ask("reload\n").await.map(drop)
    }

    /// Says that attachd itself has this disk open, by one connection that is alive all the time: it is no client.
    pub fn has_open(&self, devnum: DevNum) -> HasOpen {
        let shared = Arc::clone(&self.shared);
        *shared.opened.lock().unwrap_or_else(PoisonError::into_inner).entry(devnum).or_default() += 1;
        HasOpen { shared, devnum }
    }

    fn opened(&self, devnum: DevNum) -> usize {
        let opened = self.shared.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.get(&devnum).copied().unwrap_or_default()
    }

    /// Reads the fields of an answer. An answer without a field counts as no answer, because it could be read as "no
    /// clients".
    fn read<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, HelperError> {
        serde_json::from_value(Value::Object(answer.rest)).map_err(|error| {
            let why =
                format!("not an answer to what was asked: {error}; are attachd and attachd-helper of one version?");
            HelperError::Silent(self.shared.socket.display().to_string(), why)
        })
    }

    async fn ask(&self, line: &str) -> Result<Answer, HelperError> {
        let answer = self.ask_once(line).await;
        if matches!(answer, Err(HelperError::Silent(..))) && !std::mem::replace(&mut self.known().asking_again, true) {
            tokio::spawn(self.clone().until_it_answers());
        }
        answer
    }

    /// Asks again with a back-off until the helper answers. It repeats the request that may have failed at the start
    /// and that is always safe.
    async fn until_it_answers(self) {
        let mut pause = AGAIN.0;
        loop {
            tokio::time::sleep(pause).await;
            let _ = self.ask_once(HOST_DISKS).await;
            let mut known = self.known();
            if matches!(known.last, Some(Ok(()))) {
                known.asking_again = false;
                return tracing::info!("attachd-helper answers again");
            }
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn ask_once(&self, line: &str) -> Result<Answer, HelperError> {
        let begun = Instant::now();
        // The semaphore is never closed.
        let _slot = self.shared.slots.acquire().await;
        // If the helper fell silent while this request waited for a slot, it need not find that out again.
        if let Some(Err((since, error))) = &self.known().last
            && *since >= begun
        {
            return Err(error.clone());
        }
        let silent = |why: String| HelperError::Silent(self.shared.socket.display().to_string(), why);
        let limit = self.shared.limit;
        let answer = match tokio::time::timeout(limit, self.exchange(line)).await {
            Ok(Ok(answer)) => serde_json::from_str(&answer).map_err(|error| silent(format!("not an answer: {error}"))),
            Ok(Err(error)) => Err(silent(error.to_string())),
            Err(_) => Err(silent(format!("no answer within {} s", limit.as_secs()))),
        };
        // A refusal counts as an answer.
        self.known().last = Some(match &answer {
            Ok(_) => Ok(()),
            Err(error) => Err((Instant::now(), error.clone())),
        });
        let answer: Answer = answer?;
        if answer.ok {
            return Ok(answer);
        }
        let code = HelperCode::from_name(&answer.code).unwrap_or(HelperCode::Other);
        Err(HelperError::Refused { code, message: answer.error })
    }

    async fn exchange(&self, line: &str) -> std::io::Result<String> {
        let mut stream = loop {
            match UnixStream::connect(&self.shared.socket).await {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => tokio::time::sleep(QUEUE_FULL).await,
                connected => break connected?,
            }
        };
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        Ok(answer)
    }

    fn known(&self) -> MutexGuard<'_, LastKnown> {
        // No code panics while it holds the lock, and each written value is complete.
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::UnixListener;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper.sock");
        (dir, path)
    }

    async fn answer(stream: UnixStream, text: &str) {
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).await.unwrap();
        let _ = stream.get_mut().write_all(text.as_bytes()).await;
    }

    #[tokio::test]
    async fn a_helper_that_is_back_is_noticed_without_a_request() {
        let (_dir, path) = place();
        let client = HelperClient::new(path.clone());
        assert_eq!(client.state(), None);
        client.reload().await.unwrap_err();
        assert!(matches!(client.state(), Some(Err(_))), "the control");
        let listener = UnixListener::bind(path).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        answer(stream, "{\"ok\":false,\"code\":\"FAILED\",\"error\":\"x\"}\n").await;
        while client.known().asking_again {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.state(), Some(Ok(())), "a refusal is an answer");
    }

    #[tokio::test]
    async fn an_answer_without_a_requested_field_counts_as_no_answer() {
        let (_dir, path) = place();
        let listener = UnixListener::bind(&path).unwrap();
        let client = HelperClient::new(path);
        let holders = |text: &'static str| {
            let (client, listener) = (client.clone(), &listener);
            async move {
                let answered = async { answer(listener.accept().await.unwrap().0, text).await };
                tokio::join!(client.holders(DevNum { major: 7, minor: 1 }), answered).0
            }
        };
        let whole = holders("{\"ok\":true,\"open\":1,\"clients\":[\"a\"],\"exact\":true,\"more\":1}\n").await;
        assert_eq!(whole.unwrap(), Some(Holders { clients: vec!["a".to_owned()], exact: true }), "the control");
        for text in [
            "{\"ok\":true,\"open\":1,\"exact\":true}\n",
            "{\"ok\":true,\"open\":1,\"who\":[\"a\"],\"exact\":true}\n",
            "{\"ok\":true,\"open\":1,\"clients\":[\"a\"]}\n",
        ] {
            let lacking = holders(text).await.unwrap_err();
            assert!(matches!(&lacking, HelperError::Silent(_, why) if why.contains("missing field")), "{lacking}");
        }
    }

    #[tokio::test]
    async fn any_number_of_requests_at_once_are_answered_a_few_at_a_time() {
        let (_dir, path) = place();
        let listener = UnixListener::bind(&path).unwrap();
        let client = HelperClient::new(path);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (now.clone(), most.clone());
        let helper = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (now, most) = (counts.0.clone(), counts.1.clone());
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    answer(stream, "{\"ok\":true}\n").await;
                });
            }
        });
        let requests: Vec<_> = (0..500).map(|_| client.clone()).collect();
        let requests = requests.into_iter().map(|client| tokio::spawn(async move { client.reload().await }));
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap().unwrap();
        }
        assert!((2..=AT_ONCE).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        helper.abort();
    }

    /// One after the other, they would wait for minutes.
    #[tokio::test]
    async fn requests_that_wait_for_a_slot_fail_together_when_the_helper_is_silent() {
        const LIMIT: Duration = Duration::from_secs(1);
        let (_dir, path) = place();
        let _never_accepts = UnixListener::bind(&path).unwrap();
        let client = HelperClient::with(path, LIMIT);
        let begun = Instant::now();
        let requests: Vec<_> = (0..20 * AT_ONCE).map(|_| client.clone()).collect();
        let requests = requests.into_iter().map(|client| tokio::spawn(async move { client.reload().await }));
        for request in requests.collect::<Vec<_>>() {
            assert!(matches!(request.await.unwrap(), Err(HelperError::Silent(..))));
        }
        assert!(begun.elapsed() >= LIMIT && begun.elapsed() < 5 * LIMIT, "{:?}", begun.elapsed());
    }

    /// The time limit of a request starts when it has its slot, not when it starts to wait.
    #[tokio::test]
    async fn a_request_that_waited_for_its_slot_has_its_full_time_limit() {
        const LIMIT: Duration = Duration::from_secs(1);
        let (_dir, path) = place();
        let listener = UnixListener::bind(&path).unwrap();
        let client = HelperClient::with(path, LIMIT);
        let requests: Vec<_> = (0..4 * AT_ONCE).map(|_| client.clone()).collect();
        let requests: Vec<_> =
            requests.into_iter().map(|client| tokio::spawn(async move { client.reload().await })).collect();
        let begun = Instant::now();
        let helper = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    tokio::time::sleep(LIMIT * 2 / 5).await;
                    answer(stream, "{\"ok\":true}\n").await;
                });
            }
        });
        for request in requests {
            request.await.unwrap().unwrap();
        }
        assert!(begun.elapsed() > LIMIT, "the control: the last has waited longer than its time");
        helper.abort();
    }
}
