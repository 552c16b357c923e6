//! Notices at once when this host starts or stops to use a disk: mounts, swap, and devices that are built on other
//! devices (loop, LVM, MD, crypt).
//!
//! poll(2) reports that the tables of mounts and swap have changed (proc(5)). For built devices their own events
//! report it, and the engine passes these on. Then the tables are read and the disks whose use differs are reported.
//! Without changes there is no wake-up. On a host that mounts without end, reading gets a small share of the time,
//! and the changes in between count as one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};

use super::DevNum;
use super::host::HostUse;
use super::loops::{LoopUses, Uses};
use super::stack;
use super::sysfs::Sysfs;
use crate::blocking::blocking;

/// The pause after a read: a multiple of the time that the read took, and its upper limit.
const REST: (u32, Duration) = (10, Duration::from_secs(1));

/// The first and the longest back-off before a failed read is repeated; it doubles in between.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

const UNREAD: &str = "what this host mounts or swaps to cannot be read; trying again shortly";

/// Disks whose use by this host has changed.
#[derive(Debug)]
pub struct UseChanged(pub Vec<DevNum>);

/// A watch on the tables.
pub struct HostChanges {
    proc: PathBuf,
    sys: PathBuf,
    loops: Arc<LoopUses>,
    tables: Vec<AsyncFd<File>>,
    /// `None` until the tables have been read once.
    known: Option<Uses>,
    stacks: Arc<Notify>,
}

impl HostChanges {
    /// Reads the present uses and starts to watch. Call this before the disks are read, so that no change is missed.
    /// `sysfs` is the reader of the disks; both share one picture of loop devices. Needs a tokio runtime.
    pub fn watch(sysfs: &Sysfs) -> io::Result<Self> {
        let (proc, sys) = (PathBuf::from("/proc"), PathBuf::from("/sys"));
        // The files are opened before they are read, so that a change in between is reported.
        let mut tables = vec![table(File::open(proc.join("self/mountinfo"))?)?];
        match File::open(proc.join("swaps")) {
            // A kernel without swap has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            swaps => tables.push(table(swaps?)?),
        }
        let loops = sysfs.loops();
        let known = read(&proc, &sys, &loops).inspect_err(|error| tracing::warn!(%error, "{UNREAD}"));
        Ok(Self { proc, sys, loops, tables, known: known.ok(), stacks: Arc::default() })
    }

    /// Returns the notifier for events after which a device may be built on another one, or no longer.
    pub fn stacks(&self) -> Arc<Notify> {
        Arc::clone(&self.stacks)
    }

    /// Sends changes until the receiver is dropped.
    pub async fn follow<Input: From<UseChanged>>(mut self, inputs: mpsc::Sender<Input>) {
        let mut failures = u32::from(self.known.is_none());
        loop {
            if failures == 0 {
                self.changed().await;
            }
            let begun = Instant::now();
            match self.compare().await {
                Ok(disks) => {
                    failures = 0;
                    if !disks.is_empty() && inputs.send(UseChanged(disks).into()).await.is_err() {
                        return;
                    }
                    tokio::time::sleep((begun.elapsed() * REST.0).min(REST.1)).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "{UNREAD}");
                    tokio::time::sleep((AGAIN.0 * (1 << failures.min(10))).min(AGAIN.1)).await;
                    failures += 1;
                }
            }
            if inputs.is_closed() {
                return;
            }
        }
    }

    /// Waits until a table, or the devices below other devices, may have changed.
    async fn changed(&self) {
        let [mounts, rest @ ..] = self.tables.as_slice() else { return self.stacks.notified().await };
        tokio::select! {
            () = table_changed(mounts) => {}
            () = async { match rest { [swaps, ..] => table_changed(swaps).await, [] => std::future::pending().await } } => {}
            () = self.stacks.notified() => {}
        }
    }

    /// Returns the disks whose use has changed.
    async fn compare(&mut self) -> io::Result<Vec<DevNum>> {
        let (proc, sys, loops) = (self.proc.clone(), self.sys.clone(), Arc::clone(&self.loops));
        let read = blocking(move || read(&proc, &sys, &loops)).await??;
        let differ = differing(self.known.as_ref().unwrap_or(&Uses::new()), &read);
        let numbers = self.sys.join("dev/block");
        let disks = if differ.is_empty() { Vec::new() } else { blocking(move || disks(&numbers, differ)).await?? };
        // Stored only after the changes are known, so that a failed comparison is repeated.
        self.known = Some(read);
        Ok(disks)
    }
}

fn table(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor until it is dropped and always returns the same one; `AsyncFd` owns the
    // file, and nothing here takes the file out again.
    let table = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    table.map_err(|error| io::Error::other(error.to_string()))
}

/// Waits until the table has changed since the last call.
async fn table_changed(table: &AsyncFd<File>) {
    match table.ready(Interest::PRIORITY).await {
        Ok(mut ready) => ready.clear_ready(),
        // The runtime is shutting down.
        Err(_) => std::future::pending().await,
    }
}

fn read(proc: &Path, sys: &Path, loops: &LoopUses) -> io::Result<Uses> {
    let mut uses = HostUse::read(proc)?.into_all();
    for (below, used) in loops.now()?.iter() {
        uses.entry(*below).or_default().extend(used.iter().cloned());
    }
    for (below, used) in stack::uses(sys)? {
        uses.entry(below).or_default().push(used);
    }
    Ok(uses)
}

/// Returns the numbers whose use differs. Numbers with the major 0 are skipped: they have no disk below (tmpfs,
/// proc).
fn differing(before: &Uses, now: &Uses) -> BTreeSet<DevNum> {
    let numbers = before.keys().chain(now.keys()).filter(|number| number.major != 0);
    numbers.filter(|number| before.get(number) != now.get(number)).copied().collect()
}

/// Returns the whole disks below these devices.
fn disks(numbers: &Path, devnums: BTreeSet<DevNum>) -> io::Result<Vec<DevNum>> {
    let mut whole = BTreeSet::new();
    for devnum in devnums {
        stack::whole_disks(numbers, devnum, &mut whole)?;
    }
    Ok(whole.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::facts::Use;

    #[test]
    fn a_mount_an_unmount_and_a_moved_mount_differ_and_mounts_without_a_disk_do_not() {
        let at = |place: &str| vec![Use::Mounted(place.into())];
        let number = |text: &str| text.parse::<DevNum>().unwrap();
        let before = Uses::from([
            (number("254:16"), at("/stays")),
            (number("254:32"), at("/goes")),
            (number("254:48"), at("/moves")),
            (number("0:40"), at("/tmpfs")),
        ]);
        let now = Uses::from([
            (number("254:16"), at("/stays")),
            (number("254:48"), at("/moved")),
            (number("254:65"), vec![Use::Swap]),
            (number("0:41"), at("/tmpfs2")),
        ]);
        let differ = ["254:32", "254:48", "254:65"].map(number);
        assert_eq!(differing(&before, &now), differ.into());
        assert_eq!(differing(&now, &before), differ.into());
        assert!(differing(&now, &now).is_empty());
    }
}
