//! Checks whether a database is attachd's. attachd writes nothing into another program's database, nor beside it.
//!
//! attachd's database has attachd's number in its header (SQLite's `application_id`). Databases of earlier versions
//! have no number. They are recognized by their tables, and get the number when they are opened.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::parts;
use crate::folder::Names;

/// The bytes `attd`.
pub(super) const APPLICATION_ID: u32 = u32::from_be_bytes(*b"attd");

/// The first bytes of an SQLite file, and the range of the number in the header.
const MAGIC: &[u8] = b"SQLite format 3\0";
const NUMBER: std::ops::Range<usize> = 68..72;

/// The tables that this and earlier versions create.
const TABLES: [&str; 16] = [
    MIGRATIONS,
    "intents",
    "mappings",
    "timeline",
    "clock",
    "outbox",
    "changed",
    "followers",
    "set_aside",
    "device_mappings",
    "nbd_exports",
    "volume_operations",
    "operations",
    "placeholders",
    "changed_operations",
    "snapshots",
];

/// sqlx creates this table first.
const MIGRATIONS: &str = "_sqlx_migrations";

/// Returns why a file is not attachd's database, or `None` if it is attachd's or empty. `scratch` is a folder for a
/// copy.
pub(super) async fn judge(path: &Path, scratch: &Path) -> io::Result<Option<String>> {
    let head = head(path)?;
    if head.is_empty() {
        return Ok(None);
    }
    if !head.starts_with(MAGIC) {
        return Ok(Some("it is not a database; it is left alone: move it away, or name another place".to_owned()));
    }
    // Any file that SQLite has written has the whole header.
    let number = head.get(NUMBER).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    if number == APPLICATION_ID {
        return Ok(None);
    }
    let tables = tables(path, scratch).await;
    if number == 0 && are_ours(tables.as_ref().map_err(|error| io::Error::other(error.to_string()))?) {
        return Ok(None);
    }
    let holds = match &tables {
        Ok(names) if names.is_empty() => "it holds no tables".to_owned(),
        Ok(names) => format!("it holds {}", names.iter().map(|name| shown(name)).collect::<Names>()),
        Err(error) => format!("what it holds cannot be read: {error}"),
    };
    let number = if number == 0 { String::new() } else { format!(" (application_id {number:#010x})") };
    Ok(Some(format!(
        "it is another program's database{number}: {holds}; it is left alone: move it away, or name another place"
    )))
}

/// As [`judge`], for callers inside or outside of the runtime. The short work of SQLite runs on a thread.
pub fn judge_at_once(path: &Path) -> io::Result<Option<String>> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(judge(path, &std::env::temp_dir()))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that reads it has panicked")))
    })
}

fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => drop(file?.take(NUMBER.end as u64).read_to_end(&mut head)?),
    }
    Ok(head)
}

fn are_ours(tables: &[String]) -> bool {
    let begun = tables.is_empty() || tables.iter().any(|name| name == MIGRATIONS);
    begun && tables.iter().all(|name| TABLES.contains(&name.as_str()))
}

/// Escapes a name, because it may contain anything.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// Returns the tables and views of a database that may be another program's.
async fn tables(path: &Path, scratch: &Path) -> sqlx::Result<Vec<String>> {
    // Opens the file as immutable. Then SQLite creates no files beside it, and does not read the log.
    let names = names(SqliteConnectOptions::new().filename(path).read_only(true).immutable(true)).await?;
    let log = parts::with(path, "-wal");
    if !names.is_empty() || fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
        return Ok(names);
    }
    // All tables may still be in the log only.
    let folder = scratch.join(format!("attachd-look.{}", std::process::id()));
    let copied = parts::copy_files(path, &folder, &copy(&folder));
    let names = match copied {
        Ok(()) => self::names(SqliteConnectOptions::new().filename(copy(&folder))).await,
        Err(error) => Err(error.into()),
    };
    let _ = fs::remove_dir_all(&folder);
    names
}

fn copy(folder: &Path) -> PathBuf {
    folder.join("copy.db")
}

async fn names(options: SqliteConnectOptions) -> sqlx::Result<Vec<String>> {
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let names = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )
    .fetch_all(&mut connection)
    .await;
    connection.close().await?;
    names
}

/// Writes the number into a database of attachd's that does not have it. The number goes into the file itself,
/// because the check does not read the log.
pub(super) async fn mark(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let number: u32 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await?;
    if number == APPLICATION_ID {
        return Ok(());
    }
    let set = format!("PRAGMA application_id = {APPLICATION_ID}");
    sqlx::query(sqlx::AssertSqlSafe(set)).execute(&mut *connection).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use crate::store::Options;

    async fn run(connection: &mut SqliteConnection, sql: &'static str) {
        sqlx::query(sql).execute(connection).await.unwrap();
    }

    fn options(path: &Path) -> Options<'_> {
        Options { path, history_days: 90, boot_id: "this boot", spare: Path::new("/nowhere") }
    }

    /// Creates a store as an earlier version left it when it was killed: without the number, and with everything in
    /// the log only.
    async fn old(folder: &Path, more: &'static str) -> PathBuf {
        let (live, old) = (folder.join("live.db"), folder.join("old.db"));
        let mut connection = open::migrated(options(&live)).await.unwrap();
        run(&mut connection, "PRAGMA application_id = 0").await;
        run(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)").await;
        run(&mut connection, "VACUUM").await;
        run(&mut connection, more).await;
        for suffix in ["", "-wal"] {
            fs::copy(parts::with(&live, suffix), parts::with(&old, suffix)).unwrap();
        }
        old
    }

    async fn judged(path: &Path) -> Option<String> {
        judge(path, path.parent().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_store_is_ours_by_its_number_and_an_old_one_by_its_tables() {
        let dir = tempfile::tempdir().unwrap();
        let old = old(dir.path(), "INSERT INTO clock VALUES (1, 1, 'b', 1)").await;
        assert_eq!(judged(&old).await, None);
        let connection = open::migrated(options(&old)).await.unwrap();
        assert_eq!(head(&old).unwrap()[NUMBER], APPLICATION_ID.to_be_bytes(), "in the file itself");
        drop(connection);
        assert_eq!(judged(&old).await, None);
    }

    #[tokio::test]
    async fn an_old_store_has_the_known_tables_and_an_extra_one_makes_it_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachd.db");
        let mut connection = open::migrated(options(&path)).await.unwrap();
        let mut names: Vec<String> = tables(&path, dir.path()).await.unwrap();
        names.sort();
        let mut known = TABLES.map(str::to_owned);
        known.sort();
        // Earlier versions had this table without the number. A database that has today's number does not have it.
        assert_eq!(names, known.into_iter().filter(|name| name != "outbox").collect::<Vec<_>>());
        run(&mut connection, "PRAGMA application_id = 0").await;
        run(&mut connection, "CREATE VIEW \"of a\nstranger\" AS SELECT 1").await;
        run(&mut connection, "PRAGMA wal_checkpoint(TRUNCATE)").await;
        let why = judged(&path).await.unwrap();
        assert!(why.contains("another program's database") && why.contains("of a\\nstranger"), "{why}");
    }

    #[tokio::test]
    async fn tables_that_are_only_in_the_log_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut theirs = SqliteConnection::connect_with(&options).await.unwrap();
        run(&mut theirs, "PRAGMA journal_mode = WAL").await;
        assert_eq!(judged(&path).await, None, "the control: an empty database is nobody's");
        run(&mut theirs, "CREATE TABLE theirs (x)").await;
        assert_eq!(names(SqliteConnectOptions::new().filename(&path).immutable(true)).await.unwrap(), [""; 0]);
        let why = judged(&path).await.unwrap();
        assert!(why.contains("it holds theirs"), "{why}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }

    #[tokio::test]
    async fn the_number_of_another_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut theirs = SqliteConnection::connect_with(&options).await.unwrap();
        run(&mut theirs, "PRAGMA application_id = 4711").await;
        let why = judged(&path).await.unwrap();
        assert!(why.contains("application_id 0x00001267") && why.contains("no tables"), "{why}");
    }
}
