//! The local truth: one SQLite file, one writer.
//!
//! [`Store`] is a handle to a [`task`] that owns the only connection that writes. It takes whatever writes are queued into
//! one transaction, so a burst of a thousand disks costs a few synced commits, and answers each writer after the commit
//! that holds its changes. Rows for the predecessor's tables go through the [`outbox`] of the same transaction and are
//! applied when no writer waits. What is read while the daemon runs is read on a connection of its own ([`reader`]), which
//! waits for no write.
//!
//! Nobody waits for a store that is locked, full, or hangs: to queue is immediate or fails ([`Store::begin`]), to
//! post never fails ([`Store::post`]), a question is answered within [`SILENT_AFTER`], and [`Store::condition`] tells when it goes on.

mod batch;
mod error;
mod files;
mod foreign;
mod history;
mod holder;
pub mod lock;
mod news;
mod open;
mod outbox;
mod read;
mod reader;
mod rescue;
mod task;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::JoinHandle;

use crate::identity::VolumeId;
use crate::volume::{Entry, Record};
pub use error::{Saved, StoreError};
pub use foreign::judge_at_once;
pub use holder::Holder;
use news::Posted;
pub use news::{News, Projection};
use reader::ReadConnection;
use task::{Command, Task};
use watch::Watch;
pub use write::Change;

/// Writes that may wait for the task; more than that is refused.
const QUEUE: usize = 4096;

/// How long a question to the store may take before it counts as silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(1);

/// How often a story is read at most that is being written meanwhile.
const STORY_READS: u32 = 8;

/// What a store is opened with.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The file.
    pub path: &'a Path,
    /// How long the timeline of a withdrawn volume is kept.
    pub history_days: u32,
    /// The NBD port, which the projection repeats for each export.
    pub port: u16,
    /// This boot, for what is kept by its clock.
    pub boot_id: &'a str,
    /// A folder that is on no disk, for a copy when the store's own disk takes nothing.
    pub spare: &'a Path,
}

/// A handle to the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    /// Asked between two transactions, ahead of the writes that wait: to try now what fails.
    tries: mpsc::Sender<oneshot::Sender<()>>,
    posted: Arc<Posted>,
    reader: ReadConnection,
    watch: Watch,
    condition: channel::Receiver<Option<StoreError>>,
    /// Copies that were there at the start.
    saved: Arc<[PathBuf]>,
    history_days: Arc<AtomicU32>,
}

/// A volume's story, as far as it can be had.
#[derive(Debug)]
pub struct Story {
    /// The steps.
    pub entries: Vec<Entry>,
    /// Why those that are on record are missing.
    pub failure: Option<StoreError>,
}

/// What there is to say about the store's health.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Rows the projection has yet to be told; `None`: unknown.
    pub outbox: Option<u64>,
    /// Why nothing can be written, when that is so, or why the projection cannot.
    pub failure: Option<StoreError>,
    /// Copies of a store that was lost while attachd ran, which nobody has put back or removed.
    pub saved: Vec<PathBuf>,
}

impl Store {
    /// How long the timelines of withdrawn volumes are kept from now on; seen to when next something is forgotten.
    pub fn keep_history_for(&self, days: u32) {
        self.history_days.store(days, Ordering::Relaxed);
    }

    /// Opens the file, creates and migrates it, and reads what it holds. A file whose disk takes nothing is read all the
    /// same; it is opened for writing as soon as that is possible. The task ends after the last handle is gone.
    pub async fn open(options: Options<'_>) -> Result<(Self, JoinHandle<()>, Vec<Record>), StoreError> {
        let opened = rescue::open(options).await?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (tries, asked) = mpsc::channel(1);
        let (tell, condition) = channel::channel(opened.failure.clone());
        let posted = Arc::<Posted>::default();
        let history_days = Arc::new(AtomicU32::new(options.history_days));
        let watch = Watch::new(options.path);
        let reader = ReadConnection::new(options.path, opened.reader);
        let task = Task::new(
            options,
            opened.writer,
            (watch.clone(), tell),
            reader.clone(),
            (Arc::clone(&posted), Arc::clone(&history_days)),
        );
        let task = tokio::spawn(task.run(queue, asked));
        let saved = rescue::saved(options.path).into();
        Ok((Self { commands, tries, posted, reader, watch, condition, saved, history_days }, task, opened.records))
    }

    /// Writes all changes in one transaction; durable when this answers with success, and not there at all otherwise.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.begin(changes)?.await.map_err(|_| StoreError::Closed)?
    }

    /// Queues changes and returns the answer to wait for: calls queue in their order, the waiting can happen elsewhere.
    pub fn begin(&self, changes: Vec<Change>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        if let Some(silent) = self.watch.silent() {
            return Err(silent);
        }
        let (answer, result) = oneshot::channel();
        match self.commands.try_send(Command::Write(changes, answer)) {
            Ok(()) => Ok(result),
            Err(mpsc::error::TrySendError::Full(_)) => Err(self.watch.crowded()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(StoreError::Closed),
        }
    }

    /// Leaves news nobody waits for. They are tried again until they are written; what is outdated meanwhile is left out.
    pub fn post(&self, volume: VolumeId, news: Vec<News>) {
        self.posted.push(volume, news);
    }

    /// Has what is old forgotten, beside the usual times.
    pub fn tidy(&self) {
        // Crowded: the usual time comes.
        let _ = self.commands.try_send(Command::Tidy);
    }

    /// A volume's story, in the order in which it happened; empty when it has none.
    pub async fn story(&self, volume: VolumeId) -> Story {
        let mut unwritten = self.posted.notes(volume);
        let mut reads = 0;
        loop {
            let recorded = match self.reader.timeline(volume).await {
                Ok(recorded) => recorded,
                Err(failure) => return Story { entries: unwritten.after(Vec::new()), failure: Some(failure) },
            };
            let now = self.posted.notes(volume);
            reads += 1;
            // Else it is not known what of it was on record at the moment of the reading.
            if unwritten.rested_until(&now) || reads == STORY_READS {
                return Story { entries: unwritten.after(recorded), failure: None };
            }
            unwritten = now;
        }
    }

    /// Why nothing can be written, and when that ends.
    pub fn condition(&self) -> channel::Receiver<Option<StoreError>> {
        self.condition.clone()
    }

    /// Resolves when the store has not answered for [`SILENT_AFTER`].
    pub async fn silence(&self) -> StoreError {
        loop {
            if let Some(silent) = self.watch.silent() {
                return silent;
            }
            tokio::time::sleep(self.watch.next_look()).await;
        }
    }

    fn failure(&self) -> Option<StoreError> {
        self.condition.borrow().clone().or_else(|| self.watch.stuck())
    }

    /// Says how the store is, without waiting for one that hangs. What has failed is tried again for it.
    pub async fn pulse(&self) -> Pulse {
        let failure = match self.watch.silent() {
            Some(silent) => Some(silent),
            None if self.failure().is_some() => {
                let (answer, tried) = oneshot::channel();
                let asked = async {
                    self.tries.send(answer).await.map_err(|_| StoreError::Closed)?;
                    tried.await.map_err(|_| StoreError::Closed)
                };
                match tokio::time::timeout(SILENT_AFTER, asked).await {
                    Ok(Ok(())) => self.failure(),
                    Ok(Err(closed)) => Some(closed),
                    Err(_) => Some(self.watch.silent().unwrap_or_else(|| self.watch.crowded())),
                }
            }
            None if self.commands.is_closed() => Some(StoreError::Closed),
            None => None,
        };
        // Gone when somebody has put it back or removed it.
        let saved = self.saved.iter().filter(|copy| copy.symlink_metadata().is_ok()).cloned().collect();
        let outbox = self.reader.outbox_length().await.ok();
        Pulse { outbox, failure, saved }
    }
}
