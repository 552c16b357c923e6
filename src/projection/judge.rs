//! What an error of SQLite says about rows that were written.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::TargetError;

/// The time limit for one write. Other programs can have triggers on the tables, and the store waits in the meantime.
pub(super) const LIMIT: Duration = Duration::from_millis(200);

/// Decides whether the rows are at fault, or the tables, which may have been changed. `statements` are all that a write
/// may consist of.
pub(super) async fn judged(
    connection: &mut SqliteConnection,
    error: &sqlx::Error,
    statements: &[&'static str],
) -> TargetError {
    let message = error.to_string();
    let sqlx::Error::Database(database) = error else { return TargetError::Away(message) };
    // The low byte is the kind of error (https://www.sqlite.org/rescode.html).
    match database.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
        Some(SQLITE_CONSTRAINT | SQLITE_MISMATCH | SQLITE_TOOBIG | SQLITE_ABORT) => TargetError::Refused(message),
        Some(SQLITE_INTERRUPT) => TargetError::Refused(format!("it takes longer than {} ms", LIMIT.as_millis())),
        Some(SQLITE_ERROR) if tables_fit(connection, statements).await => TargetError::Refused(message),
        _ => TargetError::Away(message),
    }
}

/// Returns whether the statements could be executed at all: the tables, columns and triggers exist.
async fn tables_fit(connection: &mut SqliteConnection, statements: &[&'static str]) -> bool {
    for statement in statements {
        // The statement is compiled but not executed.
        let explained = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN {statement}"))).persistent(false);
        if explained.execute(&mut *connection).await.is_err() {
            return false;
        }
    }
    true
}

const SQLITE_ERROR: u32 = 1;
const SQLITE_ABORT: u32 = 4;
const SQLITE_INTERRUPT: u32 = 9;
const SQLITE_TOOBIG: u32 = 18;
const SQLITE_CONSTRAINT: u32 = 19;
const SQLITE_MISMATCH: u32 = 20;
