//! The files of which a store consists.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The suffixes of the database, its log, and the log's index. Without one of these the others are incomplete.
pub(super) const PARTS: [&str; 3] = ["", "-wal", "-shm"];

/// Returns the path of one of these files.
pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Copies the database and its log into a new folder that nobody else can read.
pub(super) fn copy_files(from: &Path, folder: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    // The log holds what was written last.
    for suffix in ["", "-wal"] {
        match fs::copy(with(from, suffix), with(to, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => drop(result?),
        }
    }
    Ok(())
}
