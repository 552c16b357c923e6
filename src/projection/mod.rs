//! The predecessor's tables `device_mappings`, `nbd_exports` and `volume_operations`, for programs that read them with
//! SQL: the present row of each volume and of each operation in a database.
//!
//! ```text
//!  store ─▶ source: which records have changed ─▶ task ─▶ rows (pure) ─▶ target
//! ```
//!
//! No answer of attachd comes from these tables, and nothing waits for them. [`task`] follows a [`source`] at its own
//! pace, with a connection of its own for each [`Target`]. [`rows()`] computes what is shown of a volume, and [`sqlite`]
//! writes it into the store's own file, [`mariadb`] into the predecessor's database; [`operations`] has both for operations.

mod judge;
mod mariadb;
mod operations;
mod rows;
mod settings;
mod source;
mod sqlite;
mod task;
#[cfg(test)]
mod tests;

pub use mariadb::{Mariadb, Unusable, check, password};
pub use rows::{Mode, Rows, ShownVolume, rows, rows_elsewhere};
pub use settings::{BadDatabaseUrl, DatabaseSettings, DatabaseUrl};
pub use source::Shown;
pub use sqlite::Sqlite;

use tokio::task::JoinHandle;

use crate::store::{Follower, Follows, Store};

/// A database to which rows are written.
pub trait Target<S: Shown>: Send + 'static {
    /// Whether rows can vanish there without the store. Then all rows are written once more at a start, and after the
    /// target was away.
    const LOSES_ROWS: bool = false;

    /// Writes all of these rows or none. A repetition changes nothing. With no rows it checks whether rows could be
    /// written. `follower` has the connection to the store's file, for a target in that file.
    fn write(&mut self, rows: &[S], follower: &mut Follower) -> impl Future<Output = Result<(), TargetError>> + Send;

    /// Lets go of what is needed only to write. Called when nothing is pending.
    fn rest(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Why a target did not accept rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The target accepts no rows at the moment.
    #[error("{0}")]
    Away(String),
    /// The target refuses these rows.
    #[error("{0}")]
    Refused(String),
}

/// The name of the table of operations in the store's own file.
const SQLITE_OPERATIONS: &str = "sqlite-operations";

/// The target name of the store's own file.
const SQLITE: &str = "sqlite";

/// The target name of the predecessor's own database.
const MARIADB: &str = "mariadb";

/// Returns a text of what the rows depend on besides the volumes. Raise the first number when [`rows()`] shows
/// volumes in another way: then all rows are written once more.
fn basis(port: u16) -> String {
    format!("1, port {port}")
}

/// Starts to show the store's volumes in the predecessor's own database, too. Without a database, the notes for an
/// earlier one are removed.
pub fn start_mariadb(store: &Store, database: Option<&DatabaseSettings>, port: u16) -> JoinHandle<()> {
    let Some(settings) = database.cloned() else { return tokio::spawn(store.unfollow(MARIADB)) };
    let basis = format!("{}, {settings}", basis(port));
    let source = source::Volumes::new(store.follow(MARIADB, Follows::Volumes), basis);
    tokio::spawn(task::run(source, Mariadb::new(settings, port), task::PACE))
}

/// Starts to show the store's operations in its own file.
pub fn start_operations(store: &Store) -> JoinHandle<()> {
    let source = source::Operations(store.follow(SQLITE_OPERATIONS, Follows::Operations));
    tokio::spawn(task::run(source, operations::SqliteOperations, task::PACE))
}

/// Starts to show the store's volumes in its own file. The task ends when the store closes, and the next start writes
/// what is missing. `port` is the NBD server's.
pub fn start(store: &Store, port: u16) -> JoinHandle<()> {
    let source = source::Volumes::new(store.follow(SQLITE, Follows::Volumes), basis(port));
    tokio::spawn(task::run(source, Sqlite::new(port), task::PACE))
}
