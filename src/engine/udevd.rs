//! Tracks whether udevd works: each kernel event must come back from udevd with the same sequence number.
//!
//! udevd handles many disks at one time, and the events of one disk in their order. As long as udevd reports other
//! disks, an event that does not come back concerns its disk only. udevd is held up at that disk, by a rule that does
//! not end or by a disk that does not answer. Only if udevd has reported nothing at all since then does it count as
//! silent.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use std::{fs, io};

use jiff::Timestamp;

use crate::device::DevNum;
use crate::device::table::{Device, Table};

/// How long udevd may take for one event before the event is overdue.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(10);

/// The number of kernel events remembered while they wait. udevd counts as silent long before there are as many.
const MOST: usize = 4096;

/// This file exists while udevd has an event to handle.
const QUEUE: &str = "/run/udev/queue";

/// The state of udevd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Udevd {
    /// Nothing has happened yet that would show the state.
    #[default]
    Unknown,
    /// The last event from udevd was received at this time.
    Heard(Timestamp),
    /// udevd owes the event of a disk since this time, and has reported nothing since.
    Silent(Timestamp),
}

/// A moment by both clocks: one is shown, the other cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock's time.
    pub wall: Timestamp,
    /// The time for measuring.
    pub steady: Instant,
}

/// The result of a check of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// Nothing new.
    Nothing,
    /// udevd owes an event for too long.
    Overdue,
    /// udevd was away when an event came, and will never report it. So the disk must be read.
    Missed,
}

/// A kernel event that udevd has not answered.
#[derive(Debug, Clone, Copy)]
struct Owed {
    devnum: DevNum,
    since: Moment,
}

/// Pairs the events of both origins.
#[derive(Debug, Default)]
pub struct Ear {
    owed: BTreeMap<u64, Owed>,
    /// The overdue events: for each disk the oldest. Later events of the disk wait for it.
    overdue: BTreeMap<DevNum, u64>,
    /// udevd's latest events, in case both sockets were full and udevd's was read first.
    recent: VecDeque<(u64, DevNum)>,
    heard: Option<Moment>,
    silent: Option<Timestamp>,
}

/// Returns whether udevd has an event to handle. If it has none, nothing holds it up, and it has missed the events
/// that it owes.
pub fn at_work() -> bool {
    !matches!(fs::symlink_metadata(QUEUE), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

impl Ear {
    /// Records an event of this disk from the kernel.
    pub fn kernel(&mut self, seqnum: u64, devnum: DevNum, now: Moment) {
        if self.recent.contains(&(seqnum, devnum)) {
            return;
        }
        if self.owed.len() < MOST {
            self.owed.insert(seqnum, Owed { devnum, since: now });
        }
    }

    /// Records an event of this disk from udevd. Returns whether udevd was silent before, because it never sends the
    /// events that it missed.
    pub fn udevd(&mut self, seqnum: u64, devnum: DevNum, now: Moment) -> bool {
        // udevd handles the events of one disk in their order. So the earlier ones are done, or were missed.
        let before = self.owed.range(..=seqnum).filter(|(_, owed)| owed.devnum == devnum);
        for over in before.map(|(seqnum, _)| *seqnum).collect::<Vec<u64>>() {
            self.owed.remove(&over);
        }
        if self.overdue.get(&devnum).is_some_and(|overdue| *overdue <= seqnum) {
            self.overdue.remove(&devnum);
        }
        if self.recent.len() == MOST {
            self.recent.pop_front();
        }
        self.recent.push_back((seqnum, devnum));
        self.heard = Some(now);
        self.silent.take().is_some()
    }

    /// Drops the owed events, because events were lost and the answers may be among them.
    pub fn forget(&mut self) {
        self.owed.clear();
        self.overdue.clear();
        self.recent.clear();
    }

    /// Returns the time of the next check, as long as an event is owed that is not known to be overdue.
    pub fn wake(&self) -> Option<Instant> {
        if self.silent.is_some() {
            return None;
        }
        // Sequence numbers are in the order of time.
        let waiting = self.owed.values().find(|owed| !self.overdue.contains_key(&owed.devnum));
        waiting.map(|owed| owed.since.steady + OVERDUE_AFTER)
    }

    /// Checks the clock. `at_work` is [`at_work`]; it is called only when something has become overdue.
    pub fn tick(&mut self, now: Instant, at_work: impl FnOnce() -> bool) -> Late {
        if self.wake().is_none_or(|wake| wake > now) {
            return Late::Nothing;
        }
        let overdue = |owed: &Owed| owed.since.steady + OVERDUE_AFTER <= now;
        let heard = self.heard.map(|heard| heard.steady);
        let unheard = |owed: &Owed| heard.is_none_or(|heard| heard <= owed.since.steady);
        let mut late = BTreeMap::new();
        for (seqnum, owed) in self.owed.iter().filter(|(_, owed)| overdue(owed)) {
            late.entry(owed.devnum).or_insert(*seqnum);
        }
        let oldest = late.values().filter_map(|seqnum| self.owed.get(seqnum));
        let silent = oldest.filter(|owed| unheard(owed)).min_by_key(|owed| owed.since.steady);
        self.silent = silent.map(|owed| owed.since.wall);
        if self.silent.is_none() && !at_work() {
            // udevd has reported others since, and has nothing to do. So it was away when these events came, and will
            // never report them.
            self.owed.retain(|_, owed| !overdue(owed));
            self.overdue.clear();
            return Late::Missed;
        }
        self.overdue = late;
        Late::Overdue
    }

    /// Returns the disks of which udevd owes an event for too long, and since when. If udevd is silent, these are
    /// only the known ones.
    pub fn overdue(&self) -> impl Iterator<Item = (DevNum, Timestamp)> + '_ {
        self.overdue.values().filter_map(|seqnum| self.owed.get(seqnum)).map(|owed| (owed.devnum, owed.since.wall))
    }

    /// Drops, before all disks are read, the events that an idle udevd has missed. What is read counts.
    pub(super) fn look_for_missed(&mut self, at_work: impl FnOnce() -> bool) {
        if self.silent.is_none() && !self.overdue.is_empty() && !at_work() {
            self.owed.retain(|_, owed| !self.overdue.contains_key(&owed.devnum));
            self.overdue.clear();
        }
    }

    /// Returns whether udevd owes an event of this disk for too long while it reports others.
    pub fn is_held_up_at(&self, devnum: DevNum) -> bool {
        self.silent.is_none() && self.overdue.contains_key(&devnum)
    }

    /// Returns whether udevd owes an event of this disk for too long, or of any disk if udevd is silent.
    pub fn owes(&self, devnum: DevNum) -> bool {
        self.silent.is_some() || self.overdue.contains_key(&devnum)
    }

    /// Returns the present disks at which udevd is held up while it reports others, and since when, the longest
    /// first. `at_work` is [`at_work`]; it is called only when an event is overdue.
    pub(super) fn held_up(&self, table: &Table, at_work: impl FnOnce() -> bool) -> Vec<(String, Timestamp)> {
        if self.overdue.is_empty() || self.silent.is_some() || !at_work() {
            return Vec::new();
        }
        let present = |(devnum, since)| Some((table.of(devnum)?, since));
        let name = |(disk, since): (&Device, _)| (format!("/dev/{} ({})", disk.facts.name, disk.facts.devnum), since);
        let mut all: Vec<_> = self.overdue().filter_map(present).map(name).collect();
        all.sort_by_key(|(_, since)| *since);
        all
    }

    /// Returns the state of udevd.
    pub fn udevd_is(&self) -> Udevd {
        match (self.silent, self.heard) {
            (Some(since), _) => Udevd::Silent(since),
            (None, Some(at)) => Udevd::Heard(at.wall),
            (None, None) => Udevd::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::facts::sample::{DEVNUM, device};
    use crate::device::found::Found;
    use crate::device::table::Heard;

    const A: DevNum = DevNum { major: 254, minor: 0 };
    const B: DevNum = DevNum { major: 254, minor: 16 };
    const C: DevNum = DevNum { major: 254, minor: 32 };

    fn wall(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Returns the moments of one run, by the second.
    fn clock() -> impl Fn(u32) -> Moment {
        let start = Instant::now();
        move |second| Moment { wall: wall(second.into()), steady: start + Duration::from_secs(second.into()) }
    }

    fn overdue(ear: &Ear) -> Vec<(DevNum, Timestamp)> {
        ear.overdue().collect()
    }

    #[test]
    fn an_answered_event_sets_no_timer() {
        let (at, mut ear) = (clock(), Ear::default());
        assert_eq!(ear.udevd_is(), Udevd::Unknown);
        ear.kernel(7, A, at(0));
        assert_eq!(ear.wake(), Some(at(10).steady));
        assert!(!ear.udevd(7, A, at(1)));
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Heard(wall(1))));
    }

    #[test]
    fn an_answer_that_is_read_before_its_kernel_event_counts() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.udevd(7, A, at(0));
        ear.kernel(7, A, at(0));
        assert_eq!(ear.wake(), None);
    }

    #[test]
    fn an_event_of_another_disk_does_not_answer_this_ones() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.udevd(7, B, at(0));
        ear.kernel(7, A, at(0));
        assert_eq!(ear.wake(), Some(at(10).steady));
    }

    #[test]
    fn udevd_is_silent_after_ten_seconds_without_an_event_until_its_next_event() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.kernel(7, A, at(0));
        ear.kernel(8, B, at(15));
        assert_eq!(ear.tick(at(9).steady, || true), Late::Nothing);
        assert_eq!(ear.tick(at(10).steady, || true), Late::Overdue);
        assert_eq!(ear.tick(at(11).steady, || true), Late::Nothing, "said once");
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Silent(wall(0))));
        assert_eq!((overdue(&ear), ear.owes(C)), (vec![(A, wall(0))], true));
        ear.kernel(12, C, at(20));
        assert!(ear.udevd(9, C, at(20)), "it is back");
        assert_eq!(ear.udevd_is(), Udevd::Heard(wall(20)));
        assert_eq!((ear.owes(A), ear.owes(C)), (true, false), "the others are no longer meant");
        assert_eq!(ear.wake(), Some(at(25).steady), "event 8 is not overdue yet");
        assert_eq!(ear.tick(at(25).steady, || false), Late::Missed, "udevd has nothing to do");
        assert_eq!(overdue(&ear), [], "events 7 and 8 were missed for good");
        assert_eq!(ear.wake(), Some(at(30).steady), "event 12 is owed");
    }

    #[test]
    fn a_disk_that_holds_up_udevd_is_named_while_other_disks_are_reported() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.kernel(7, A, at(0));
        ear.kernel(8, B, at(1));
        assert!(!ear.udevd(8, B, at(2)));
        assert_eq!(ear.tick(at(10).steady, || true), Late::Overdue);
        assert_eq!((ear.udevd_is(), ear.wake()), (Udevd::Heard(wall(2)), None));
        assert_eq!((overdue(&ear), ear.owes(A), ear.owes(B)), (vec![(A, wall(0))], true, false));
        // Later events of the same disk wait for it. udevd is not silent because of them.
        ear.kernel(9, A, at(12));
        assert_eq!(ear.wake(), None);
        ear.kernel(10, B, at(30));
        assert_eq!(ear.tick(at(40).steady, || true), Late::Overdue);
        assert_eq!(ear.udevd_is(), Udevd::Silent(wall(30)), "the control: nothing was heard since event 10");
        assert!(ear.udevd(10, B, at(41)), "it is back");
        assert_eq!(overdue(&ear), [(A, wall(0))]);
        ear.udevd(7, A, at(42));
        assert_eq!((overdue(&ear), ear.owes(A)), (vec![], false), "its event has come");
        assert_eq!(ear.wake(), Some(at(22).steady), "the next of it is owed");
        ear.udevd(9, A, at(43));
        assert_eq!(ear.wake(), None);
    }

    #[test]
    fn a_held_up_disk_is_named_until_it_is_gone() {
        let (at, mut ear, mut table) = (clock(), Ear::default(), Table::default());
        table.update(DEVNUM, Found::Here(device().facts), 1, Heard::Asked);
        ear.kernel(7, DEVNUM, at(0));
        ear.udevd(8, C, at(2));
        assert_eq!(ear.held_up(&table, || true), [], "it is given time");
        assert_eq!(ear.tick(at(10).steady, || true), Late::Overdue);
        let name = format!("/dev/{} ({DEVNUM})", device().facts.name);
        assert_eq!(ear.held_up(&table, || true), [(name, wall(0))]);
        table.update(DEVNUM, Found::Gone, 2, Heard::Asked);
        assert_eq!(ear.held_up(&table, || true), []);
    }

    #[test]
    fn a_wall_clock_that_is_set_delays_nothing() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.kernel(7, A, Moment { wall: wall(1_000_000), ..at(0) });
        ear.kernel(8, B, Moment { wall: wall(3), ..at(1) });
        assert_eq!(ear.tick(at(10).steady, || true), Late::Overdue);
        assert_eq!(ear.udevd_is(), Udevd::Silent(wall(1_000_000)), "the one that is owed longest");
    }
}
