//! The local truth: one SQLite file, one writer.
//!
//! [`Store`] is a handle to a [`task`] that owns the only connection that writes. It takes whatever writes are queued into
//! one transaction, so a burst of a thousand disks costs a few synced commits, and answers each writer after the commit
//! that holds its changes. Which volumes have changed is noted in the same transaction, for those who [`follow`]; what they
//! write into this file they write in [turns](turn). What is read while the daemon runs is read on a connection of its own
//! ([`reader`]), which waits for no write.
//!
//! Nobody waits for a store that is locked, full, or hangs: to queue is immediate or fails ([`Store::begin`]), to
//! post never fails ([`Store::post`]), a question is answered within [`SILENT_AFTER`], and [`Store::condition`] tells when it goes on.

pub(crate) mod batch;
mod error;
mod files;
mod follow;
mod foreign;
mod history;
mod holder;
pub mod lock;
mod news;
mod open;
mod operations;
mod parts;
mod read;
mod reader;
mod rescue;
#[cfg(test)]
pub(crate) mod sample;
mod task;
#[cfg(test)]
mod tests;
mod turn;
mod watch;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::JoinHandle;

use crate::identity::{OperationId, VolumeId};
use crate::operation::{IdempotencyKey, Operation, Placeholder};
use crate::volume::{Entry, Record};
pub use error::{Saved, StoreError};
use follow::AllProgress;
pub use follow::{Changed, Follower, Progress};
pub use foreign::judge_at_once;
pub use holder::Holder;
pub use news::News;
use news::Posted;
pub use operations::OperationFilter;
use reader::ReadConnection;
use task::{Command, Task};
use turn::Given;
use turn::Turns;
use watch::Watch;
pub use write::Change;
pub(crate) use write::{begin, end};

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
    turns: Turns,
    /// Something may have changed for those who follow; closed when nothing will any more.
    noted: channel::Receiver<()>,
    followers: AllProgress,
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

/// One who follows.
#[derive(Debug, Clone)]
pub struct Following {
    /// Its name.
    pub name: &'static str,
    /// What it has yet to show; `None`: unknown.
    pub owed: Option<Owed>,
    /// How it stands.
    pub progress: Progress,
}

/// What somebody who follows has yet to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Volumes that have changed.
    pub volumes: u64,
    /// Those that it could not show, and has passed by.
    pub set_aside: u64,
}

/// What there is to say about the store's health.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Why nothing can be written, when that is so.
    pub failure: Option<StoreError>,
    /// Those who follow what changes.
    pub followers: Vec<Following>,
    /// Copies of a store that was lost while attachd ran, which nobody has put back or removed.
    pub saved: Vec<PathBuf>,
}

impl Store {
    /// Its file.
    pub fn path(&self) -> &Path {
        self.watch.path()
    }

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
        let (turns, given) = Given::new();
        let (note, noted) = channel::channel(());
        let task = Task::new(
            options,
            opened.writer,
            (watch.clone(), tell),
            reader.clone(),
            (Arc::clone(&posted), Arc::clone(&history_days)),
            note,
        );
        let task = tokio::spawn(task.run(queue, asked, given));
        let saved = rescue::saved(options.path).into();
        let followers = AllProgress::default();
        let store =
            Self { commands, tries, posted, reader, watch, condition, turns, noted, followers, saved, history_days };
        Ok((store, task, opened.records))
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

    /// One more that follows what changes. It does not keep the store open; the store waits for it at the end, for a while.
    pub fn follow(&self, name: &'static str) -> Follower {
        let (turns, noted) = (self.turns.clone(), self.noted.clone());
        Follower::new(name, self.watch.path().to_owned(), turns, noted, Arc::clone(&self.followers))
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

    /// Operations of which something is still to come, in their order; the number that was given last; every placeholder.
    pub async fn open_operations(&self) -> Result<(Vec<Operation>, u64, Vec<Placeholder>), StoreError> {
        self.reader.open_operations().await
    }

    /// An operation, as it is on record.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        self.reader.operation(id).await
    }

    /// The operation to which this user gave this name.
    pub async fn operation_keyed(
        &self,
        uid: Option<u32>,
        key: &IdempotencyKey,
    ) -> Result<Option<Operation>, StoreError> {
        self.reader.operation_keyed(uid, key).await
    }

    /// The operations that are wanted, the newest first.
    pub async fn operations(&self, filter: &OperationFilter) -> Result<Vec<Operation>, StoreError> {
        self.reader.operations(filter).await
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
        self.condition.borrow().clone()
    }

    async fn followers(&self) -> Vec<Following> {
        let owed = self.reader.owed().await;
        let all = self.followers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let owed = |name: &str| owed.as_ref().ok()?.get(name).copied();
        all.into_iter().map(|(name, progress)| Following { name, owed: owed(name), progress }).collect()
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
        Pulse { failure, followers: self.followers().await, saved }
    }
}
