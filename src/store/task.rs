//! The task that writes. It puts all queued writes into one transaction, and retries what fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::{mpsc, oneshot, watch as channel};
use tokio::time::Instant;

use super::history::PACE;
use super::news::{News, Posted};
use super::open::{self, Writer};
use super::reader::ReadConnection;
use super::turn::Given;
use super::watch::Watch;
use super::write::{self, Change};
use super::{Options, Saved, StoreError, rescue, room};
use crate::clock::Steady;
use crate::identity::VolumeId;
use crate::memory;

/// The number of writes in one transaction. With more, other callers would wait for long.
const AT_ONCE: usize = 512;

/// How long the task waits before it retries a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// The number of commits after which the log is written into the database (a checkpoint), as soon as nobody waits.
const CHECKPOINT: u32 = 200;

/// How long no write happens before the rest of the log is moved too, and a long file cut. So a burst leaves little
/// behind.
const QUIET: Duration = Duration::from_secs(2);

/// The number of commits from which on cutting the log is worth the work.
const WORTH_CUTTING: u32 = 20;

/// How long followers may take at the end to show what is owed. The next start continues with the rest.
const DRAIN: Duration = Duration::from_secs(3);

/// The number of changes from which on memory is given back.
const MANY: usize = 2000;

/// How long news that nobody waits for may wait for a write whose caller waits. Both are committed together then, and the
/// caller does not wait for two commits.
const LINGER: Duration = Duration::from_millis(5);

/// How long nothing is committed before a follower gets its turn: a caller's next write often comes soon after the one
/// before, and must not wait for the follower.
const CALM: Duration = Duration::from_millis(20);

pub(super) type Answer = oneshot::Sender<Result<(), StoreError>>;

pub(super) enum Command {
    Write(Vec<Change>, Answer),
    /// Delete old history.
    Tidy,
}

pub(super) struct Task {
    /// `None` while the disk takes no writes. It is opened as soon as the disk does.
    writer: Option<Writer>,
    reader: ReadConnection,
    path: PathBuf,
    spare: PathBuf,
    boot_id: String,
    history_days: Arc<AtomicU32>,
    watch: Watch,
    /// Why writing fails.
    failure: channel::Sender<Option<StoreError>>,
    /// The news that nobody waits for.
    posted: Arc<Posted>,
    /// Notifies followers that something may have changed.
    note: channel::Sender<()>,
    /// The number of commits since the last checkpoint.
    commits: u32,
    /// The number of commits since the log's file was last cut.
    uncut: u32,
    /// The number of changes since memory was last given back.
    changes: usize,
    last_write: Instant,
    /// The last commit of the task's own.
    last_commit: Instant,
    /// When a failed write is retried.
    again_at: Instant,
    pruned: Steady,
    /// Whether there may be more history to delete.
    untidy: bool,
}

impl Task {
    pub(super) fn new(
        options: Options<'_>,
        writer: Option<Writer>,
        (watch, tell): (Watch, channel::Sender<Option<StoreError>>),
        reader: ReadConnection,
        (posted, history_days): (Arc<Posted>, Arc<AtomicU32>),
        note: channel::Sender<()>,
    ) -> Self {
        Self {
            writer,
            reader,
            path: options.path.to_owned(),
            spare: options.spare.to_owned(),
            boot_id: options.boot_id.to_owned(),
            history_days,
            watch,
            failure: tell,
            posted,
            note,
            commits: 0,
            uncut: 0,
            changes: 0,
            last_write: Instant::now(),
            last_commit: Instant::now(),
            again_at: Instant::now() + RETRY,
            pruned: Steady::now(),
            untidy: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut tries: mpsc::Receiver<oneshot::Sender<()>>,
        mut turns: Given,
    ) {
        let mut batch = Vec::new();
        loop {
            let due = self.left_to_do(turns.is_asked());
            tokio::select! {
                biased;
                Some(answer) = tries.recv() => {
                    self.try_again().await;
                    let _ = answer.send(());
                    continue;
                }
                () = changed(self.writer.as_ref()) => {
                    self.look_at_files().await;
                    continue;
                }
                true = turns.asked() => {}
                received = queue.recv_many(&mut batch, AT_ONCE) => if received == 0 { break },
                () = self.posted.rang(), if self.failure.borrow().is_none() => {}
                () = until(due) => if self.failure.borrow().is_some() { self.try_again().await },
            }
            let works = self.failure.borrow().is_none();
            if works && batch.is_empty() && !self.posted.is_empty() {
                tokio::select! {
                    biased;
                    _ = queue.recv_many(&mut batch, AT_ONCE) => {}
                    () = tokio::time::sleep(LINGER) => {}
                }
            }
            if !batch.is_empty() || (works && !self.posted.is_empty()) {
                self.carry_out(std::mem::take(&mut batch)).await;
            }
            let idle = queue.is_empty() && self.posted.is_empty() && self.last_commit.elapsed() >= CALM;
            if turns.is_asked() && (idle || turns.is_overdue()) {
                self.give(&mut turns).await;
            }
            if queue.is_empty() && self.failure.borrow().is_none() {
                self.beside().await;
            }
        }
        // The news that were posted last. Nobody waits for this write.
        self.write(Vec::new()).await;
        self.drain(turns).await;
        self.close().await;
    }

    /// Returns when background work is due. `None` on an idle daemon.
    fn left_to_do(&self, turn_asked: bool) -> Option<Instant> {
        if self.failure.borrow().is_some() {
            return Some(self.again_at);
        }
        if self.untidy || !self.posted.is_empty() {
            return Some(Instant::now());
        }
        if turn_asked {
            return Some(self.last_commit + CALM);
        }
        (self.uncut >= WORTH_CUTTING).then(|| self.last_write + QUIET)
    }

    /// Gives the turn that is asked for, and continues when it is given back. Gives none while writing fails, or if
    /// the store's file was lost.
    async fn give(&mut self, turns: &mut Given) {
        let Some(writer) = &self.writer else { return };
        if self.failure.borrow().is_some() {
            return;
        }
        if let Some(lost) = lost(writer, None) {
            return drop(self.failed(lost));
        }
        let Some(given_back) = turns.give() else { return };
        let asked = self.watch.ask();
        given_back.await;
        drop(asked);
        self.written();
    }

    /// Tells followers that nothing more will change, and gives them a limited time to show what they owe.
    async fn drain(&mut self, mut turns: Given) {
        self.note = channel::channel(()).0;
        let all = async {
            while self.writer.is_some() && self.failure.borrow().is_none() && (turns.is_asked() || turns.asked().await)
            {
                self.give(&mut turns).await;
            }
        };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            tracing::warn!("what follows the store is behind, and goes on at the next start");
        }
    }

    /// Counts a commit.
    fn written(&mut self) {
        self.commits += 1;
        self.uncut = self.uncut.saturating_add(1);
        self.last_write = Instant::now();
    }

    /// Does one piece of the background work, while nobody waits.
    async fn beside(&mut self) {
        if self.untidy || Steady::now().since(self.pruned) >= PACE {
            return self.prune().await;
        }
        if self.commits >= CHECKPOINT {
            self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)").await;
        }
        if self.uncut >= WORTH_CUTTING && self.last_write.elapsed() >= QUIET {
            self.uncut = 0;
            self.cut().await;
            if std::mem::take(&mut self.changes) >= MANY {
                self.slim().await;
            }
        }
    }

    async fn carry_out(&mut self, batch: Vec<Command>) {
        let mut writes = Vec::new();
        for command in batch {
            match command {
                // Nobody waits for this write any more.
                Command::Write(_, answer) if answer.is_closed() => {}
                Command::Write(changes, answer) => writes.push((changes, answer)),
                Command::Tidy => self.untidy = true,
            }
        }
        self.write(writes).await;
    }

    /// Commits all writes in one transaction. If that fails, commits each in its own, so that no writer fails because
    /// of another.
    ///
    /// Posted news come first. Nothing overtakes them, because an older state must not be written after a newer one.
    async fn write(&mut self, writes: Vec<(Vec<Change>, Answer)>) {
        let concerned = writes.iter().flat_map(|(changes, _)| changes).filter_map(Change::volume);
        let news = self.posted.begin(concerned);
        if writes.is_empty() && news.is_empty() {
            return;
        }
        let told: Vec<Change> = flat(&news).collect();
        let all: Vec<&Change> = told.iter().chain(writes.iter().flat_map(|(changes, _)| changes)).collect();
        let failed = match self.commit(&all).await {
            Ok(()) => {
                self.posted.end(Vec::new());
                for (_, answer) in writes {
                    let _ = answer.send(Ok(()));
                }
                return;
            }
            Err(failed) => failed,
        };
        // Another transaction would wait as long, or fail the same way.
        let hopeless = self.writer.is_none() || matches!(failed, StoreError::Busy { .. } | StoreError::Lost { .. });
        let told: Vec<&Change> = told.iter().collect();
        let failed = if hopeless { Some(failed) } else { self.commit(&told).await.err() };
        self.posted.end(if failed.is_some() { news } else { Vec::new() });
        for (changes, answer) in writes {
            let result = match &failed {
                Some(failed) => Err(failed.clone()),
                None => self.commit(&changes.iter().collect::<Vec<_>>()).await,
            };
            let _ = answer.send(result);
        }
    }

    /// Returns why writing fails.
    fn why(&self) -> StoreError {
        self.failure.borrow().clone().unwrap_or(StoreError::Closed)
    }

    async fn commit(&mut self, changes: &[&Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let Some(writer) = &mut self.writer else { return Err(self.why()) };
        // Nothing more is written into a file that a restart would not find.
        let before = self.failure.borrow().clone();
        if matches!(before, Some(StoreError::Lost { .. }))
            && let Some(lost) = lost(writer, before.as_ref())
        {
            return Err(self.failed(lost));
        }
        let asked = self.watch.ask();
        let result = write::commit(&mut writer.connection, changes, &self.boot_id).await;
        drop(asked);
        // The files are checked before the answer: a file that was removed meanwhile keeps nothing.
        let result = match lost(writer, self.failure.borrow().as_ref()) {
            Some(lost) => Err(lost),
            None => result.map_err(|error| StoreError::of(&self.path, &error)),
        };
        match result {
            Ok(()) => {
                if writer.noted.swap(false, Ordering::Relaxed) {
                    self.note.send_replace(());
                }
                self.written();
                self.last_commit = self.last_write;
                self.changes = self.changes.saturating_add(changes.len());
                self.works();
                Ok(())
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Records that writing works.
    fn works(&self) {
        self.failure.send_if_modified(|failure| {
            let before = failure.take();
            if let Some(before) = &before {
                tracing::info!("the store {} works again; before: {before}", self.path.display());
            }
            before.is_some()
        });
    }

    /// Records that writing fails.
    fn failed(&mut self, error: StoreError) -> StoreError {
        self.again_at = Instant::now() + RETRY;
        self.failure.send_if_modified(|failure| {
            let other = failure.as_ref() != Some(&error);
            // Logged once, however often it is retried.
            if other {
                tracing::error!("{error}. {}", error.hint());
                *failure = Some(error.clone());
            }
            other
        });
        error
    }

    /// Retries after a failure.
    async fn try_again(&mut self) {
        self.again_at = Instant::now() + RETRY;
        if self.writer.is_none() {
            return self.open().await;
        }
        self.look_at_files().await;
        let failure = self.failure.borrow().clone();
        match failure {
            None | Some(StoreError::Lost { .. }) => return,
            Some(_) => {}
        }
        if !self.posted.is_empty() {
            return self.write(Vec::new()).await;
        }
        let Some(writer) = &mut self.writer else { return };
        let asked = self.watch.ask();
        let kept = writer.seen.keep(&mut writer.connection, &self.boot_id).await;
        drop(asked);
        match kept {
            Ok(()) => self.works(),
            Err(error) => drop(self.failed(StoreError::of(&self.path, &error))),
        }
    }

    /// Opens a store whose disk took no writes at the start.
    async fn open(&mut self) {
        let options = Options {
            path: &self.path,
            history_days: self.history_days.load(Ordering::Relaxed),
            boot_id: &self.boot_id,
            spare: &self.spare,
        };
        let watch = self.watch.clone();
        let asked = watch.ask();
        let opened = match open::writer(options).await {
            Ok(writer) => open::reader(&self.path).await.map(|reader| (writer, reader)),
            Err(error) => Err(error),
        };
        drop(asked);
        match opened {
            Ok((writer, reader)) => {
                self.writer = Some(writer);
                self.reader.change(reader).await;
                self.works();
            }
            Err(error) => drop(self.failed(error)),
        }
    }

    /// Checks whether the store's files are still those that are open. Saves the contents of files that are lost.
    async fn look_at_files(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let before = self.failure.borrow().clone();
        match (lost(writer, before.as_ref()), before) {
            (None, Some(StoreError::Lost { .. })) => self.works(),
            (None, _) => {}
            (Some(lost), before) => {
                drop(self.failed(lost.clone()));
                let StoreError::Lost { path, what, saved } = lost else { return };
                if matches!(saved, Saved::As(_)) && before.is_some() {
                    return;
                }
                let Some(writer) = &mut self.writer else { return };
                let asked = self.watch.ask();
                let saved = match rescue::save(&mut writer.connection, &self.path).await {
                    Ok(copy) => Saved::As(copy),
                    Err(why) => Saved::Not(why),
                };
                drop(asked);
                self.failed(StoreError::Lost { path, what, saved });
            }
        }
    }

    async fn prune(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        self.pruned = Steady::now();
        let asked = self.watch.ask();
        let pruned = async {
            writer.seen.keep(&mut writer.connection, &self.boot_id).await?;
            writer.seen.prune(&mut writer.connection, self.history_days.load(Ordering::Relaxed)).await
        };
        let pruned = pruned.await;
        drop(asked);
        self.untidy = match pruned {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "old history could not be deleted; it is tried again tomorrow");
                false
            }
        };
    }

    /// Moves the log into the database, so that no commit has to do it.
    async fn checkpoint(&mut self, how: &'static str) {
        let Some(writer) = &mut self.writer else { return };
        self.commits = 0;
        let asked = self.watch.ask();
        let done = sqlx::query(how).execute(&mut *writer.connection).await;
        drop(asked);
        if let Err(error) = done {
            // The log becomes longer, which loses nothing.
            tracing::warn!(store = %self.path.display(), %error, "the log could not be written into the database (checkpoint)");
        }
    }

    /// Moves the log into the database. Commits then begin at the front of its file again. A long file is cut.
    async fn cut(&mut self) {
        if room::size(&self.path).is_ok_and(|size| size <= open::LOG_STAYS) {
            return self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)").await;
        }
        self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)").await;
        let Some(writer) = &mut self.writer else { return };
        let asked = self.watch.ask();
        room::make(&mut writer.connection, &self.path).await;
        drop(asked);
    }

    /// Frees the memory that a burst has used: the statements prepared for it, and free pages.
    async fn slim(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let asked = self.watch.ask();
        let cleared = writer.connection.clear_cached_statements().await;
        let shrunk = sqlx::query("PRAGMA shrink_memory").execute(&mut *writer.connection).await;
        let ready = write::prepare(&mut writer.connection).await;
        drop(asked);
        if let Err(error) = cleared.and(shrunk.map(drop)).and(ready) {
            tracing::debug!(%error, "SQLite has kept its memory");
        }
        memory::give_back();
    }

    async fn close(self) {
        let Some(Writer { mut connection, seen, files, .. }) = self.writer else { return };
        if files.missing().is_some() {
            // SQLite would remove the log by its name, which another file may have by now.
            return std::mem::forget(connection);
        }
        if let Err(error) = seen.keep(&mut connection, &self.boot_id).await {
            tracing::warn!(%error, "how long volumes have waited could not be recorded");
        }
        self.reader.close().await;
        if let Err(error) = connection.close().await {
            tracing::warn!(store = %self.path.display(), %error, "closing the store failed; the next start recovers it");
        }
    }
}

fn flat(news: &[(VolumeId, Vec<News>)]) -> impl Iterator<Item = Change> {
    news.iter().flat_map(|(volume, news)| news.iter().map(|news| Change::News(*volume, news.clone())))
}

/// Returns the error to give when the files were removed or replaced. It keeps where the contents were saved.
fn lost(writer: &Writer, before: Option<&StoreError>) -> Option<StoreError> {
    let missing = writer.files.missing()?;
    let saved = match before {
        Some(StoreError::Lost { saved, .. }) => saved.clone(),
        _ => Saved::Soon,
    };
    Some(StoreError::Lost { path: missing.path, what: missing.what, saved })
}

async fn changed(writer: Option<&Writer>) {
    match writer {
        Some(writer) => writer.files.changed().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
