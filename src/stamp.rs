//! What changes when a file is written or replaced.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use crate::clock;

/// How a file was at one moment. It may block to take one, as every file system may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what is at the path, links followed; `None`: it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let data = std::fs::metadata(path).ok()?;
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    /// Returns whether the file was written less than so long ago, by the wall clock.
    pub(crate) fn is_younger_than(&self, age: SignedDuration) -> bool {
        let nanoseconds = i32::try_from(self.modified.1).unwrap_or_default();
        let written = Timestamp::new(self.modified.0, nanoseconds);
        written.is_ok_and(|written| clock::wall().duration_since(written) < age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_is_written_or_replaced_has_another_stamp_and_one_left_alone_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["file", "other"].map(|name| dir.path().join(name));
        assert_eq!(Stamp::of(&file), None);
        fs::write(&file, "one").unwrap();
        let first = Stamp::of(&file);
        assert!(first.is_some() && first == Stamp::of(&file), "the control");
        fs::write(&file, "longer").unwrap();
        let second = Stamp::of(&file);
        assert_ne!(first, second);
        fs::write(&other, "longer").unwrap();
        fs::rename(&other, &file).unwrap();
        assert_ne!(Stamp::of(&file), second);
        assert!(second.unwrap().is_younger_than(SignedDuration::from_mins(1)));
        assert!(!second.unwrap().is_younger_than(SignedDuration::ZERO), "the control");
    }
}
