//! The errors of the store. Each has its own code, because callers react differently to each.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::holder::{self, Holder};
use crate::reason::{Case, Code};
use crate::volume::Reason;

/// An operation on the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another program holds SQLite's lock.
    #[error("the store {} is locked by {holder}", path.display())]
    Busy {
        /// The path of the file.
        path: PathBuf,
        /// The program that holds the lock, as far as attachd can find out.
        holder: Holder,
    },
    /// The queue of writes is full.
    #[error("the store {} has too much waiting to be written", path.display())]
    Crowded {
        /// The path of the file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("the disk of the store {} is full: {message}", path.display())]
    Full {
        /// The path of the file.
        path: PathBuf,
        /// SQLite's message.
        message: String,
    },
    /// SQLite was asked something and has not answered.
    #[error("the store {} does not answer (since {since})", path.display())]
    Silent {
        /// The path of the file.
        path: PathBuf,
        /// Since when SQLite has not answered.
        since: Timestamp,
    },
    /// The open file is not the one that has its name, so that a restart would not find what is written.
    #[error("{} {what} while attachd runs; {saved}", path.display())]
    Lost {
        /// The path of the file that is missing or was replaced.
        path: PathBuf,
        /// What happened to the file.
        what: &'static str,
        /// Whether the contents are saved, and where.
        saved: Saved,
    },
    /// Any other failure.
    #[error("the store {} failed: {message}", path.display())]
    Failed {
        /// The path of the file.
        path: PathBuf,
        /// SQLite's message.
        message: String,
    },
    /// The store's task has ended, because the daemon stops.
    #[error("the store is closed")]
    Closed,
}

/// Whether the contents of a store whose file is lost are saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// The contents are not saved yet.
    Soon,
    /// The contents are saved in this file.
    As(PathBuf),
    /// Saving failed for this reason. attachd retries it.
    Not(String),
}

impl std::fmt::Display for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Soon => f.write_str("what is on record is being saved"),
            Self::As(path) => write!(f, "what is on record is saved as {}", path.display()),
            Self::Not(why) => write!(f, "what is on record could not be saved ({why}); it is tried again by itself"),
        }
    }
}

impl StoreError {
    /// Returns the code for programs.
    pub fn code(&self) -> Code {
        match self {
            Self::Busy { .. } | Self::Crowded { .. } => Code::StoreBusy,
            Self::Full { .. } => Code::StoreFull,
            Self::Silent { .. } => Code::StoreSilent,
            Self::Lost { .. } => Code::StoreLost,
            Self::Failed { .. } => Code::StoreFailed,
            Self::Closed => Code::Stopping,
        }
    }

    /// Returns the advice what to do next.
    pub fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Crowded { .. } => Case::StoreCrowded.hint().into(),
            Self::Busy { holder, .. } => match holder.process() {
                Some(pid) => Case::StoreHeld.hint_about(&pid.to_string()).into(),
                None => self.code().hint().into(),
            },
            _ => self.code().hint().into(),
        }
    }

    /// Returns the reason for which a volume is not served because of this error.
    pub fn reason(&self) -> Reason {
        Reason::hinted(self.code(), self.to_string(), self.hint())
    }

    /// Converts an error of SQLite.
    pub(super) fn of(path: &Path, error: &sqlx::Error) -> Self {
        let path = path.to_owned();
        let sqlx::Error::Database(database) = error else {
            return Self::Failed { path, message: error.to_string() };
        };
        let message = database.message().to_owned();
        // The low byte is the kind of the error (https://www.sqlite.org/rescode.html).
        match database.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
            Some(SQLITE_BUSY | SQLITE_LOCKED) => {
                let holder = holder::of_sqlite(&path);
                Self::Busy { path, holder }
            }
            Some(SQLITE_FULL) => Self::Full { path, message },
            // SQLite does not say why it cannot write. The file system of the folder does.
            Some(SQLITE_IOERR | SQLITE_CANTOPEN) if has_no_room(&path) => Self::Full { path, message },
            _ => Self::Failed { path, message },
        }
    }
}

const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_IOERR: u32 = 10;
const SQLITE_FULL: u32 = 13;
const SQLITE_CANTOPEN: u32 = 14;

/// The room that SQLite needs for its index of the log alone, in bytes.
const LEAST_ROOM: u64 = 64 * 1024;

fn has_no_room(path: &Path) -> bool {
    let folder = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::statvfs(folder)
        .is_ok_and(|fs| fs.f_bavail * fs.f_frsize < LEAST_ROOM || (fs.f_files > 0 && fs.f_favail == 0))
}
