//! Reading several disks without a runtime, in a limited time: each serial is a request to the hypervisor that may never be
//! answered.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{iter, thread};

use super::DevNum;
use super::facts::Facts;
use super::sysfs::Sysfs;

/// How long disks may take to say their serials. A healthy one takes milliseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// One reading at a time: then whatever is in [`HANGING`] at its start has not answered an earlier one.
static READING: Mutex<()> = Mutex::new(());
static HANGING: Mutex<BTreeSet<DevNum>> = Mutex::new(BTreeSet::new());

/// The facts of those that answer in time, in order. A disk that hangs costs one thread, not one per request.
pub fn read(sysfs: &Sysfs, devnums: impl IntoIterator<Item = DevNum>) -> Vec<Facts> {
    let hanging = || HANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let _reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
    let (found, facts) = mpsc::channel();
    for devnum in devnums.into_iter().filter(|devnum| hanging().insert(*devnum)) {
        let (sysfs, found) = (sysfs.clone(), found.clone());
        let read_one = move || {
            let facts = sysfs.read(devnum);
            hanging().remove(&devnum);
            let _ = found.send(facts);
        };
        if thread::Builder::new().spawn(read_one).is_err() {
            hanging().remove(&devnum);
        }
    }
    drop(found);
    let deadline = Instant::now() + LIMIT;
    let next = || facts.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    let mut all: Vec<Facts> = iter::from_fn(next).flatten().collect();
    all.sort_by_key(|disk| disk.devnum);
    all
}
