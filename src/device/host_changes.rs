//! Noticing what this host begins to use, or ceases to, as it happens: mounts, swap, and devices that are made of others (loop,
//! LVM, MD, crypt).
//!
//! poll(2) tells that the tables have changed (proc(5)); for such devices their own events do, which the engine passes on.
//! Then the tables are read, and the disks whose use differs are told. Nothing wakes up on a host that mounts nothing, and
//! one that mounts without end has a small share of the time read in: what comes meanwhile is one change.

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

/// After a reading, as many times as long as it took is waited, and not longer than this.
const REST: (u32, Duration) = (10, Duration::from_secs(1));

/// First and longest wait before a reading that failed is tried again; it doubles in between.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

const UNREAD: &str = "what this host mounts or swaps to cannot be read; trying again shortly";

/// Disks whose use by this host is another than before.
#[derive(Debug)]
pub struct UseChanged(pub Vec<DevNum>);

/// Watches the tables.
pub struct HostChanges {
    proc: PathBuf,
    sys: PathBuf,
    loops: Arc<LoopUses>,
    tables: Vec<AsyncFd<File>>,
    /// `None`: it could not be read yet.
    known: Option<Uses>,
    stacks: Arc<Notify>,
}

impl HostChanges {
    /// Reads what is used now. Call before the disks are read, so that nothing falls between the two. `sysfs` is what they
    /// are read by: both go by the same picture of loop devices. Needs a tokio runtime.
    pub fn watch(sysfs: &Sysfs) -> io::Result<Self> {
        let (proc, sys) = (PathBuf::from("/proc"), PathBuf::from("/sys"));
        // Opened first, read then: what changes in between is told.
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

    /// To be told when a device may have come to sit on another, or may have ceased to.
    pub fn stacks(&self) -> Arc<Notify> {
        Arc::clone(&self.stacks)
    }

    /// Tells of changes until the receiver is gone.
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

    /// Returns when a table, or what devices are made of, may be another than it was.
    async fn changed(&self) {
        let [mounts, rest @ ..] = self.tables.as_slice() else { return self.stacks.notified().await };
        tokio::select! {
            () = told(mounts) => {}
            () = async { match rest { [swaps, ..] => told(swaps).await, [] => std::future::pending().await } } => {}
            () = self.stacks.notified() => {}
        }
    }

    /// The disks whose use is another than it was.
    async fn compare(&mut self) -> io::Result<Vec<DevNum>> {
        let (proc, sys, loops) = (self.proc.clone(), self.sys.clone(), Arc::clone(&self.loops));
        let read = blocking(move || read(&proc, &sys, &loops)).await??;
        let differ = differing(self.known.as_ref().unwrap_or(&Uses::new()), &read);
        let numbers = self.sys.join("dev/block");
        let disks = if differ.is_empty() { Vec::new() } else { blocking(move || disks(&numbers, differ)).await?? };
        // Not before it is known whose use has changed: what fails is compared again.
        self.known = Some(read);
        Ok(disks)
    }
}

fn table(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor until it is dropped and always returns that same one; `AsyncFd` owns the file
    // and nothing here takes it out again.
    let table = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
    table.map_err(|error| io::Error::other(error.to_string()))
}

/// Returns when the table has changed since the last time.
async fn told(table: &AsyncFd<File>) {
    match table.ready(Interest::PRIORITY).await {
        Ok(mut ready) => ready.clear_ready(),
        // The runtime is going.
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

/// The numbers that are used in another way than before. What no disk is below (tmpfs, proc) has numbers of the major 0.
fn differing(before: &Uses, now: &Uses) -> BTreeSet<DevNum> {
    let numbers = before.keys().chain(now.keys()).filter(|number| number.major != 0);
    numbers.filter(|number| before.get(number) != now.get(number)).copied().collect()
}

/// The whole disks below these.
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
    fn what_is_mounted_unmounted_or_mounted_elsewhere_differs_and_what_has_no_disk_below_does_not() {
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
