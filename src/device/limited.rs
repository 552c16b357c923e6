//! Reads disks without a runtime and with a time limit, because reading a serial is a request to the hypervisor,
//! which may never answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{iter, panic, thread};

use super::DevNum;
use super::facts::Facts;
use super::found::Found;
use super::sysfs::Sysfs;
use crate::identity::Serial;
use crate::limits;

/// The time limit for the disks' answers. A healthy disk takes milliseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// Allows one reading at a time, so that every disk in [`HANGING`] at the start of a reading has not answered an
/// earlier one.
static READING: Mutex<()> = Mutex::new(());
static HANGING: Mutex<BTreeSet<DevNum>> = Mutex::new(BTreeSet::new());

/// Disks that [`one`] is reading.
static ASKED: Mutex<BTreeSet<DevNum>> = Mutex::new(BTreeSet::new());

/// Runs `work` for one disk on a thread. `None` if it did not end in time, if an earlier call for the disk has not
/// ended, or if it panicked.
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

/// The answers of several disks.
pub struct Answers {
    /// The disks that are present, by number. Some of their facts may be missing.
    pub here: Vec<Facts>,
    /// The disks with a failed read, each with the reason.
    pub unread: Vec<String>,
}

/// Reads disks. A disk that hangs costs one thread in total, not one for each call.
pub fn read(sysfs: &Sysfs, devnums: impl IntoIterator<Item = DevNum>) -> Answers {
    let sysfs = sysfs.clone();
    let all = ask(devnums, move |devnum| sysfs.read(devnum));
    let unread = all.iter().filter_map(|(devnum, found)| Some(format!("{devnum} ({})", found.unread()?))).collect();
    Answers { here: all.into_values().filter_map(Found::here).collect(), unread }
}

/// Reads only those disks that show this serial or whose serial cannot be read. A disk with another serial is not
/// read any further: with two hundred disks, reading all facts of each takes a hundred times as long.
pub fn read_those_of(sysfs: &Sysfs, devnums: impl IntoIterator<Item = DevNum>, serial: Serial) -> Answers {
    let asked = sysfs.clone();
    let mut serials = ask(devnums, move |devnum| asked.serial(devnum));
    serials.retain(|_, said| matches!(said, Found::Unknown(_)) || *said == Found::Here(Some(serial)));
    let mut answers = read(sysfs, serials.into_keys());
    answers.here.retain(|disk| disk.serial() == Some(serial));
    answers
}

/// Reads one thing from each of these disks.
fn ask<T: Send + 'static>(
    devnums: impl IntoIterator<Item = DevNum>,
    what: impl Fn(DevNum) -> Found<T> + Clone + Send + 'static,
) -> BTreeMap<DevNum, Found<T>> {
    let hanging = || HANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let _reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
    let unanswered = || Found::Unknown(format!("no answer within {} s", LIMIT.as_secs()));
    let mut all: BTreeMap<DevNum, Found<T>> = devnums.into_iter().map(|devnum| (devnum, unanswered())).collect();
    let (found, answers) = mpsc::channel();
    for (devnum, outcome) in all.iter_mut().filter(|(devnum, _)| hanging().insert(**devnum)) {
        let (devnum, what, found) = (*devnum, what.clone(), found.clone());
        let read_one = move || {
            let facts = what(devnum);
            hanging().remove(&devnum);
            let _ = found.send((devnum, facts));
        };
        if let Err(error) = thread::Builder::new().spawn(read_one) {
            hanging().remove(&devnum);
            let error = limits::explained(limits::Attempt::Thread, error);
            *outcome = Found::Unknown(format!("no thread to read it: {error}"));
        }
    }
    drop(found);
    let deadline = Instant::now() + LIMIT;
    let next = || answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    all.extend(iter::from_fn(next));
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
