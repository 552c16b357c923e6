//! Why the store could not do it: each with a code, because callers do different things about each.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::holder::{self, Holder};
use crate::reason::{Case, Code};
use crate::volume::Reason;

/// The store could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another program holds SQLite's lock.
    #[error("the store {} is locked by {holder}", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// Which, as far as it could be found out.
        holder: Holder,
    },
    /// More is waiting to be written than the queue takes.
    #[error("the store {} has too much waiting to be written", path.display())]
    Crowded {
        /// The file.
        path: PathBuf,
    },
    /// There is no room.
    #[error("the disk of the store {} is full: {message}", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// SQLite's own words.
        message: String,
    },
    /// It was asked and has said nothing.
    #[error("the store {} does not answer (since {since})", path.display())]
    Silent {
        /// The file.
        path: PathBuf,
        /// When that began.
        since: Timestamp,
    },
    /// The file that is open is not the one that has its name: a restart would not find what is written.
    #[error("{} {what} while attachd runs; {saved}", path.display())]
    Lost {
        /// The file that is missing or another.
        path: PathBuf,
        /// What became of it.
        what: &'static str,
        /// Where its contents are now.
        saved: Saved,
    },
    /// Anything else.
    #[error("the store {} failed: {message}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// SQLite's own words.
        message: String,
    },
    /// The task has ended: the daemon is stopping.
    #[error("the store is closed")]
    Closed,
}

/// What was done about a store whose file is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// Not yet.
    Soon,
    /// All that was on record is in this file.
    As(PathBuf),
    /// It could not be saved; it is tried again by itself.
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
    /// For programs.
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

    /// What to do next.
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

    /// Why a volume is not served for it.
    pub fn reason(&self) -> Reason {
        Reason::hinted(self.code(), self.to_string(), self.hint())
    }

    /// What SQLite says, in these words.
    pub(super) fn of(path: &Path, error: &sqlx::Error) -> Self {
        let path = path.to_owned();
        let sqlx::Error::Database(database) = error else {
            return Self::Failed { path, message: error.to_string() };
        };
        let message = database.message().to_owned();
        // The low byte is the kind (https://www.sqlite.org/rescode.html).
        match database.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
            Some(SQLITE_BUSY | SQLITE_LOCKED) => {
                let holder = holder::of_sqlite(&path);
                Self::Busy { path, holder }
            }
            Some(SQLITE_FULL) => Self::Full { path, message },
            // It does not say why it cannot write; the folder's file system does.
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

/// SQLite needs this much for its index of the log alone.
const LEAST_ROOM: u64 = 64 * 1024;

fn has_no_room(path: &Path) -> bool {
    let folder = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::statvfs(folder)
        .is_ok_and(|fs| fs.f_bavail * fs.f_frsize < LEAST_ROOM || (fs.f_files > 0 && fs.f_favail == 0))
}
