//! The records of attachd: one SQLite file with one writer.
//!
//! [`Store`] is a handle to a [`task`] that owns the only connection that writes. The task puts all queued writes
//! into one transaction, so that a burst of a thousand disks costs a few synced commits. It answers each writer after
//! the commit that holds the writer's changes. The same transaction notes which volumes have changed, for those who
//! [`follow`]. Followers that write into this file do so in [turns](turn). Reads while the daemon runs use a
//! connection of their own ([`reader`]), which waits for no write.
//!
//! Nobody waits for a store that is locked, full, or hangs. Queueing succeeds or fails at once ([`Store::begin`]).
//! Posting never fails ([`Store::post`]). A read is answered within [`SILENT_AFTER`]. [`Store::condition`] tells when
//! writing works again.

pub(crate) mod batch;
mod connection;
mod error;
mod files;
mod follow;
mod follow_operations;
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
mod room;
#[cfg(test)]
pub(crate) mod sample;
mod snapshots;
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

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::task::JoinHandle;

use crate::identity::{OperationId, VolumeId};
use crate::operation::{IdempotencyKey, Operation, Placeholder};
use crate::volume::{Entry, Record, Snapshot};
pub(crate) use connection::WriteConnection;
pub use error::{Saved, StoreError};
use follow::AllProgress;
pub use follow::{Changed, Follower, Follows, Progress};
pub use foreign::judge_at_once;
pub use holder::Holder;
pub use news::News;
use news::Posted;
pub use operations::OperationFilter;
pub use read::Present;
use reader::ReadConnection;
use task::{Command, Task};
use turn::Given;
use turn::Turns;
use watch::Watch;
pub use write::Change;

/// The number of writes that may wait for the task. Further writes are refused.
const QUEUE: usize = 4096;

/// How long a call to the store may take before the store counts as silent.
pub const SILENT_AFTER: Duration = Duration::from_secs(1);

/// How often a timeline is read at most while it is being written.
const STORY_READS: u32 = 8;

/// The options for opening a store.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The path of the file.
    pub path: &'a Path,
    /// How many days the timeline of a withdrawn volume is kept.
    pub history_days: u32,
    /// The id of this boot, because the kept times belong to the boot's clock.
    pub boot_id: &'a str,
    /// A folder that is not on a disk, for a copy when the store's own disk takes no writes.
    pub spare: &'a Path,
}

/// A handle to the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    /// Requests to retry a failed write now. They are answered between two transactions, before the queued writes.
    tries: mpsc::Sender<oneshot::Sender<()>>,
    posted: Arc<Posted>,
    reader: ReadConnection,
    watch: Watch,
    condition: channel::Receiver<Option<StoreError>>,
    turns: Turns,
    /// Wakes followers when something may have changed. It is closed when nothing will change any more.
    noted: channel::Receiver<()>,
    followers: AllProgress,
    /// The saved copies that existed at the start.
    saved: Arc<[PathBuf]>,
    history_days: Arc<AtomicU32>,
}

/// A volume's timeline, as far as it can be read.
#[derive(Debug)]
pub struct Story {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Why the recorded entries are missing.
    pub failure: Option<StoreError>,
}

/// A follower and its state.
#[derive(Debug, Clone)]
pub struct Following {
    /// The follower's name.
    pub name: &'static str,
    /// What it shows.
    pub follows: Follows,
    /// What the follower has yet to show. `None`: unknown.
    pub owed: Option<Owed>,
    /// The state that the follower reports.
    pub progress: Progress,
}

/// The number of records that a follower has yet to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Records that have changed.
    pub records: u64,
    /// Records that the follower could not show and has set aside.
    pub set_aside: u64,
}

/// The health of the store.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Why writing fails, if it does.
    pub failure: Option<StoreError>,
    /// The followers.
    pub followers: Vec<Following>,
    /// The saved copies of a store that was lost while attachd ran, if nobody has put them back or removed them.
    pub saved: Vec<PathBuf>,
}

impl Store {
    /// Returns the path of the store's file.
    pub fn path(&self) -> &Path {
        self.watch.path()
    }

    /// Sets how many days the timelines of withdrawn volumes are kept. The next deletion uses the new value.
    pub fn keep_history_for(&self, days: u32) {
        self.history_days.store(days, Ordering::Relaxed);
    }

    /// Opens the file, creates and migrates it, and reads its records. If the disk takes no writes, the file is still
    /// read, and is opened for writing as soon as that is possible. The task ends after the last handle is gone.
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

    /// Writes all changes in one transaction. On success the changes are durable; on an error none of them is
    /// written.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.begin(changes)?.await.map_err(|_| StoreError::Closed)?
    }

    /// Queues changes and returns the receiver of the answer. Changes are written in the order of the calls. The
    /// caller can wait for the answer elsewhere.
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

    /// Leaves news that nobody waits for. The task retries them until they are written. News that are outdated by
    /// then are left out.
    pub fn post(&self, volume: VolumeId, news: Vec<News>) {
        self.posted.push(volume, news);
    }

    /// Asks the task to delete old history now, in addition to the usual times.
    pub fn tidy(&self) {
        // If the queue is full, the deletion happens at the usual time.
        let _ = self.commands.try_send(Command::Tidy);
    }

    /// Adds a follower. It does not keep the store open. When the store closes, it waits for the follower for a
    /// limited time.
    pub fn follow(&self, name: &'static str, follows: Follows) -> Follower {
        let (turns, noted) = (self.turns.clone(), self.noted.clone());
        Follower::new((name, follows), self.watch.path().to_owned(), turns, noted, Arc::clone(&self.followers))
    }

    /// Removes a follower that there may have been in an earlier run. The returned future does not keep the store open.
    pub fn unfollow(&self, name: &'static str) -> impl Future<Output = ()> + Send + use<> {
        let reader = self.reader.clone();
        let (path, turns, noted) = (self.watch.path().to_owned(), self.turns.clone(), self.noted.clone());
        async move {
            if reader.owed().await.is_ok_and(|owed| owed.contains_key(name)) {
                // It is not one of those that report.
                Follower::new((name, Follows::Volumes), path, turns, noted, AllProgress::default()).forget().await;
            }
        }
    }

    /// Returns a volume's timeline in the order of events. It is empty when the volume has none.
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
            // Otherwise it is unknown which part was recorded at the moment of the read.
            if unwritten.rested_until(&now) || reads == STORY_READS {
                return Story { entries: unwritten.after(recorded), failure: None };
            }
            unwritten = now;
        }
    }

    /// Returns the operations that have not ended, in their order, the highest number given so far, and every
    /// placeholder.
    pub async fn open_operations(&self) -> Result<(Vec<Operation>, u64, Vec<Placeholder>), StoreError> {
        self.reader.open_operations().await
    }

    /// Returns how many of the last 1000 operations have failed since then.
    pub async fn operations_failed_since(&self, since: Timestamp) -> Result<u64, StoreError> {
        self.reader.operations_failed_since(since).await
    }

    /// Returns the operation with this id.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        self.reader.operation(id).await
    }

    /// Returns the operation to which this user gave this idempotency key.
    pub async fn operation_keyed(
        &self,
        uid: Option<u32>,
        key: &IdempotencyKey,
    ) -> Result<Option<Operation>, StoreError> {
        self.reader.operation_keyed(uid, key).await
    }

    /// Returns the operations that match the filter, the newest first.
    pub async fn operations(&self, filter: &OperationFilter) -> Result<Vec<Operation>, StoreError> {
        self.reader.operations(filter).await
    }

    /// Returns the snapshot of a volume that a caller keeps track of.
    pub async fn snapshot(&self, volume: VolumeId) -> Result<Option<Snapshot>, StoreError> {
        self.reader.snapshot(volume).await
    }

    /// Returns the snapshots of a context, by volume.
    pub async fn snapshots_of(&self, vm_context: &str) -> Result<Vec<Snapshot>, StoreError> {
        self.reader.snapshots_of(vm_context).await
    }

    /// Returns how many snapshots are kept track of.
    pub async fn snapshots_count(&self) -> Result<u64, StoreError> {
        self.reader.snapshots_count().await
    }

    /// Returns a receiver of the reason for which writing fails. It is `None` while writing works.
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
        let all = self.followers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let volumes = self.reader.owed().await.unwrap_or_default();
        let operations = if all.values().any(|(follows, _)| *follows == Follows::Operations) {
            self.reader.owed_operations().await.ok()
        } else {
            None
        };
        let following = all.into_iter().map(|(name, (follows, progress))| {
            let owed = match follows {
                Follows::Volumes => volumes.get(name).copied(),
                Follows::Operations => operations,
            };
            Following { name, follows, owed, progress }
        });
        following.collect()
    }

    /// Returns the store's health without waiting for a store that hangs. A failed write is retried first.
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
        // A copy is gone when somebody has put it back or removed it.
        let saved = self.saved.iter().filter(|copy| copy.symlink_metadata().is_ok()).cloned().collect();
        Pulse { failure, followers: self.followers().await, saved }
    }
}
