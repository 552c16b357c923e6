//! Finds the NBD servers among the processes, by their program and by their permissions.
//!
//! A process name is not enough, because any process can take it and could then keep the helper busy or make it fail.
//! The descriptors of other processes are never read. A claimed disk's node belongs to root and to the NBD servers'
//! group, so a process of neither cannot have it open.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::accounts::id_of;
use crate::procfs::unless_gone;

/// The names of NBD server programs. Every process of them counts, whatever its parent: an nbd-server that a socket
/// started, or that has outlived its main process, is in no pid file.
const PROGRAMS: [&[u8]; 2] = [b"nbdkit", b"nbd-server"];
/// The NBD servers' user and group. udev's rules give a claimed disk's node to the group.
pub(super) const NBD: &str = "attachd-nbd";

/// The user and group that may have a claimed disk open.
pub(super) struct Servers {
    uid: Option<u32>,
    gid: u32,
}

impl Servers {
    pub(super) fn known() -> io::Result<Self> {
        Ok(Self { uid: id_of("/etc/passwd", NBD).ok(), gid: id_of("/etc/group", NBD)? })
    }

    /// Returns whether this process (`/proc/PID`) is an NBD server. A failed read is an error only if the process may
    /// be one. If it were ignored, the answer could wrongly be that no client is connected.
    pub(super) fn has(&self, process: &Path) -> io::Result<bool> {
        let read = |file| unless_gone(fs::read(process.join(file))).map(Option::unwrap_or_default);
        match unless_gone(fs::read_link(process.join("exe"))) {
            // Or the process has ended, or is a kernel thread.
            Ok(exe) if !exe.as_deref().is_some_and(is_program) => Ok(false),
            // A process without permission for claimed disks, even if the path of its program is too long to be read.
            _ if !self.may_open(&read("status")?) => Ok(false),
            // /proc hides some processes of root even from root. No server has a process name other than its
            // program's.
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

/// Compares the program's name. An upgrade may have replaced the program file of a running server.
fn is_program(exe: &Path) -> bool {
    let name = exe.file_name().map(OsStr::as_bytes).unwrap_or_default();
    PROGRAMS.contains(&name.strip_suffix(b" (deleted)").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_recognised_by_its_program_even_after_an_upgrade_replaced_the_file() {
        for is in ["/usr/bin/nbdkit", "/usr/sbin/nbd-server", "/usr/bin/nbdkit (deleted)"] {
            assert!(is_program(Path::new(is)), "{is}");
        }
        for is_not in ["/usr/bin/python3.11", "/usr/bin/nbdkit2", "/nbdkit/sh", "/", "/x/nbdkit (deleted) "] {
            assert!(!is_program(Path::new(is_not)), "{is_not}");
        }
    }

    #[test]
    fn only_a_process_that_may_open_a_claimed_disk_counts() {
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
