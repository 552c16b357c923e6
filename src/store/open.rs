//! Opens the file: the one connection that writes, and the one that reads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, SqlSafeStr};

use super::files::Files;
use super::foreign;
use super::history::{self, Seen};
use super::{Options, StoreError, WriteConnection, read, room, write};
use crate::volume::Record;

/// SQLite's page cache: 256 KiB. The default of two megabytes would fill over weeks with the timelines of old
/// volumes, which nobody reads. The kernel caches the file's pages too.
const CACHE: &str = "-256";

/// The number of pages of the log (4 KiB each) after which SQLite itself moves them into the database, during a
/// commit. This is only the fallback for the task's own checkpoints.
const LAST_RESORT_PAGES: &str = "10000";

/// The size up to which the log's file stays after use: 4 MiB.
pub(super) const LOG_STAYS: u64 = 4 << 20;

/// The number of rows read ahead. With fewer, SQLite's thread and this one keep waking each other.
const ROWS: usize = 1000;

/// The number of prepared statements kept: more than a volume's life needs. Long statements come with a burst, and
/// are dropped after it ([`super::task`]).
const STATEMENTS: usize = 64;

/// How long SQLite waits for another program's lock. A caller may wait for a running write, and then for its own.
const LOCKED: Duration = Duration::from_millis(300);

/// How long SQLite waits for a lock at the start, when nobody waits for an answer yet.
const LOCKED_AT_START: Duration = Duration::from_secs(5);

/// The connection that writes, and what belongs to it.
pub(super) struct Writer {
    pub(super) connection: WriteConnection,
    pub(super) files: Files,
    pub(super) seen: Seen,
    /// Whether a trigger has noted a volume as changed since the last check.
    pub(super) noted: Arc<AtomicBool>,
}

/// Opens a store for writing.
pub(super) async fn writer(options: Options<'_>) -> Result<Writer, StoreError> {
    let failed = |error: sqlx::Error| StoreError::of(options.path, &error);
    let mut connection = WriteConnection::from(migrated(options).await.map_err(failed)?);
    let prepared = async {
        history::rebase(&mut connection, options.boot_id).await?;
        let seen = Seen::load(&mut connection, options.boot_id).await?;
        seen.keep(&mut connection, options.boot_id).await?;
        write::prepare(&mut connection).await?;
        while seen.prune(&mut connection, options.history_days).await? {}
        let busy = format!("PRAGMA busy_timeout = {}", LOCKED.as_millis());
        sqlx::query(sqlx::AssertSqlSafe(busy)).execute(&mut *connection).await?;
        Ok(seen)
    };
    let seen = prepared.await.map_err(failed)?;
    let noted = noted(&mut connection).await.map_err(failed)?;
    room::make(&mut connection, options.path).await;
    let files = Files::of(options.path).map_err(|error| failed(error.into()))?;
    Ok(Writer { connection, files, seen, noted })
}

/// Returns a flag that each row of `changed` sets. SQLite reports the rows of its triggers as well.
async fn noted(connection: &mut SqliteConnection) -> sqlx::Result<Arc<AtomicBool>> {
    let noted = Arc::<AtomicBool>::default();
    let note = Arc::clone(&noted);
    connection.lock_handle().await?.set_update_hook(move |row| {
        if ["changed", "changed_operations"].contains(&row.table) {
            note.store(true, Ordering::Relaxed);
        }
    });
    Ok(noted)
}

/// Returns a connection to a file with the newest schema. The file is created when there is none.
pub(super) async fn migrated(options: Options<'_>) -> sqlx::Result<SqliteConnection> {
    let connect = general(options.path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // FULL, because in WAL mode NORMAL would lose the last commits at a power cut.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .pragma("wal_autocheckpoint", LAST_RESORT_PAGES)
        .pragma("journal_size_limit", LOG_STAYS.to_string())
        .busy_timeout(LOCKED_AT_START);
    let mut connection = SqliteConnection::connect_with(&connect).await?;
    migrations().run_direct(None, &mut connection, false).await?;
    foreign::mark(&mut connection).await?;
    Ok(connection)
}

/// Returns a connection that only reads, of a file that is open for writing already.
pub(super) async fn reader(path: &Path) -> Result<SqliteConnection, StoreError> {
    let connect = general(path).read_only(true).busy_timeout(LOCKED);
    SqliteConnection::connect_with(&connect).await.map_err(|error| StoreError::of(path, &error))
}

/// Returns a connection for derived tables in the store's file. The file must be open for writing already, and the
/// caller must have a [`super::Turn`].
///
/// Its commits are not synced by themselves: the store's next commit syncs them. A power cut before that takes back
/// the rows together with the follower's progress, because the log is lost from its end. The connection waits for no
/// lock, because others go first.
pub(super) async fn derived(path: &Path) -> sqlx::Result<SqliteConnection> {
    let connect = general(path)
        .create_if_missing(false)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        // The store's own task makes the checkpoints.
        .pragma("wal_autocheckpoint", "0")
        .busy_timeout(Duration::ZERO);
    SqliteConnection::connect_with(&connect).await
}

/// Returns the records of every volume.
pub(super) async fn records(connection: &mut SqliteConnection, path: &Path) -> Result<Vec<Record>, StoreError> {
    read::records(connection).await.map_err(|error| StoreError::of(path, &error))
}

fn general(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .pragma("cache_size", CACHE)
        .statement_cache_capacity(STATEMENTS)
        .row_buffer_size(ROWS)
}

fn migrations() -> Migrator {
    let all = [
        (1, "initial", include_str!("../../migrations/0001_initial.sql")),
        (2, "time", include_str!("../../migrations/0002_time.sql")),
        (3, "seal", include_str!("../../migrations/0003_seal.sql")),
        (4, "changed", include_str!("../../migrations/0004_changed.sql")),
        (5, "operations", include_str!("../../migrations/0005_operations.sql")),
        (6, "shown", include_str!("../../migrations/0006_shown.sql")),
        (7, "placeholder rows", include_str!("../../migrations/0007_placeholder_rows.sql")),
        (8, "written", include_str!("../../migrations/0008_written.sql")),
        (9, "snapshots", include_str!("../../migrations/0009_snapshots.sql")),
    ];
    let migration = |(number, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(number, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(all.map(migration).to_vec())
}
