//! Reads a store whose disk takes no writes, and saves a store whose file is lost.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnection;
use tokio::sync::oneshot;

use super::foreign;
use super::open::{self, Writer};
use super::parts::{copy_files, with};
use super::{Options, StoreError};
use crate::clock;
use crate::volume::Record;

/// An open store.
pub(super) struct Opened {
    /// The connection that writes. `None` when writing is not possible.
    pub(super) writer: Option<Writer>,
    pub(super) reader: SqliteConnection,
    pub(super) records: Vec<Record>,
    /// Why writing is not possible.
    pub(super) failure: Option<StoreError>,
}

/// Opens the store for writing, or if that fails for reading.
pub(super) async fn open(options: Options<'_>) -> Result<Opened, StoreError> {
    match put_back(options.path) {
        Ok(None) => {}
        Ok(Some(copy)) => {
            tracing::warn!(
                "{} was not there; the last saved copy is put back: {}",
                options.path.display(),
                copy.display()
            );
        }
        Err(error) => {
            let message = format!("it is not there, and its saved copy could not be put back: {error}");
            return Err(StoreError::Failed { path: options.path.to_owned(), message });
        }
    }
    let failed = |message| StoreError::Failed { path: options.path.to_owned(), message };
    match foreign::judge(options.path, options.spare).await {
        Ok(None) => {}
        Ok(Some(why)) => return Err(failed(why)),
        Err(error) => return Err(failed(format!("it cannot be seen whether it is attachd's: {error}"))),
    }
    let failure = match open::writer(options).await {
        Ok(mut writer) => {
            let records = open::records(&mut writer.connection, options.path).await?;
            let reader = open::reader(options.path).await?;
            return Ok(Opened { writer: Some(writer), reader, records, failure: None });
        }
        // The file is being written, so that a copy might be torn.
        Err(failure @ StoreError::Busy { .. }) => return Err(failure),
        Err(failure) => failure,
    };
    // SQLite needs room even to read: for the index of its log. A copy on another file system has that room.
    match read_copy(options).await {
        Ok((reader, records)) => {
            tracing::error!(
                "{failure}; what is on record is read and served, nothing new is accepted: {}",
                failure.hint()
            );
            Ok(Opened { writer: None, reader, records, failure: Some(failure) })
        }
        Err(error) => {
            tracing::debug!(%error, "a copy of the store cannot be read either");
            Err(failure)
        }
    }
}

/// Reads all records from a copy that nobody else can read. The connection continues to read the copy.
async fn read_copy(options: Options<'_>) -> Result<(SqliteConnection, Vec<Record>), StoreError> {
    let folder = options.spare.join(format!("store-copy.{}", std::process::id()));
    let copy = folder.join("attachd.db");
    let failed = |error: sqlx::Error| StoreError::of(&copy, &error);
    let read = async {
        copy_files(options.path, &folder, &copy).map_err(|error| failed(error.into()))?;
        let mut connection = open::migrated(Options { path: &copy, ..options }).await.map_err(failed)?;
        super::history::rebase(&mut connection, options.boot_id).await.map_err(failed)?;
        let records = open::records(&mut connection, &copy).await?;
        Ok((connection, records))
    };
    let result = read.await;
    // The removed files stay readable through the open connection.
    let _ = fs::remove_dir_all(&folder);
    result
}

/// What follows the store's name in the name of a saved copy.
const SAVED: &str = ".saved-";

/// Writes all records into a new file beside the store. No existing file is overwritten.
pub(super) async fn save(connection: &mut SqliteConnection, store: &Path) -> Result<PathBuf, String> {
    let time = clock::wall().strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut names = (0..100).map(|n| if n == 0 { String::new() } else { format!("-{n}") });
    let free = names.find_map(|suffix| {
        let path = with(store, &format!("{SAVED}{time}{suffix}"));
        path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound).then_some(path)
    });
    let path = free.ok_or("there is no name left for it")?;
    let text = path.to_str().ok_or("its name is no text")?;
    // SQLite refuses a file that is not empty.
    let written = sqlx::query("VACUUM INTO ?").bind(text).execute(connection).await;
    written.map_err(|error| error.to_string())?;
    sync(path.clone()).await.map_err(|error| error.to_string())?;
    Ok(path)
}

/// Syncs the copy, which SQLite does not do. If no thread can be started, the result is an error and not a panic.
async fn sync(path: PathBuf) -> io::Result<()> {
    let (done, synced) = oneshot::channel();
    let work = move || {
        File::open(&path)?.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    std::thread::Builder::new().name("store-sync".into()).spawn(move || done.send(work()))?;
    synced.await.unwrap_or_else(|_| Err(io::Error::other("the thread that syncs has panicked")))
}

/// Renames the newest saved copy to the store's name if no file has that name. Such a copy exists when the store was lost
/// while attachd ran. Returns the former path of the copy.
fn put_back(store: &Path) -> io::Result<Option<PathBuf>> {
    if store.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let Some(copy) = saved(store).pop() else { return Ok(None) };
    // A log without its database is contained in the copy, and must not be taken for the copy's own log.
    for suffix in ["-wal", "-shm"] {
        match fs::rename(with(store, suffix), with(&copy, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    fs::rename(&copy, store)?;
    File::open(store.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(Some(copy))
}

/// Returns the saved copies beside a store, oldest first.
pub(super) fn saved(store: &Path) -> Vec<PathBuf> {
    let Some((folder, name)) = store.parent().zip(store.file_name()) else { return Vec::new() };
    let begin = format!("{}{SAVED}", name.to_string_lossy());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_copy = |name: &str| name.starts_with(&begin) && !name.ends_with("-wal") && !name.ends_with("-shm");
    let names = entries.filter(|entry| is_copy(&entry.file_name().to_string_lossy()));
    let mut paths: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
