//! Finds the process that holds a lock on a file, as the kernel reports it. The result is for messages.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::accounts::name_of;
use crate::place::Inode;
use crate::procfs;

/// The holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process that runs.
    Lives {
        /// Its process id.
        pid: u32,
        /// Its name.
        program: String,
        /// Its user.
        user: String,
    },
    /// A process that was killed or has ended, except for a thread that hangs in the kernel and cannot be hurried.
    Dies {
        /// Its process id.
        pid: u32,
    },
    /// The kernel names a process that is not visible from here.
    Hidden {
        /// Its process id.
        pid: u32,
    },
    /// The kernel names no process.
    Unknown,
}

impl Holder {
    /// Returns the id of the process that an administrator can end.
    pub fn process(&self) -> Option<u32> {
        match self {
            Self::Lives { pid, .. } | Self::Hidden { pid } => Some(*pid),
            Self::Dies { .. } | Self::Unknown => None,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lives { pid, program, user } => write!(f, "{program} (process {pid} of {user})"),
            Self::Hidden { pid } => write!(f, "process {pid}, which cannot be seen from here"),
            Self::Dies { pid } => write!(f, "process {pid}, which was killed and hangs in the kernel"),
            Self::Unknown => f.write_str("another program"),
        }
    }
}

/// The byte of SQLite's index of the log (`-shm`) that a writer locks, and the bytes of the database that a program
/// locks for exclusive use (<https://www.sqlite.org/walformat.html>, <https://www.sqlite.org/lockingv3.html>).
const WRITER: RangeInclusive<u64> = 120..=120;
const ALONE: RangeInclusive<u64> = 0x4000_0000..=0x4000_01ff;

/// Returns the holder of a lock of a whole file.
pub(super) fn of_flock(lock: impl AsFd) -> Holder {
    match named(lock, |row| row.kind == Lock::Flock) {
        Ok(Some(pid)) => look_at(pid),
        // An unknown holder does no harm: the caller tries the lock again.
        Ok(None) | Err(_) => Holder::Unknown,
    }
}

/// Returns the program that keeps SQLite from writing to this database.
pub(super) fn of_sqlite(database: &Path) -> Holder {
    let own = std::process::id();
    let index = PathBuf::from(format!("{}-shm", database.display()));
    for (file, bytes) in [(&*index, WRITER), (database, ALONE)] {
        // The file is not opened, because closing it would release this process's own locks.
        let Ok(file) = rustix::fs::openat(CWD, file, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        let held = named(file, |row| row.kind == Lock::Range && row.pid != own && row.touches(&bytes));
        if let Ok(Some(pid)) = held {
            return look_at(pid);
        }
    }
    Holder::Unknown
}

/// Returns the process that holds a lock on this file for which `wanted` is true.
fn named(file: impl AsFd, wanted: impl Fn(&Row) -> bool) -> io::Result<Option<u32>> {
    let file = file.as_fd();
    // The kernel's table has the file system's own number, which is not always that of stat(2).
    let info = procfs::table(Path::new(&format!("/proc/self/fdinfo/{}", file.as_raw_fd())))?;
    let mounts = procfs::table(Path::new("/proc/self/mountinfo"))?;
    let inode = Inode::open(file)?.inode;
    let device = device(&info, &mounts).ok_or(io::ErrorKind::NotFound)?;
    let locks = procfs::table(Path::new("/proc/locks"))?;
    Ok(held(&locks, device, inode).find(wanted).map(|row| row.pid))
}

fn look_at(pid: u32) -> Holder {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let Ok(status) = procfs::table(&folder.join("status")) else {
        return if pid == 0 { Holder::Unknown } else { Holder::Hidden { pid } };
    };
    let status = String::from_utf8_lossy(&status).into_owned();
    if is_dying(&status) {
        return Holder::Dies { pid };
    }
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let uid = field("Uid:").split_whitespace().next().and_then(|uid| uid.parse().ok());
    let user = uid.map_or_else(|| "an unknown user".to_owned(), name_of);
    Holder::Lives { pid, program: field("Name:").to_owned(), user }
}

/// Returns whether a process has ended except for some threads, or was killed and cannot end yet.
fn is_dying(status: &str) -> bool {
    /// The bit of SIGKILL.
    const KILL: u64 = 1 << 8;
    status.lines().any(|line| match line.split_once(':') {
        Some(("State", state)) => state.trim_start().starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", set)) => u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & KILL != 0),
        _ => false,
    })
}

/// Returns the number of an open file's file system as the kernel writes it: from the file's `fdinfo` and the mounts.
fn device(info: &[u8], mounts: &[u8]) -> Option<(u32, u32)> {
    let info = str::from_utf8(info).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        // The first three fields are numbers. The rest may be any bytes.
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next()?;
        let number = str::from_utf8(fields.nth(1)?).ok()?;
        let (major, minor) = number.split_once(':')?;
        (id == mount.as_bytes()).then(|| Some((major.parse().ok()?, minor.parse().ok()?)))?
    })
}

/// The kind of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    /// A lock of the whole file: flock(2).
    Flock,
    /// A lock of a range of bytes: fcntl(2).
    Range,
}

/// An exclusive lock.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    kind: Lock,
    pid: u32,
    bytes: RangeInclusive<u64>,
}

impl Row {
    fn touches(&self, bytes: &RangeInclusive<u64>) -> bool {
        self.bytes.start() <= bytes.end() && bytes.start() <= self.bytes.end()
    }
}

/// Returns the exclusive locks on one file, from `/proc/locks`.
fn held(locks: &[u8], device: (u32, u32), inode: u64) -> impl Iterator<Item = Row> {
    let rows: Vec<Row> = String::from_utf8_lossy(locks).lines().filter_map(|line| row(line, device, inode)).collect();
    rows.into_iter()
}

fn row(line: &str, device: (u32, u32), inode: u64) -> Option<Row> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // Rows of waiting processes have an arrow before the kind.
    let [_, kind, _, "WRITE", pid, file, first, last] = fields[..] else { return None };
    let kind = match kind {
        "FLOCK" => Lock::Flock,
        "POSIX" => Lock::Range,
        _ => return None,
    };
    let [major, minor, number] = file.split(':').collect::<Vec<_>>()[..] else { return None };
    let number_of = |text| u32::from_str_radix(text, 16).ok();
    let is_it = (number_of(major)?, number_of(minor)?) == device && number.parse() == Ok(inode);
    let last = if last == "EOF" { u64::MAX } else { last.parse().ok()? };
    is_it.then(|| Some(Row { kind, pid: pid.parse().ok()?, bytes: first.parse().ok()?..=last }))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &[u8] = b"1: POSIX  ADVISORY  WRITE 7 fd:01:131 0 EOF\n\
        2: FLOCK  ADVISORY  WRITE 41 fd:01:132 0 EOF\n\
        3: FLOCK  ADVISORY  WRITE 42 fd:01:131 0 EOF\n\
        3: -> FLOCK  ADVISORY  WRITE 43 fd:01:131 0 EOF\n\
        4: FLOCK  ADVISORY  READ  44 fd:02:131 0 EOF\n";

    #[test]
    fn the_holder_is_found_by_file_system_and_inode_and_waiting_processes_are_skipped() {
        let of = |device, inode| held(LOCKS, device, inode).find(|row| row.kind == Lock::Flock).map(|row| row.pid);
        assert_eq!(of((0xfd, 1), 131), Some(42));
        assert_eq!(of((0xfd, 1), 132), Some(41));
        assert_eq!(of((0xfd, 2), 131), None, "shared");
        assert_eq!(held(b"broken\n\xff", (1, 2), 3).next(), None);
    }

    #[test]
    fn a_lock_of_some_bytes_is_found_by_any_of_them() {
        let locks = b"1: POSIX  ADVISORY  READ  6 fd:01:9 120 120\n2: POSIX  ADVISORY  WRITE 7 fd:01:9 119 121\n";
        let of = |bytes| held(locks, (0xfd, 1), 9).find(|row| row.touches(&bytes)).map(|row| row.pid);
        assert_eq!((of(WRITER), of(121..=130), of(122..=130), of(ALONE)), (Some(7), Some(7), None, None));
    }

    #[test]
    fn the_number_of_the_file_system_is_that_of_the_mount() {
        let mounts = b"28 1 0:25 / / rw - overlay x\xff rw\n312 28 254:17 /a /b\\040c rw - ext4 /dev/vda rw\n";
        assert_eq!(device(b"pos:\t0\nflags:\t02\nmnt_id:\t312\nino:\t5\n", mounts), Some((254, 17)));
        assert_eq!(device(b"mnt_id:\t3\n", mounts), None);
    }

    #[test]
    fn a_process_that_was_killed_or_is_a_zombie_dies() {
        assert!(!is_dying(
            "Name:\tattachd\nState:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000200\n"
        ));
        assert!(is_dying("State:\tZ (zombie)\n"));
        assert!(is_dying("State:\tD (disk sleep)\nShdPnd:\t0000000000000100\n"));
    }
}
