//! Checks whether the open files are still those that have the store's names. What is written into a removed or
//! replaced file is gone at the next start.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use super::parts::PARTS;
use crate::limits;
use crate::readable::register;

/// The files of an open store.
pub(super) struct Files {
    parts: Vec<Part>,
    /// Notifies at once of a change in the folder. `None` if there is no inotify: then the next write finds the
    /// change.
    changes: Option<AsyncFd<OwnedFd>>,
}

struct Part {
    path: PathBuf,
    is: (u64, u64),
}

/// A file of the store that was removed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) path: PathBuf,
    pub(super) what: &'static str,
}

impl Files {
    /// Returns the files of a store that was just opened and written to. Needs a tokio runtime.
    pub(super) fn of(database: &Path) -> io::Result<Self> {
        let parts = PARTS.map(|suffix| {
            let path = PathBuf::from(format!("{}{suffix}", database.display()));
            identity(&path).map(|is| Part { path, is })
        });
        let folder = database.parent().unwrap_or(Path::new("/"));
        let changes = watch(folder).map_err(|error| {
            tracing::warn!(%error, "cannot watch {}: a store that is removed is noticed at the next write", folder.display());
        });
        Ok(Self { parts: parts.into_iter().collect::<io::Result<_>>()?, changes: changes.ok() })
    }

    /// Returns the first file that is missing or replaced. Reads nothing from the disk as long as the names are
    /// unchanged, because the open files keep the names in the kernel's memory.
    pub(super) fn missing(&self) -> Option<Missing> {
        self.parts.iter().find_map(|part| {
            let what = match identity(&part.path) {
                Ok(now) if now == part.is => return None,
                Ok(_) => "was replaced by another file",
                Err(error) if error.kind() == io::ErrorKind::NotFound => "was removed",
                // A failed check does not show that the file is gone.
                Err(_) => return None,
            };
            Some(Missing { path: part.path.clone(), what })
        })
    }

    /// Resolves when something was created, removed or renamed in the folder.
    pub(super) async fn changed(&self) {
        let Some(changes) = &self.changes else { return std::future::pending().await };
        let Ok(mut ready) = changes.readable().await else { return std::future::pending().await };
        let mut buffer = [0_u8; 4096];
        while rustix::io::read(changes.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::WatchFlags as Flags;
    let notify = limits::inotify()?;
    let gone = Flags::DELETE | Flags::MOVED_FROM | Flags::MOVED_TO | Flags::DELETE_SELF | Flags::MOVE_SELF;
    limits::watch(&notify, folder, gone)?;
    register(notify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn removed_and_replaced_files_are_found_and_written_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attachd.db");
        for suffix in PARTS {
            fs::write(format!("{}{suffix}", path.display()), "x").unwrap();
        }
        let files = Files::of(&path).unwrap();
        fs::write(&path, "longer").unwrap();
        assert_eq!(files.missing(), None, "the control");
        let log = dir.path().join("attachd.db-wal");
        fs::rename(&log, dir.path().join("elsewhere")).unwrap();
        files.changed().await;
        assert_eq!(files.missing(), Some(Missing { path: log.clone(), what: "was removed" }));
        fs::write(&log, "x").unwrap();
        assert_eq!(files.missing(), Some(Missing { path: log.clone(), what: "was replaced by another file" }));
        fs::rename(dir.path().join("elsewhere"), &log).unwrap();
        assert_eq!(files.missing(), None, "it is back");
    }
}
