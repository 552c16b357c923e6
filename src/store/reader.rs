//! Reads on a connection of their own, which waits for no write and for no other program's lock.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::Mutex;

use super::watch::Watch;
use super::{OperationFilter, Owed, SILENT_AFTER, StoreError, operations, read, snapshots};
use crate::identity::{OperationId, VolumeId};
use crate::operation::{IdempotencyKey, Operation, Placeholder};
use crate::volume::{Entry, Snapshot};

/// The reading connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct ReadConnection {
    /// `None` once the store is closed.
    connection: Arc<Mutex<Option<SqliteConnection>>>,
    watch: Watch,
}

impl ReadConnection {
    pub(super) fn new(path: &Path, connection: SqliteConnection) -> Self {
        Self { connection: Arc::new(Mutex::new(Some(connection))), watch: Watch::new(path) }
    }

    pub(super) async fn timeline(&self, volume: VolumeId) -> Result<Vec<Entry>, StoreError> {
        self.ask(async |connection| read::timeline(connection, volume).await).await
    }

    pub(super) async fn owed(&self) -> Result<HashMap<String, Owed>, StoreError> {
        self.ask(async |connection| read::owed(connection).await).await
    }

    pub(super) async fn owed_operations(&self) -> Result<Owed, StoreError> {
        self.ask(async |connection| operations::owed(connection).await).await
    }

    pub(super) async fn open_operations(&self) -> Result<(Vec<Operation>, u64, Vec<Placeholder>), StoreError> {
        self.ask(async |connection| {
            let open = operations::open(connection).await?;
            Ok((open, operations::last_number(connection).await?, operations::placeholders(connection).await?))
        })
        .await
    }

    pub(super) async fn operations_failed_since(&self, since: Timestamp) -> Result<u64, StoreError> {
        self.ask(async |connection| operations::failed_since(connection, since).await).await
    }

    pub(super) async fn operation(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        self.ask(async |connection| operations::one(connection, id).await).await
    }

    pub(super) async fn operation_keyed(
        &self,
        uid: Option<u32>,
        key: &IdempotencyKey,
    ) -> Result<Option<Operation>, StoreError> {
        self.ask(async |connection| operations::keyed(connection, uid, key).await).await
    }

    pub(super) async fn operations(&self, filter: &OperationFilter) -> Result<Vec<Operation>, StoreError> {
        self.ask(async |connection| operations::list(connection, filter).await).await
    }

    pub(super) async fn snapshot(&self, volume: VolumeId) -> Result<Option<Snapshot>, StoreError> {
        self.ask(async |connection| snapshots::of_volume(connection, volume).await).await
    }

    pub(super) async fn snapshots_of(&self, vm_context: &str) -> Result<Vec<Snapshot>, StoreError> {
        self.ask(async |connection| snapshots::of_context(connection, vm_context).await).await
    }

    pub(super) async fn snapshots_count(&self) -> Result<u64, StoreError> {
        self.ask(async |connection| snapshots::count(connection).await).await
    }

    /// Reads from another file from now on.
    pub(super) async fn change(&self, connection: SqliteConnection) {
        *self.connection.lock().await = Some(connection);
    }

    /// Closes the connection, unless it hangs. SQLite removes the log when the last connection closes, and a reading
    /// connection cannot remove it.
    pub(super) async fn close(&self) {
        let closed = async {
            match self.connection.lock().await.take() {
                Some(connection) => connection.close().await,
                None => Ok(()),
            }
        };
        if !matches!(tokio::time::timeout(SILENT_AFTER, closed).await, Ok(Ok(()))) {
            tracing::debug!("the reading connection to the store is left to the end of the process");
        }
    }

    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>,
    ) -> Result<T, StoreError> {
        let answer = async {
            let mut connection = self.connection.lock().await;
            let connection = connection.as_mut().ok_or(StoreError::Closed)?;
            let _asked = self.watch.ask();
            question(connection).await.map_err(|error| StoreError::of(self.watch.path(), &error))
        };
        // A read that is given up continues in SQLite's thread. The next read waits for it, but no longer than this
        // time limit.
        tokio::time::timeout(SILENT_AFTER, answer).await.unwrap_or_else(|_| {
            let since = crate::clock::wall() - SILENT_AFTER;
            Err(StoreError::Silent { path: self.watch.path().to_owned(), since })
        })
    }
}
