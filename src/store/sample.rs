//! A store in a folder of its own, for tests.

use std::path::{Path, PathBuf};

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::task::JoinHandle;

use super::{Options, Store};
use crate::volume::Record;

/// A folder with a store in it; removed when dropped.
pub(crate) struct StoreFolder(tempfile::TempDir);

impl StoreFolder {
    /// Makes the folder.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Returns the folder's path.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of the store's file.
    pub(crate) fn file(&self) -> PathBuf {
        self.path().join("attachd.db")
    }

    /// Opens the store.
    pub(crate) async fn open(&self) -> (Store, JoinHandle<()>, Vec<Record>) {
        self.open_in("this boot").await
    }

    /// Opens the store in the boot with this id.
    pub(crate) async fn open_in(&self, boot_id: &str) -> (Store, JoinHandle<()>, Vec<Record>) {
        let options = Options { path: &self.file(), history_days: 90, boot_id, spare: self.path() };
        Store::open(options).await.unwrap()
    }

    /// Opens a connection as another program would.
    pub(crate) async fn other(&self) -> SqliteConnection {
        SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(self.file())).await.unwrap()
    }
}

/// Runs statements.
pub(crate) async fn run(connection: &mut SqliteConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}
