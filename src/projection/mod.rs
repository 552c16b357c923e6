//! The predecessor's tables `device_mappings` and `nbd_exports`, for programs that read them with SQL: the present
//! row of each volume in a database.
//!
//! ```text
//!  store ─▶ which volumes have changed ─▶ task ─▶ rows (pure) ─▶ target
//! ```
//!
//! No answer of attachd comes from these tables, and nothing waits for them. [`task`] follows the store at its own
//! pace, with a connection of its own for each [`Target`]. [`rows()`] computes what is shown of a volume; [`sqlite`]
//! writes it into the store's own file.

mod operations;
mod rows;
mod sqlite;
mod task;
#[cfg(test)]
mod tests;

pub use rows::{Mode, Rows, Shown, rows, rows_elsewhere};
pub use sqlite::Sqlite;

use tokio::task::JoinHandle;

use crate::store::{Follower, Store};

/// A database to which rows are written.
pub trait Target: Send + 'static {
    /// Writes all of these rows or none. A repetition changes nothing. With no rows it checks whether rows could be
    /// written. `follower` has the connection to the store's file, for a target in that file.
    fn write(&mut self, rows: &[Rows], follower: &mut Follower)
    -> impl Future<Output = Result<(), TargetError>> + Send;
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
    tokio::spawn(operations::run(store.follow(SQLITE_OPERATIONS)))
}

/// Starts to show the store's volumes in its own file. The task ends when the store closes, and the next start writes
/// what is missing. `port` is the NBD server's.
pub fn start(store: &Store, port: u16) -> JoinHandle<()> {
    let follower = store.follow(SQLITE);
    tokio::spawn(task::run(follower, Sqlite::new(port), basis(port), task::PACE))
}
