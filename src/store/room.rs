//! The size of the log's file (SQLite's `-wal`). A commit that lengthens this file makes the file system commit its own
//! journal too, which takes several times as long as the write. So the file gets its size beforehand, while nobody
//! waits, and commits overwrite it.

use std::fs::File;
use std::io;
use std::path::Path;

use super::WriteConnection;
use super::parts;
use crate::blocking::blocking;

/// The rows that are written and taken back, and the size of each in bytes: more than a megabyte in all, of which the page
/// cache keeps a quarter.
const ROWS: usize = 20;
const ROW_SIZE: i64 = 64 << 10;

/// The size from which on the file needs no more room.
const ENOUGH: u64 = (1 << 20) - (128 << 10);

/// Gives the log's file its size, if it is shorter. On a failure the commits are slower, which is all.
///
/// The rows of a transaction that do not fit into SQLite's page cache go to the log at once. Taking the transaction back
/// leaves the file as long as it is.
pub(super) async fn make(connection: &mut WriteConnection, path: &Path) {
    if let Err(error) = made(connection, path).await {
        tracing::debug!(%error, "the log has no room beforehand");
    }
}

async fn made(connection: &mut WriteConnection, path: &Path) -> sqlx::Result<()> {
    if size(path)? >= ENOUGH {
        return Ok(());
    }
    connection.begin().await?;
    let mut filled = Ok(());
    for _ in 0..ROWS {
        let row = "INSERT INTO timeline (volume_id, at, event, detail) VALUES ('', 0, '', hex(zeroblob(?)))";
        filled = sqlx::query(row).bind(ROW_SIZE / 2).persistent(false).execute(&mut **connection).await.map(drop);
        if filled.is_err() {
            break;
        }
    }
    // This fails when SQLite has rolled back by itself, because the disk is full.
    let ended = sqlx::query("ROLLBACK").execute(&mut **connection).await;
    filled.and(ended.map(drop))?;
    // The first commit would have to wait for these bytes.
    let log = parts::with(path, "-wal");
    blocking(move || File::open(log)?.sync_data()).await.flatten().map_err(sqlx::Error::Io)
}

/// Returns the size of the log's file.
pub(super) fn size(path: &Path) -> io::Result<u64> {
    match parts::with(path, "-wal").metadata() {
        Ok(log) => Ok(log.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Change, News, Options, Store};
    use super::*;
    use crate::volume::{Entry, sample};

    #[tokio::test]
    async fn no_commit_of_a_quiet_store_lengthens_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attachd.db");
        let options = Options { path: &path, history_days: 90, boot_id: "boot", spare: folder.path() };
        let (store, task, records) = Store::open(options).await.unwrap();
        assert!(records.is_empty(), "what gave the log its size is not in the store");
        let before = size(&path).unwrap();
        assert!(before >= ENOUGH, "{before}");
        let volume = "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
        store.write(vec![Change::Intend(sample::intent(volume))]).await.unwrap();
        for _ in 0..10 {
            let entry = Entry {
                at: crate::clock::wall(),
                event: crate::reason::StoryStep::Intent.into(),
                detail: String::new(),
            };
            store.write(vec![Change::News(volume, News::Note(entry))]).await.unwrap();
        }
        assert_eq!(size(&path).unwrap(), before);
        assert_eq!(store.story(volume).await.entries.len(), 10);
        drop(store);
        task.await.unwrap();
        assert_eq!(size(&path).unwrap(), 0, "the control: without that the file grows from nothing");
    }
}
