//! Followers of the store: each shows the changed records elsewhere, at its own pace.
//!
//! The transactions that write the records note *which* volumes have changed (`migrations/0004_changed.sql`): one row
//! for each volume, with a number that only grows. A [`Follower`] knows the number up to which it has finished. It
//! reads the present record of each volume with a higher number, shows the record, and [settles](Follower::settle)
//! the number. It sets aside a volume that it cannot show, so that the others need not wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::watch;

use super::batch::Batch;
use super::read::Present;
use super::turn::{Turn, Turns};
use super::{StoreError, WriteConnection, open, read};
use crate::effect;
use crate::identity::VolumeId;

/// A volume that has changed.
#[derive(Debug)]
pub struct Changed {
    /// The number of the change, which gives the order.
    pub number: i64,
    /// The volume.
    pub volume: VolumeId,
    /// What is on record of the volume now. An error: the row holds a value that attachd did not write.
    pub present: Result<Present, String>,
}

/// The state of a follower, as it reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Since when the follower has been behind without a pause.
    pub behind_since: Option<Timestamp>,
    /// Why the follower can show nothing at present.
    pub failure: Option<String>,
    /// The id of one of the records that are set aside, and the reason.
    pub example: Option<(String, String)>,
}

/// What a follower shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// Volumes.
    Volumes,
    /// Operations.
    Operations,
}

impl Follows {
    /// Returns the word for one of them.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Volumes => "volume",
            Self::Operations => "operation",
        }
    }
}

/// What all followers show, and their states, by name.
pub(super) type AllProgress = Arc<Mutex<BTreeMap<&'static str, (Follows, Progress)>>>;

/// Reads the records that have changed, and shows them elsewhere.
pub struct Follower {
    name: &'static str,
    follows: Follows,
    path: PathBuf,
    turns: Turns,
    noted: watch::Receiver<()>,
    all_progress: AllProgress,
    /// The connection. It is opened during a turn.
    connection: Option<WriteConnection>,
    /// The time at which a statement on the connection is interrupted.
    deadline: Deadline,
    done: i64,
}

type Deadline = Arc<Mutex<Option<Instant>>>;

/// The number of SQLite's steps between two checks of the deadline.
const STEPS: i32 = 10_000;

impl Follower {
    pub(super) fn new(
        (name, follows): (&'static str, Follows),
        path: PathBuf,
        turns: Turns,
        noted: watch::Receiver<()>,
        all_progress: AllProgress,
    ) -> Self {
        all_progress.lock().unwrap_or_else(PoisonError::into_inner).insert(name, (follows, Progress::default()));
        Self {
            name,
            follows,
            path,
            turns,
            noted,
            all_progress,
            connection: None,
            deadline: Deadline::default(),
            done: 0,
        }
    }

    /// Returns the follower's name in the store.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Reports the follower's state.
    pub fn stands(&self, progress: Progress) {
        self.all_progress().insert(self.name, (self.follows, progress));
    }

    fn all_progress(&self) -> MutexGuard<'_, BTreeMap<&'static str, (Follows, Progress)>> {
        self.all_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when something may have changed. Returns false when nothing will change any more, because the store
    /// closes.
    pub async fn noted(&mut self) -> bool {
        self.noted.changed().await.is_ok()
    }

    /// Returns whether nothing will change any more.
    pub fn is_last(&self) -> bool {
        self.noted.has_changed().is_err()
    }

    /// Continues where the follower stopped. `basis` is what its rows depend on besides the volumes. If the basis has
    /// changed, or the follower is new, all volumes are owed. Volumes that were set aside are owed again.
    pub async fn resume(&mut self, basis: &str) -> Result<(), StoreError> {
        let name = self.name;
        let (turn, connection) = self.at_the_file(None).await?;
        let known = async {
            let done: Option<(i64, String)> = sqlx::query_as("SELECT done, basis FROM followers WHERE name = ?")
                .bind(name)
                .fetch_optional(&mut **connection)
                .await?;
            let set_aside: i64 = sqlx::query_scalar("SELECT count(*) FROM set_aside WHERE follower = ?")
                .bind(name)
                .fetch_one(&mut **connection)
                .await?;
            sqlx::Result::Ok((done, set_aside))
        };
        let known = known.await;
        let (known, set_aside) = self.checked(known)?;
        drop(turn);
        let same = known.as_ref().is_some_and(|(_, known)| known == basis);
        self.done = known.map_or(0, |(done, _)| done);
        if same && set_aside == 0 {
            return Ok(());
        }
        self.write(async |connection: &mut SqliteConnection| {
            let mut batch = Batch::default();
            if !same {
                note_all(&mut batch);
                let follows = "INSERT INTO followers (name, done, basis) VALUES (?, 0, ?) \
                    ON CONFLICT (name) DO UPDATE SET basis = excluded.basis";
                batch.add(follows).bind(name).bind(basis.to_owned());
            }
            note_set_aside(&mut batch, name);
            batch.run(connection).await
        })
        .await
    }

    /// Returns some of the owed volumes, in order.
    pub async fn next(&mut self, limit: i64) -> Result<Vec<Changed>, StoreError> {
        let done = self.done;
        let rows = self.read(async |connection| read::changed(connection, done, limit).await).await?;
        let known = rows.into_iter().filter_map(|(number, volume, present)| {
            // The triggers note only ids of volumes.
            let volume = volume.parse().ok()?;
            Some(Changed { number, volume, present: present.map_err(|error| error.to_string()) })
        });
        Ok(known.collect())
    }

    /// Records that the follower has finished everything up to `number`, except for the volumes in `refused`, which
    /// it sets aside. `shown` are volumes that were set aside before and are shown now.
    pub async fn settle(&mut self, number: i64, refused: &[VolumeId], shown: &[VolumeId]) -> Result<(), StoreError> {
        let name = self.name;
        let settled = async |connection: &mut SqliteConnection| {
            let mut batch = Batch::default();
            for volume in shown {
                batch
                    .add("DELETE FROM set_aside WHERE follower = ? AND volume_id = ?")
                    .bind(name)
                    .bind(volume.to_string());
            }
            for volume in refused {
                batch
                    .add("INSERT INTO set_aside (follower, volume_id) VALUES (?, ?) ON CONFLICT DO NOTHING")
                    .bind(name)
                    .bind(volume.to_string());
            }
            batch.add("UPDATE followers SET done = ? WHERE name = ?").bind(number).bind(name);
            batch.add("DELETE FROM changed WHERE seq <= (SELECT min(done) FROM followers)");
            batch.run(connection).await
        };
        self.write(settled).await?;
        self.done = number;
        Ok(())
    }

    /// Makes all volumes owed again.
    pub async fn owe_all(&mut self) -> Result<(), StoreError> {
        self.write(async |connection: &mut SqliteConnection| {
            let mut batch = Batch::default();
            note_all(&mut batch);
            batch.run(connection).await
        })
        .await
    }

    /// Removes the follower from the store, so that nothing is kept for it any more.
    pub(super) async fn forget(mut self) {
        let name = self.name;
        let forgotten = self.write(async |connection: &mut SqliteConnection| {
            let mut batch = Batch::default();
            batch.add("DELETE FROM set_aside WHERE follower = ?").bind(name);
            batch.add("DELETE FROM followers WHERE name = ?").bind(name);
            batch.add("DELETE FROM changed WHERE seq <= (SELECT min(done) FROM followers)");
            batch.run(connection).await
        });
        if let Err(error) = forgotten.await {
            // The next start tries again.
            tracing::debug!(follower = name, %error, "a follower is not forgotten");
        }
        self.rest().await;
    }

    /// Makes the volumes that are set aside owed again.
    pub async fn try_set_aside_again(&mut self) -> Result<(), StoreError> {
        let name = self.name;
        self.write(async |connection: &mut SqliteConnection| {
            let mut batch = Batch::default();
            note_set_aside(&mut batch, name);
            batch.run(connection).await
        })
        .await
    }

    /// Reads from the store's file.
    pub(super) async fn read<T>(
        &mut self,
        question: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>,
    ) -> Result<T, StoreError> {
        self.let_go_on_until(None);
        let answer = match &mut self.connection {
            // A reading connection waits for no lock.
            Some(connection) => question(connection).await,
            None => question(self.at_the_file(None).await?.1).await,
        };
        self.checked(answer)
    }

    /// Runs one transaction in a turn of its own.
    pub(super) async fn write<T>(
        &mut self,
        changes: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>,
    ) -> Result<T, StoreError> {
        let (_turn, connection) = self.at_the_file(None).await?;
        let written = effect::at_all(&["commit.followed"], async {
            connection.begin().await?;
            let applied = changes(connection).await;
            connection.end(applied).await
        });
        let written = written.await;
        self.checked(written)
    }

    /// Waits for a turn to write into the store's file. The connection is for a small transaction. After `limit` a
    /// statement ends with `SQLITE_INTERRUPT`; it is given where the duration depends on others.
    pub(crate) async fn at_the_file(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<(Turn, &mut WriteConnection), StoreError> {
        let turn = self.turns.take().await?;
        self.let_go_on_until(limit.map(|limit| Instant::now() + limit));
        match &mut self.connection {
            Some(connection) => Ok((turn, connection)),
            empty => {
                let opened = opened(&self.path, Arc::clone(&self.deadline)).await;
                Ok((turn, empty.insert(opened.map_err(|error| StoreError::of(&self.path, &error))?)))
            }
        }
    }

    fn let_go_on_until(&self, deadline: Option<Instant>) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// Reports an error on the connection, so that a broken connection is opened anew.
    pub(crate) fn failed(&mut self, error: &sqlx::Error) {
        if matches!(error, sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) {
            self.connection = None;
        }
    }

    fn checked<T>(&mut self, result: sqlx::Result<T>) -> Result<T, StoreError> {
        result.map_err(|error| {
            self.failed(&error);
            StoreError::of(&self.path, &error)
        })
    }

    /// Closes the connection while nothing is owed, which frees its thread and memory. The connection is opened again
    /// when needed.
    pub async fn rest(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(follower = self.name, %error, "a connection to the store did not close");
        }
    }
}

impl Drop for Follower {
    /// Reports that the follower has ended.
    fn drop(&mut self) {
        let mut all_progress = self.all_progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, progress)) = all_progress.get_mut(self.name) {
            progress.failure.get_or_insert_with(|| {
                "the task that writes there has ended; a restart of attachd starts it".to_owned()
            });
        }
    }
}

async fn opened(path: &Path, deadline: Deadline) -> sqlx::Result<WriteConnection> {
    let mut connection = open::derived(path).await?;
    let goes_on = move || {
        let deadline = *deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.is_none_or(|deadline| Instant::now() < deadline)
    };
    connection.lock_handle().await?.set_progress_handler(STEPS, goes_on);
    Ok(connection.into())
}

/// All volumes are noted again, because the number of the old rows says nothing about new ones.
fn note_all(batch: &mut Batch) {
    for table in [
        "DELETE FROM changed WHERE volume_id IN (SELECT volume_id FROM mappings)",
        "INSERT INTO changed (volume_id) SELECT volume_id FROM mappings",
        "DELETE FROM changed WHERE volume_id IN (SELECT volume_id FROM placeholders)",
        "INSERT INTO changed (volume_id) SELECT volume_id FROM placeholders",
    ] {
        batch.add(table);
    }
}

fn note_set_aside(batch: &mut Batch, follower: &'static str) {
    batch
        .add("DELETE FROM changed WHERE volume_id IN (SELECT volume_id FROM set_aside WHERE follower = ?)")
        .bind(follower);
    batch.add("INSERT INTO changed (volume_id) SELECT volume_id FROM set_aside WHERE follower = ?").bind(follower);
    batch.add("DELETE FROM set_aside WHERE follower = ?").bind(follower);
}
