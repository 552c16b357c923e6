//! The predecessor's tables `device_mappings` and `nbd_exports`, for those who read them with SQL: the present row of each
//! volume, in somebody's database.
//!
//! ```text
//!  store ─▶ which volumes have changed ─▶ task ─▶ rows (pure) ─▶ target
//! ```
//!
//! Nothing is answered from them, and nothing waits for them: [`task`] follows the store at its own pace, with a connection
//! of its own for each [`Target`]. [`rows()`] says what is shown of a volume, [`sqlite`] writes it into the store's own file.

mod rows;
mod sqlite;
mod task;
#[cfg(test)]
mod tests;

pub use rows::{Rows, Shown, rows};
pub use sqlite::Sqlite;

use tokio::task::JoinHandle;

use crate::store::{Follower, Store};

/// Where rows are written: one database.
pub trait Target: Send + 'static {
    /// Writes all of these or none. Writing them twice changes nothing. None at all: whether it could be done.
    /// `follower`: for a target in the store's own file, which has that one's connection.
    fn write(&mut self, rows: &[Rows], follower: &mut Follower)
    -> impl Future<Output = Result<(), TargetError>> + Send;
}

/// Why a target has not taken what it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It takes nothing just now, whatever it is.
    #[error("{0}")]
    Away(String),
    /// It does not take this.
    #[error("{0}")]
    Refused(String),
}

/// The name of the store's own file as a target.
const SQLITE: &str = "sqlite";

/// What the rows depend on besides the volumes. The first number is to be raised when [`rows()`] shows volumes otherwise than
/// before: then all of them are written once more.
fn basis(port: u16) -> String {
    format!("1, port {port}")
}

/// Begins to show the store's volumes in its own file. Ends when the store closes; what is owed then is shown by the next start.
/// `port`: where the NBD server listens.
pub fn start(store: &Store, port: u16) -> JoinHandle<()> {
    let follower = store.follow(SQLITE);
    tokio::spawn(task::run(follower, Sqlite::new(port), basis(port), task::PACE))
}
