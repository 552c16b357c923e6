//! The local truth: one SQLite file, one writer.
//!
//! [`Store`] is a handle to a task that owns the only connection. It takes whatever writes are queued into one
//! transaction, so a burst of a thousand disks costs a few synced commits, and answers each writer after the commit
//! that holds its changes. Rows for the predecessor's tables go through the [`outbox`] of the same transaction and are
//! applied when no writer waits.

mod batch;
mod outbox;
mod read;
mod write;

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, SqlSafeStr};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::identity::VolumeId;
use crate::volume::{Entry, Record};
pub use write::{Change, Projection};

/// Writes that may wait for the task; more than that and a writer waits itself.
const QUEUE: usize = 4096;

/// SQLite's own copies of pages: 256 KiB. Its two megabytes would fill over weeks with the stories of volumes long gone,
/// which nobody asks for; the kernel has the file's pages too.
const CACHE: &str = "-256";

/// Pages of the log (4 KiB each) after which SQLite itself moves them into the database, within some commit: only the
/// backstop for [`CHECKPOINT`].
const LAST_RESORT_PAGES: &str = "10000";

/// Commits after which the log is moved into the database, as soon as nobody waits.
const CHECKPOINT: u32 = 200;

/// Rows read ahead.
const ROWS: usize = 1000;

/// Writes taken into one transaction: more would make whoever asks something wait for long.
const AT_ONCE: usize = 512;

/// How long a failed background write waits before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The store could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("the store {path} failed: {message}")]
    Sqlite {
        /// The file.
        path: String,
        /// SQLite's own words.
        message: String,
    },
    /// The task has ended: the daemon is stopping.
    #[error("the store is closed")]
    Closed,
}

/// A handle to the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    /// Asked between two transactions, ahead of the writes that wait.
    pulses: mpsc::Sender<oneshot::Sender<Result<Pulse, StoreError>>>,
}

/// What there is to say about the store's health.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// Rows the projection has yet to be told.
    pub outbox: u64,
    /// Why the last write failed, when it did.
    pub last_failure: Option<String>,
}

type Answer = oneshot::Sender<Result<(), StoreError>>;

enum Command {
    Write(Vec<Change>, Option<Answer>),
    Timeline(VolumeId, oneshot::Sender<Result<Vec<Entry>, StoreError>>),
}

impl Store {
    /// Opens the file, creates and migrates it, and reads what it holds. The task ends after the last handle is gone.
    pub async fn open(
        path: &Path,
        history_days: u32,
        port: u16,
    ) -> Result<(Self, JoinHandle<()>, Vec<Record>), StoreError> {
        let failed = |error: &dyn std::fmt::Display| StoreError::Sqlite {
            path: path.display().to_string(),
            message: error.to_string(),
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: in WAL mode NORMAL would lose the last commits at a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("wal_autocheckpoint", LAST_RESORT_PAGES)
            .pragma("cache_size", CACHE)
            .busy_timeout(Duration::from_secs(5))
            // Rows that may wait between SQLite's thread and this one: with fewer the two keep waking each other.
            .row_buffer_size(ROWS);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(|error| failed(&error))?;
        migrations().run_direct(None, &mut connection, false).await.map_err(|error| failed(&error))?;
        write::prune(&mut connection, history_days).await.map_err(|error| failed(&error))?;
        let records = read::records(&mut connection).await.map_err(|error| failed(&error))?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (pulses, asked) = mpsc::channel(1);
        let task = Task {
            connection,
            path: path.display().to_string(),
            port,
            postponed: Vec::new(),
            outbox: Outbox::Filled,
            commits: 0,
            last_failure: None,
            again_at: Instant::now(),
        };
        let task = tokio::spawn(task.run(queue, asked));
        Ok((Self { commands, pulses }, task, records))
    }

    /// Writes all changes in one transaction; durable when this answers with success, and not there at all otherwise.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.begin(changes).await?.await.map_err(|_| StoreError::Closed)?
    }

    /// Queues changes and returns the answer to wait for: calls queue in their order, the waiting can happen elsewhere.
    pub async fn begin(&self, changes: Vec<Change>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        let (answer, result) = oneshot::channel();
        self.send(Command::Write(changes, Some(answer))).await?;
        Ok(result)
    }

    /// Queues changes nobody waits for. They are tried again until they are written.
    pub async fn post(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.send(Command::Write(changes, None)).await
    }

    /// A volume's story, oldest first; empty when it has none.
    pub async fn timeline(&self, volume: VolumeId) -> Result<Vec<Entry>, StoreError> {
        let (answer, result) = oneshot::channel();
        self.send(Command::Timeline(volume, answer)).await?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Asks the database itself how it is.
    pub async fn pulse(&self) -> Result<Pulse, StoreError> {
        let (answer, result) = oneshot::channel();
        self.pulses.send(answer).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    async fn send(&self, command: Command) -> Result<(), StoreError> {
        self.commands.send(command).await.map_err(|_| StoreError::Closed)
    }
}

/// What waits for the projection.
#[derive(Debug, PartialEq, Eq)]
enum Outbox {
    Empty,
    /// Perhaps something.
    Filled,
    /// Something that could not be applied, and why.
    Stuck(StoreError),
}

struct Task {
    connection: SqliteConnection,
    path: String,
    /// The NBD port, which the projection repeats for each export.
    port: u16,
    /// Changes nobody waits for whose commit failed.
    postponed: Vec<Change>,
    outbox: Outbox,
    /// Since the log was last moved into the database.
    commits: u32,
    last_failure: Option<String>,
    /// When what failed is tried again.
    again_at: Instant,
}

impl Task {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut pulses: mpsc::Receiver<oneshot::Sender<Result<Pulse, StoreError>>>,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some(answer) = pulses.recv() => {
                    let _ = answer.send(self.pulse().await);
                    continue;
                }
                received = queue.recv_many(&mut batch, AT_ONCE) => if received == 0 { break },
                () = until(self.left_to_do()) => {}
            }
            self.carry_out(std::mem::take(&mut batch)).await;
            if queue.is_empty() && self.outbox != Outbox::Empty && self.postponed.is_empty() {
                self.project().await;
            }
            if queue.is_empty() && self.commits >= CHECKPOINT {
                self.checkpoint().await;
            }
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(store = self.path, %error, "closing the store failed; the next start recovers it");
        }
    }

    /// When there is something to do although nobody asks; `None` on an idle daemon.
    fn left_to_do(&self) -> Option<Instant> {
        match self.outbox {
            _ if !self.postponed.is_empty() => Some(self.again_at),
            Outbox::Filled => Some(Instant::now()),
            Outbox::Stuck(_) => Some(self.again_at),
            Outbox::Empty => None,
        }
    }

    async fn carry_out(&mut self, batch: Vec<Command>) {
        let mut writes = Vec::new();
        let mut timelines = Vec::new();
        for command in batch {
            match command {
                Command::Write(changes, answer) => writes.push((changes, answer)),
                Command::Timeline(volume, answer) => timelines.push((volume, answer)),
            }
        }
        self.write(writes).await;
        for (volume, answer) in timelines {
            let entries = read::timeline(&mut self.connection, volume).await;
            let _ = answer.send(entries.map_err(|error| self.failed(&error)));
        }
    }

    async fn pulse(&mut self) -> Result<Pulse, StoreError> {
        if self.last_failure.is_some() && write::test(&mut self.connection).await.is_ok() {
            self.last_failure = None;
        }
        let outbox = read::outbox_length(&mut self.connection).await.map_err(|error| self.failed(&error))?;
        let stuck = match &self.outbox {
            Outbox::Stuck(StoreError::Sqlite { message, .. }) => Some(message.clone()),
            _ => None,
        };
        Ok(Pulse { outbox, last_failure: self.last_failure.clone().or(stuck) })
    }

    /// One transaction for all; when it fails, one for each, so that nobody fails for another's sake.
    async fn write(&mut self, writes: Vec<(Vec<Change>, Option<Answer>)>) {
        if writes.is_empty() && self.postponed.is_empty() {
            return;
        }
        let postponed = std::mem::take(&mut self.postponed);
        self.commits += 1;
        let mut all: Vec<&Change> = postponed.iter().collect();
        for (changes, _) in &writes {
            all.extend(changes);
        }
        match write::commit(&mut self.connection, &all).await {
            Ok(projected) => {
                self.fill_outbox(projected);
                self.last_failure = None;
                for (_, answer) in writes {
                    answer.map(|answer| answer.send(Ok(())));
                }
                return;
            }
            Err(error) => drop(self.failed(&error)),
        }
        self.write_alone(postponed, None).await;
        for (changes, answer) in writes {
            // Nothing overtakes what waits: an older state must not come after a newer one.
            if self.postponed.is_empty() {
                self.write_alone(changes, answer).await;
            } else if let Some(answer) = answer {
                let message = self.last_failure.clone().unwrap_or_default();
                let _ = answer.send(Err(StoreError::Sqlite { path: self.path.clone(), message }));
            } else {
                self.postponed.extend(changes);
            }
        }
    }

    async fn write_alone(&mut self, changes: Vec<Change>, answer: Option<Answer>) {
        if changes.is_empty() && answer.is_none() {
            return;
        }
        let result = write::commit(&mut self.connection, &changes.iter().collect::<Vec<_>>()).await;
        let result = result.map(|projected| self.fill_outbox(projected)).map_err(|error| self.failed(&error));
        match answer {
            Some(answer) => drop(answer.send(result)),
            None if result.is_err() => self.postponed.extend(changes),
            None => {}
        }
    }

    fn fill_outbox(&mut self, projected: bool) {
        if projected {
            self.outbox = Outbox::Filled;
        }
    }

    /// Some of it: whoever wants to write meanwhile has his turn in between.
    async fn project(&mut self) {
        self.outbox = match outbox::apply(&mut self.connection, self.port).await {
            Ok(true) => Outbox::Filled,
            Ok(false) => Outbox::Empty,
            // The rows wait in order.
            Err(error) => Outbox::Stuck(self.failed(&error)),
        };
    }

    /// Moves the log into the database, so that no commit has to.
    async fn checkpoint(&mut self) {
        self.commits = 0;
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut self.connection).await {
            // The log stays longer; nothing is lost by that.
            tracing::warn!(store = self.path, %error, "the log could not be moved into the database");
        }
    }

    fn failed(&mut self, error: &sqlx::Error) -> StoreError {
        let message = match error {
            sqlx::Error::Database(error) => error.message().to_owned(),
            other => other.to_string(),
        };
        // Once, however often it is tried again.
        if self.last_failure.as_ref() != Some(&message) {
            tracing::error!(store = self.path, error = message, "the store failed");
        }
        self.last_failure = Some(message.clone());
        self.again_at = Instant::now() + RETRY;
        StoreError::Sqlite { path: self.path.clone(), message }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn migrations() -> Migrator {
    let sql = include_str!("../../migrations/0001_initial.sql").into_sql_str();
    Migrator::with_migrations(vec![Migration::new(1, "initial".into(), MigrationType::Simple, sql, false)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::evidence::{self, Evidence};
    use crate::device::facts::sample;
    use crate::volume::Intent;

    fn proven() -> Evidence {
        evidence::check(&sample::ground(), &[&sample::device()], None, jiff::Timestamp::now()).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_projection_that_failed_is_made_up_for_without_another_write() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("attachd.db");
        let (store, _task, _) = Store::open(&file, 90, 10809).await.unwrap();
        let options = SqliteConnectOptions::new().filename(&file);
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON nbd_exports BEGIN SELECT RAISE(ABORT, 'not now'); END";
        sqlx::query(refuse).execute(&mut other).await.unwrap();

        let (volume, evidence) = (sample::volume(), proven());
        let mapping = Some((evidence.link.clone(), evidence.size_bytes));
        let intent = Intent {
            volume,
            vm_id: "vm".into(),
            size_bytes: None,
            deadline_seconds: None,
            created_at: evidence.at,
            uid: None,
        };
        let projection =
            Projection { volume, vm_id: "vm".into(), at: evidence.at, mapping, export_status: Some("active") };
        let changes = vec![Change::Intend(intent), Change::Map(volume, evidence), Change::Project(projection)];
        store.write(changes).await.unwrap();
        until(&mut other, "SELECT 1 FROM intents").await;
        let stuck = store.pulse().await.unwrap();
        assert_eq!((stuck.outbox, stuck.last_failure.as_deref()), (1, Some("not now")));

        sqlx::query("DROP TRIGGER refuse").execute(&mut other).await.unwrap();
        until(&mut other, "SELECT 1 FROM nbd_exports JOIN device_mappings ON volume_uuid = volume_id").await;
    }

    /// Waits until there is such a row.
    async fn until(connection: &mut SqliteConnection, rows: &'static str) {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..500 {
            looks.tick().await;
            if !sqlx::query(rows).fetch_all(&mut *connection).await.unwrap().is_empty() {
                return;
            }
        }
        panic!("no row: {rows}");
    }
}
