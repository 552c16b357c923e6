//! A connection that writes, and its transactions.

use std::ops::{Deref, DerefMut};

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

/// A connection that writes. It knows for which version of the schema its statements were prepared.
///
/// Other programs can change the schema: they rename a table, or add a trigger that SQLite cannot compile. SQLite then
/// prepares a statement again, which fails. After that failure sqlx 0.9.0 panics in the connection's thread, if the
/// statement was not the first of a batch: `VirtualStatement::reset` resets the statements before it, which clears the
/// error that it then looks for ("There should be an error"). A command that waits in the thread's queue then never has
/// an answer. So a transaction begins with a look at the version, and after a change no statement is prepared *again*.
pub(crate) struct WriteConnection {
    inner: SqliteConnection,
    schema: Option<i64>,
}

impl From<SqliteConnection> for WriteConnection {
    fn from(inner: SqliteConnection) -> Self {
        Self { inner, schema: None }
    }
}

impl WriteConnection {
    /// Begins a transaction.
    ///
    /// This is not sqlx's own transaction. SQLite rolls back by itself when the disk is full. Then sqlx's rollback
    /// fails, and sqlx believes for ever that a transaction is open (sqlx 0.9.0: "attempted to call `begin_with` at
    /// non-zero transaction depth").
    pub(crate) async fn begin(&mut self) -> sqlx::Result<()> {
        // IMMEDIATE, because taking the write lock later could fail in the middle with SQLITE_BUSY. With the lock, nobody
        // else can change the schema.
        let begun = sqlx::query_scalar("BEGIN IMMEDIATE; PRAGMA schema_version").fetch_one(&mut self.inner).await;
        let begun = match begun {
            Ok(version) => match self.schema.replace(version) {
                Some(before) if before != version => self.inner.clear_cached_statements().await,
                _ => Ok(()),
            },
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => Ok(()),
            failed => self.end(failed).await,
        }
    }

    /// Ends a transaction: with a commit if everything succeeded, else with a rollback. Afterwards no transaction is
    /// open.
    pub(crate) async fn end<T>(&mut self, applied: sqlx::Result<T>) -> sqlx::Result<T> {
        let ended = match applied {
            Ok(value) => sqlx::query("COMMIT").execute(&mut self.inner).await.map(|_| value),
            Err(error) => Err(error),
        };
        if ended.is_err() {
            // The rollback fails when SQLite has rolled back already, which is fine.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.inner).await;
        }
        ended
    }

    /// Closes the connection.
    pub(crate) async fn close(self) -> sqlx::Result<()> {
        self.inner.close().await
    }
}

impl Deref for WriteConnection {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.inner
    }
}

impl DerefMut for WriteConnection {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.inner
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::batch::Batch;
    use crate::store::sample::run;
    use crate::store::{Options, open};

    async fn write(connection: &mut WriteConnection) -> sqlx::Result<()> {
        let mut batch = Batch::default();
        batch.add("UPDATE ours SET a = a + 1");
        batch.add("INSERT INTO theirs (a) VALUES (1)");
        let written = async {
            connection.begin().await?;
            let applied = batch.run(connection).await;
            connection.end(applied).await
        };
        let hangs = "sqlx's thread has panicked, and a command in its queue waits for ever";
        tokio::time::timeout(Duration::from_secs(20), written).await.expect(hangs)
    }

    #[tokio::test]
    async fn a_table_that_another_program_renames_and_a_trigger_that_does_not_compile_fail_a_batch_each_time_and_heal()
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let options = Options { path: &path, history_days: 90, boot_id: "boot", spare: dir.path() };
        let mut other = open::migrated(options).await.unwrap();
        run(&mut other, "CREATE TABLE ours (a)").await;
        run(&mut other, "CREATE TABLE theirs (a)").await;
        let mut writer = WriteConnection::from(open::derived(&path).await.unwrap());
        for (breaks, mends) in [
            ("ALTER TABLE theirs RENAME TO aside", "ALTER TABLE aside RENAME TO theirs"),
            ("CREATE TRIGGER odd AFTER INSERT ON theirs BEGIN INSERT INTO nowhere VALUES (1); END", "DROP TRIGGER odd"),
        ] {
            write(&mut writer).await.unwrap();
            run(&mut other, breaks).await;
            for _ in 0..3 {
                let failed = write(&mut writer).await.unwrap_err();
                assert!(failed.to_string().contains("no such table"), "{failed}");
            }
            run(&mut other, mends).await;
            write(&mut writer).await.unwrap();
        }
        let kept: (i64,) = sqlx::query_as("SELECT count(*) FROM theirs").fetch_one(&mut other).await.unwrap();
        assert_eq!(kept, (4,), "and what failed was taken back");
    }
}
