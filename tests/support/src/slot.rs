//! A slot: the folder on a real disk and the range of loop numbers that belong to one lab.
//!
//! A slot is held by a lock on its file, which the kernel releases when the process dies. The next owner first
//! removes what the last one left, so no dead process has to clean up. A range has one owner, so adding and
//! configuring a loop number needs no lock against other tests.

use crate::loops;
use anyhow::{Context, Result, bail};
use std::fs::{self, File, TryLockError};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of slots, on a real disk, because fsync must have its real cost. `ATTACHD_LAB_DIR` overrides it.
const BASE: &str = "/var/tmp/attachd-lab";
/// The number of loop numbers per slot.
pub(crate) const NUMBERS: u32 = 1000;
/// The limit of slots; more labs at once would be a mistake (and minors end at 2^20).
const SLOTS: u32 = 256;

/// One lab's exclusive share of global resources. Dropping it empties it.
#[derive(Debug)]
pub struct Slot(Share);

/// A locked share, with whatever is in it.
#[derive(Debug)]
struct Share {
    index: u32,
    dir: PathBuf,
    _lock: File,
}

impl Slot {
    /// Takes the first free slot and removes what its last owner left.
    pub(crate) fn take() -> Result<Slot> {
        let base = std::env::var_os("ATTACHD_LAB_DIR").map_or_else(|| PathBuf::from(BASE), PathBuf::from);
        make_dir(&base)?;
        for index in 0..SLOTS {
            let Some(share) = Share::lock(&base, index)? else { continue };
            // A loop number can stay busy if something outside the lab holds it or hangs; then the next slot is
            // taken.
            if share.sweep_loops(Duration::ZERO).is_err() {
                continue;
            }
            share.sweep_dir()?;
            make_dir(&share.dir)?;
            return Ok(Slot(share));
        }
        bail!("all {SLOTS} lab slots in {} are taken: run fewer tests at once", base.display())
    }

    /// Empties slots whose owners were killed and that nobody has taken since.
    pub(crate) fn sweep_abandoned(&self) {
        let Some(base) = self.dir().parent() else { return };
        let leftovers = fs::read_dir(base).into_iter().flatten().flatten();
        let folders = leftovers.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        for index in folders.filter(|index| *index != self.0.index) {
            // A slot that hangs is left to a later sweep.
            if let Ok(Some(share)) = Share::lock(base, index) {
                let _ = share.sweep_loops(Duration::ZERO);
                let _ = share.sweep_dir();
            }
        }
    }

    /// Returns the folder on the real disk, which every user can enter.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The loop numbers that only this slot's owner may add.
    pub fn numbers(&self) -> Range<u32> {
        self.0.numbers()
    }
}

impl Share {
    /// Locks this share; `None` if it has an owner.
    fn lock(base: &Path, index: u32) -> Result<Option<Share>> {
        let path = base.join(format!("{index}.lock"));
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(|| format!("opening {} (is it writable?)", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Share { index, dir: base.join(index.to_string()), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e).context("locking a lab slot"),
        }
    }

    fn numbers(&self) -> Range<u32> {
        let first = (self.index + 1) * NUMBERS;
        first..first + NUMBERS
    }

    /// Removes as many loop devices as possible, each within the limit. An error means that some are left.
    fn sweep_loops(&self, limit: Duration) -> Result<()> {
        let range = self.numbers();
        let mut swept = Ok(());
        for number in loops::existing()?.into_iter().filter(|n| range.contains(n)) {
            let aside = self.dir.with_extension("swap");
            let removed = crate::swap::sweep(number, &aside).and_then(|()| loops::remove(number, limit));
            swept = swept.and(removed.with_context(|| format!("removing leftover loop{number}")));
        }
        swept
    }

    fn sweep_dir(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("emptying {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Errors are left to the next owner's sweep: a panic here would hide the test's own failure.
        let _ = self.0.sweep_loops(Duration::from_millis(200));
        let _ = self.0.sweep_dir();
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", dir.display()))
}
