//! One daemon for one store: the lock, and who holds it when it cannot be had.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::accounts::name_of;
use crate::limits;
use crate::place::Found;
use crate::procfs;

/// How long to wait for a daemon that is about to end: as long as systemd would not call the start hung.
const DYING: Duration = Duration::from_secs(15);

/// Who holds a lock.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// A process that goes on.
    Lives { pid: u32, program: String, user: String },
    /// A process that was killed or has ended but for a thread in the kernel, which cannot be hurried.
    Dies { pid: u32 },
    /// The kernel names a process that cannot be seen from here.
    Hidden { pid: u32 },
    /// Nobody is named.
    Unknown,
}

/// Takes it. Held until the process ends. `waiting` is told when that takes a while, and why.
pub fn take(store: &Path, waiting: impl FnOnce(&str)) -> anyhow::Result<File> {
    let path = PathBuf::from(format!("{}.lock", store.display()));
    let file = open(&path).with_context(|| format!("cannot use {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(file);
    }
    let holder = holder(&file);
    if matches!(holder, Holder::Lives { .. } | Holder::Hidden { .. }) {
        bail!(refusal(store, &path, &holder));
    }
    let seconds = DYING.as_secs();
    waiting(&format!("waiting for up to {seconds} s: {}", words(store, &holder)));
    if let Some(file) = wait(file).with_context(|| format!("cannot wait for {}", path.display()))? {
        return Ok(file);
    }
    bail!(refusal(store, &path, &holder))
}

/// Nothing is written to it, whatever it is.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
    // CREATE only if need be: it waits for a file system that takes no writes, even if the file is there.
    let file = match open(flags) {
        Err(Errno::NOENT) => open(flags | OFlags::CREATE),
        result => result,
    }?;
    let owner = rustix::process::geteuid().as_raw();
    Found::open(&file)?.is_file_of(Some(owner)).map_err(io::Error::other)?;
    Ok(file.into())
}

/// Has a thread wait in the kernel. `None`: not in time; the thread ends with the process.
fn wait(file: File) -> io::Result<Option<File>> {
    let (done, locked) = mpsc::channel();
    let work = move || {
        let result = loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        let _ = done.send(result.map(|()| file));
    };
    let begun = std::thread::Builder::new().name("store-lock".into()).spawn(work);
    begun.map_err(|error| limits::explained(limits::Call::Thread, error))?;
    match locked.recv_timeout(DYING) {
        Ok(result) => Ok(Some(result?)),
        Err(_) => Ok(None),
    }
}

fn words(store: &Path, holder: &Holder) -> String {
    let store = store.display();
    match holder {
        Holder::Lives { pid, program, user } => {
            format!("another attachd uses {store}: its lock is held by {program} (process {pid} of {user})")
        }
        Holder::Hidden { pid } => {
            format!("another attachd uses {store}: its lock is held by process {pid}, which cannot be seen from here")
        }
        Holder::Dies { pid } => {
            format!(
                "the last attachd (process {pid}) still holds {store}: it was killed, and a thread of it hangs in the kernel"
            )
        }
        Holder::Unknown => {
            format!(
                "another attachd uses {store}, and no process is found that holds its lock: it may be a thread of the last one that is about to end"
            )
        }
    }
}

fn refusal(store: &Path, lock: &Path, holder: &Holder) -> String {
    let hint = match holder {
        Holder::Lives { .. } | Holder::Hidden { .. } => {
            "If that is the service, `systemctl restart attachd` instead of starting another one; else end that process, or give each its own [store] path"
                .to_owned()
        }
        Holder::Dies { pid } => format!(
            "`cat /proc/{pid}/task/*/stack` shows what it waits for: repair that storage. The start is tried again by systemd"
        ),
        Holder::Unknown => format!("`lslocks` and `fuser -v {}` may name it", lock.display()),
    };
    format!("{}. {hint}", words(store, holder))
}

fn holder(lock: &File) -> Holder {
    let found = || -> io::Result<Option<u32>> {
        // The kernel's table has the number of the file system itself, which is not always that of stat(2).
        let info = procfs::table(Path::new(&format!("/proc/self/fdinfo/{}", lock.as_raw_fd())))?;
        let mounts = procfs::table(Path::new("/proc/self/mountinfo"))?;
        let inode = Found::open(lock)?.inode;
        let device = device(&info, &mounts).ok_or(io::ErrorKind::NotFound)?;
        Ok(holder_in(&procfs::table(Path::new("/proc/locks"))?, device, inode))
    };
    match found() {
        Ok(Some(pid)) => look_at(pid),
        // It is not known, and is tried again.
        Ok(None) | Err(_) => Holder::Unknown,
    }
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

/// It has ended but for some threads, or was killed and cannot end yet.
fn is_dying(status: &str) -> bool {
    /// SIGKILL's bit.
    const KILL: u64 = 1 << 8;
    status.lines().any(|line| match line.split_once(':') {
        Some(("State", state)) => state.trim_start().starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", set)) => u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set & KILL != 0),
        _ => false,
    })
}

/// The number of the file system that an open file is on, as the kernel writes it: from the file's `fdinfo` and the mounts.
fn device(info: &[u8], mounts: &[u8]) -> Option<(u32, u32)> {
    let info = str::from_utf8(info).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        // The first three are numbers; what follows is any bytes.
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next()?;
        let number = str::from_utf8(fields.nth(1)?).ok()?;
        let (major, minor) = number.split_once(':')?;
        (id == mount.as_bytes()).then(|| Some((major.parse().ok()?, minor.parse().ok()?)))?
    })
}

/// The process that holds the whole file's lock, from `/proc/locks`.
fn holder_in(locks: &[u8], device: (u32, u32), inode: u64) -> Option<u32> {
    String::from_utf8_lossy(locks).lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Those that wait for it have an arrow before the kind.
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields[..] else { return None };
        let [major, minor, number] = file.split(':').collect::<Vec<_>>()[..] else { return None };
        let number_of = |text| u32::from_str_radix(text, 16).ok();
        let is_it = (number_of(major)?, number_of(minor)?) == device && number.parse() == Ok(inode);
        is_it.then(|| pid.parse().ok())?
    })
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
    fn the_holder_is_found_by_file_system_and_inode_and_is_none_that_waits() {
        assert_eq!(holder_in(LOCKS, (0xfd, 1), 131), Some(42));
        assert_eq!(holder_in(LOCKS, (0xfd, 1), 132), Some(41));
        assert_eq!(holder_in(LOCKS, (0xfd, 2), 131), None, "shared");
        assert_eq!(holder_in(b"broken\n\xff", (1, 2), 3), None);
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

    #[test]
    fn a_held_lock_names_this_process_and_one_that_is_given_up_is_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("attachd.db");
        let waits = |why: &str| panic!("{why}");
        let held = take(&store, waits).unwrap();
        let refused = take(&store, waits).unwrap_err().to_string();
        let me = format!("process {} of {}", std::process::id(), name_of(rustix::process::geteuid().as_raw()));
        assert!(refused.contains(&me) && refused.contains("systemctl restart attachd"), "{refused}");
        drop(held);
        take(&store, waits).unwrap();
    }
}
