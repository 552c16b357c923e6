//! The lock that allows one daemon for one store, and the message about the holder when the lock is not free.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::holder::{self, Holder};
use crate::limits;
use crate::place::Inode;

/// How long to wait for a daemon that is about to end. It is shorter than the time after which systemd would fail the
/// start.
const DYING: Duration = Duration::from_secs(15);

/// Takes the lock, which is held until the process ends. Calls `waiting` with the reason when taking it needs some
/// time.
pub fn take(store: &Path, waiting: impl FnOnce(&str)) -> anyhow::Result<File> {
    let path = PathBuf::from(format!("{}.lock", store.display()));
    let file = open(&path).with_context(|| format!("cannot use {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(file);
    }
    let holder = holder::of_flock(&file);
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

/// Opens the lock file. Nothing is ever written to it, because it may be any file.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::open(path, flags, Mode::from_raw_mode(0o600));
    // CREATE only when the file is missing: with CREATE, open waits for a file system that takes no writes even if
    // the file exists.
    let file = match open(flags) {
        Err(Errno::NOENT) => open(flags | OFlags::CREATE),
        result => result,
    }?;
    let owner = rustix::process::geteuid().as_raw();
    Inode::open(&file)?.is_file_of(Some(owner)).map_err(io::Error::other)?;
    Ok(file.into())
}

/// Starts a thread that waits in the kernel for the lock. `None`: the time limit has passed. The thread then ends
/// with the process.
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
    begun.map_err(|error| limits::explained(limits::Attempt::Thread, error))?;
    match locked.recv_timeout(DYING) {
        Ok(result) => Ok(Some(result?)),
        Err(_) => Ok(None),
    }
}

fn words(store: &Path, holder: &Holder) -> String {
    let store = store.display();
    match holder {
        Holder::Lives { .. } | Holder::Hidden { .. } => {
            format!("another attachd uses {store}: its lock is held by {holder}")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::name_of;

    #[test]
    fn a_held_lock_names_its_holder_and_a_released_lock_can_be_taken() {
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
