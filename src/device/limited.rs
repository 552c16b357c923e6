//! Asking disks without a runtime, in a limited time: each serial is a request to the hypervisor that may never be answered.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{iter, panic, thread};

use super::DevNum;
use super::facts::Facts;
use super::sysfs::Sysfs;

/// How long disks may take to say their serials. A healthy one takes milliseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// One reading at a time: then whatever is in [`HANGING`] at its start has not answered an earlier one.
static READING: Mutex<()> = Mutex::new(());
static HANGING: Mutex<BTreeSet<DevNum>> = Mutex::new(BTreeSet::new());

/// Disks that [`one`] asks.
static ASKED: Mutex<BTreeSet<DevNum>> = Mutex::new(BTreeSet::new());

/// Does this with one disk. `None`: it has not come to an end in time, or the one before has not yet, or it has panicked.
pub fn one<T: Send + 'static>(devnum: DevNum, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let asked = || ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !asked().insert(devnum) {
        return None;
    }
    let (done, answer) = mpsc::channel();
    let begun = thread::Builder::new().spawn(move || {
        let outcome = panic::catch_unwind(panic::AssertUnwindSafe(work));
        asked().remove(&devnum);
        let _ = done.send(outcome.ok());
    });
    if begun.is_err() {
        asked().remove(&devnum);
    }
    answer.recv_timeout(LIMIT).ok().flatten()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_hangs_is_not_asked_again_until_it_has_answered_and_a_panic_is_no_answer() {
        let devnum = DevNum { major: 1, minor: u32::MAX };
        let (go_on, wait) = mpsc::channel::<()>();
        assert_eq!(one(devnum, move || wait.recv().is_ok()), None, "in no time");
        assert_eq!(one(devnum, || true), None, "while the one before is under way");
        assert_eq!(one(DevNum { minor: 0, ..devnum }, || true), Some(true), "the control: another disk");
        go_on.send(()).unwrap();
        let begun = Instant::now();
        while one(devnum, || true).is_none() {
            assert!(begun.elapsed() < LIMIT);
            thread::yield_now();
        }
        let panics = one(devnum, || panic::resume_unwind(Box::new("on purpose")));
        assert_eq!((panics, one(devnum, || true)), (None::<()>, Some(true)));
    }
}
