//! The predecessor's tables `device_mappings`, `nbd_exports` and `volume_operations`, for programs that read them with
//! SQL: the present row of each volume and of each operation in a database.
//!
//! ```text
//!  store ─▶ source: which records have changed ─▶ task ─▶ rows (pure) ─▶ target
//! ```
//!
//! No answer of attachd comes from these tables, and nothing waits for them. [`task`] follows a [`source`] at its own
//! pace, with a connection of its own for each [`Target`]. [`rows()`] computes what is shown of a volume, and [`sqlite`]
//! writes it into the store's own file; [`operations`] has both for operations.

mod judge;
mod operations;
mod rows;
mod source;
mod sqlite;
mod task;
#[cfg(test)]
mod tests;

pub use rows::{Mode, Rows, ShownVolume, rows, rows_elsewhere};
pub use source::Shown;
pub use sqlite::Sqlite;

use tokio::task::JoinHandle;

use crate::store::{Follower, Follows, Store};

/// A database to which rows are written.
pub trait Target<S: Shown>: Send + 'static {
    /// Writes all of these rows or none. A repetition changes nothing. With no rows it checks whether rows could be
    /// written. `follower` has the connection to the store's file, for a target in that file.
    fn write(&mut self, rows: &[S], follower: &mut Follower) -> impl Future<Output = Result<(), TargetError>> + Send;
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

/// Returns a text of what the rows depend on besides the volumes. Raise the first number when [`rows()`] shows
/// volumes in another way: then all rows are written once more.
fn basis(port: u16) -> String {
    format!("1, port {port}")
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
