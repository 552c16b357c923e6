//! Which processes are NBD servers: by the program they run and by what they may open.
//!
//! A name is not enough, for anybody can take it, and could then keep this program busy or make it fail: a stranger's
//! descriptors are never looked at. A claimed disk's node belongs to root and to the NBD servers' group, so whoever is
//! neither has none of them open.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::accounts::id_of;
use crate::procfs::unless_gone;

/// The programs that serve. Every process of theirs counts, whoever's child it is: an nbd-server that was started by a
/// socket, or that has survived its main process, is in no pid file.
const PROGRAMS: [&[u8]; 2] = [b"nbdkit", b"nbd-server"];
/// The NBD servers' user and group; udev's rules give a claimed disk to the group.
pub(super) const NBD: &str = "attachd-nbd";

/// Who may have a claimed disk open.
pub(super) struct Servers {
    uid: Option<u32>,
    gid: u32,
}

impl Servers {
    pub(super) fn known() -> io::Result<Self> {
        Ok(Self { uid: id_of("/etc/passwd", NBD).ok(), gid: id_of("/etc/group", NBD)? })
    }

    /// Whether this process (`/proc/PID`) is one. What cannot be read is an error only if it may be one: taken for none, it
    /// would mean that nobody is connected.
    pub(super) fn has(&self, process: &Path) -> io::Result<bool> {
        let read = |file| unless_gone(fs::read(process.join(file))).map(Option::unwrap_or_default);
        match unless_gone(fs::read_link(process.join("exe"))) {
            // Also one that is gone, or a thread of the kernel.
            Ok(exe) if !exe.as_deref().is_some_and(is_program) => Ok(false),
            // A stranger, also one whose program's path is too long to be read.
            _ if !self.may_open(&read("status")?) => Ok(false),
            // Some processes of root's are closed even to root. No server calls itself otherwise than its program.
            Err(_) if !PROGRAMS.contains(&read("comm")?.trim_ascii_end()) => Ok(false),
            program => program.map(|_| true),
        }
    }

    fn may_open(&self, status: &[u8]) -> bool {
        let numbers = |name: &[u8]| {
            let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let words = str::from_utf8(line).unwrap_or_default().split_whitespace();
            words.filter_map(|word| word.parse::<u32>().ok()).collect::<Vec<_>>()
        };
        numbers(b"Uid:").iter().any(|uid| *uid == 0 || Some(*uid) == self.uid)
            || [&b"Gid:"[..], b"Groups:"].iter().any(|name| numbers(name).contains(&self.gid))
    }
}

/// An upgrade may have replaced the file of a running server.
fn is_program(exe: &Path) -> bool {
    let name = exe.file_name().map(OsStr::as_bytes).unwrap_or_default();
    PROGRAMS.contains(&name.strip_suffix(b" (deleted)").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_program_also_by_one_that_an_upgrade_has_replaced() {
        for is in ["/usr/bin/nbdkit", "/usr/sbin/nbd-server", "/usr/bin/nbdkit (deleted)"] {
            assert!(is_program(Path::new(is)), "{is}");
        }
        for is_not in ["/usr/bin/python3.11", "/usr/bin/nbdkit2", "/nbdkit/sh", "/", "/x/nbdkit (deleted) "] {
            assert!(!is_program(Path::new(is_not)), "{is_not}");
        }
    }

    #[test]
    fn only_who_may_open_a_claimed_disk_counts() {
        let servers = Servers { uid: Some(998), gid: 997 };
        let may = |uid: &str, gid: &str, groups: &str| {
            servers.may_open(format!("Name:\tUid:\t0\nUid:\t{uid}\nGid:\t{gid}\nGroups:\t{groups}\n").as_bytes())
        };
        assert!(may("998 998 998 998", "1 1 1 1", ""), "the package's");
        assert!(may("0 0 0 0", "0 0 0 0", ""), "root's");
        assert!(may("5 5 5 5", "997 997 997 997", ""), "another user's, of the group");
        assert!(may("5 5 5 5", "5 5 5 5", "4 997 "), "one that has the group besides");
        assert!(!may("5 5 5 5", "5 5 5 5", "4 99 "), "a stranger's, whatever it is called");
        assert!(!servers.may_open(b"\xff\n"));
    }
}
