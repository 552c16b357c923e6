//! Which users may use the TCP listener: root, the group `attachd`, and those that the configuration names.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::accounts;
use crate::place::small_file_of_root;
use crate::stamp::Stamp;

/// The group whose members may also use the Unix socket.
const GROUP: &str = "attachd";

/// The size limit of a file of accounts.
const SIZE: u64 = 16 << 20;

/// Who is let in.
pub(super) struct Members {
    /// `/etc/passwd` and `/etc/group`.
    files: [PathBuf; 2],
    named: BTreeSet<u32>,
    group: Option<Group>,
}

/// The group's members, and the stamps of the files just before they were read.
struct Group {
    stamps: [Option<Stamp>; 2],
    uids: BTreeSet<u32>,
}

impl Members {
    /// Lets in these users, root and the group's members.
    pub(super) fn new(named: &[u32]) -> Self {
        Self::of_files(["/etc/passwd".into(), "/etc/group".into()], named)
    }

    fn of_files(files: [PathBuf; 2], named: &[u32]) -> Self {
        Self { files, named: named.iter().copied().collect(), group: None }
    }

    /// Returns whether the user may come in. The files are read again when they have changed; an error means that
    /// they cannot be read.
    pub(super) fn has(&mut self, uid: u32) -> io::Result<bool> {
        Ok(uid == 0 || self.named.contains(&uid) || self.group()?.contains(&uid))
    }

    fn group(&mut self) -> io::Result<&BTreeSet<u32>> {
        // The stamps are taken first, so that a write in between changes them again.
        let stamps = self.files.each_ref().map(|file| Stamp::of(file));
        if self.group.as_ref().is_none_or(|group| group.stamps != stamps) {
            let [passwd, group] = self.files.each_ref().map(|file| read(file));
            let uids = accounts::members(&passwd?, &group?, GROUP).unwrap_or_default();
            self.group = Some(Group { stamps, uids });
        }
        self.group.as_ref().map(|group| &group.uids).ok_or_else(|| io::Error::other("not read"))
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    small_file_of_root(file, SIZE).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn root_named_users_and_the_groups_members_come_in_and_a_change_counts_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["passwd", "group"].map(|name| dir.path().join(name));
        fs::write(&files[0], "one:x:1000:100::/:\ntwo:x:1001:100::/:\nown:x:1002:990::/:\n").unwrap();
        fs::write(&files[1], "attachd:x:990:one\n").unwrap();
        let mut members = Members::of_files(files.clone(), &[33]);
        let mut come_in = || [0, 33, 1000, 1001, 1002, 7].map(|uid| members.has(uid).unwrap());
        assert_eq!(come_in(), [true, true, true, false, true, false]);
        fs::write(&files[1], "attachd:x:990:two,other\n").unwrap();
        assert_eq!(come_in(), [true, true, false, true, true, false]);
        fs::remove_file(&files[1]).unwrap();
        assert!(members.has(0).unwrap() && members.has(33).unwrap());
        assert!(members.has(1001).unwrap_err().to_string().contains("group"), "not read is not: no member");
    }
}
