//! Whether udevd is heard: each kernel event must come back from udevd under the same sequence number.
//!
//! udevd works at many disks at one time, and at the events of one disk in their order. So an event that does not come back
//! tells of its disk alone as long as udevd is heard about others: it is held up at that disk, by a rule that does not end or
//! by a disk that does not answer. Only when nothing at all is heard since then does udevd count as silent.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use std::{fs, io};

use jiff::Timestamp;

use crate::device::DevNum;
use crate::device::table::{Device, Table};

/// How long udevd may take for one event before it is overdue.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(10);

/// Kernel events remembered while they wait; udevd is long silent before there are as many.
const MOST: usize = 4096;

/// udevd has this file as long as it has an event to work at.
const QUEUE: &str = "/run/udev/queue";

/// What is known of udevd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Udevd {
    /// Nothing happened yet that would tell.
    #[default]
    Unknown,
    /// Its last event was received then.
    Heard(Timestamp),
    /// It owes the event of a disk since then, and nothing was heard of it since.
    Silent(Timestamp),
}

/// A moment by both clocks: one is shown, the other cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock's.
    pub wall: Timestamp,
    /// The one to measure with.
    pub steady: Instant,
}

/// What a look at the clock has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// Nothing new.
    Nothing,
    /// udevd owes an event for too long.
    Overdue,
    /// udevd was away when an event came, and will never report it: what it has made of the disk has to be read.
    Missed,
}

/// A kernel event that udevd has not answered.
#[derive(Debug, Clone, Copy)]
struct Owed {
    devnum: DevNum,
    since: Moment,
}

/// Pairs the two origins.
#[derive(Debug, Default)]
pub struct Ear {
    owed: BTreeMap<u64, Owed>,
    /// The overdue ones: each the oldest of its disk. Those behind it wait for it.
    overdue: BTreeMap<DevNum, u64>,
    /// udevd's latest, for the case that both sockets were full and udevd's was read first.
    recent: VecDeque<(u64, DevNum)>,
    heard: Option<Moment>,
    silent: Option<Timestamp>,
}

/// Whether udevd has an event to work at. One that has none is held up by nothing: what it owes it has missed.
pub fn at_work() -> bool {
    !matches!(fs::symlink_metadata(QUEUE), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

impl Ear {
    /// The kernel reported an event of this disk.
    pub fn kernel(&mut self, seqnum: u64, devnum: DevNum, now: Moment) {
        if self.recent.contains(&(seqnum, devnum)) {
            return;
        }
        if self.owed.len() < MOST {
            self.owed.insert(seqnum, Owed { devnum, since: now });
        }
    }

    /// udevd reported an event of this disk. Says whether it was silent before: what it missed meanwhile it never sends.
    pub fn udevd(&mut self, seqnum: u64, devnum: DevNum, now: Moment) -> bool {
        // It takes the events of one disk in their order: those before this one are over, or were missed.
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

    /// Events were lost: what is owed may have come.
    pub fn forget(&mut self) {
        self.owed.clear();
        self.overdue.clear();
        self.recent.clear();
    }

    /// When to look again, as long as something is owed that is not known to be overdue.
    pub fn wake(&self) -> Option<Instant> {
        if self.silent.is_some() {
            return None;
        }
        // Sequence numbers are in the order of time.
        let waiting = self.owed.values().find(|owed| !self.overdue.contains_key(&owed.devnum));
        waiting.map(|owed| owed.since.steady + OVERDUE_AFTER)
    }

    /// Takes note of the time. `at_work`: [`at_work`], asked only when something has become overdue.
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
            // It was heard since, and has nothing to do: it was away when these came, and will never report them.
            self.owed.retain(|_, owed| !overdue(owed));
            self.overdue.clear();
            return Late::Missed;
        }
        self.overdue = late;
        Late::Overdue
    }

    /// The disks of which udevd owes an event for too long, and since when. With a silent udevd these are all that are known.
    pub fn overdue(&self) -> impl Iterator<Item = (DevNum, Timestamp)> + '_ {
        self.overdue.values().filter_map(|seqnum| self.owed.get(seqnum)).map(|owed| (owed.devnum, owed.since.wall))
    }

    /// Before all disks are read: an idle udevd has missed what it owes, and what is found counts.
    pub(super) fn look_for_missed(&mut self, at_work: impl FnOnce() -> bool) {
        if self.silent.is_none() && !self.overdue.is_empty() && !at_work() {
            self.owed.retain(|_, owed| !self.overdue.contains_key(&owed.devnum));
            self.overdue.clear();
        }
    }

    /// Whether udevd, which is heard about others, owes an event of this disk for too long.
    pub fn is_held_up_at(&self, devnum: DevNum) -> bool {
        self.silent.is_none() && self.overdue.contains_key(&devnum)
    }

    /// Whether udevd owes an event of this disk for too long, or of any, when it is silent.
    pub fn owes(&self, devnum: DevNum) -> bool {
        self.silent.is_some() || self.overdue.contains_key(&devnum)
    }

    /// The present disks that udevd is held up at while it is heard about others, and since when: the longest first.
    /// `at_work`: [`at_work`], asked only when an event is overdue.
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

    /// The verdict.
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

    /// The moments of one run, by the second.
    fn clock() -> impl Fn(u32) -> Moment {
        let start = Instant::now();
        move |second| Moment { wall: wall(second.into()), steady: start + Duration::from_secs(second.into()) }
    }

    fn overdue(ear: &Ear) -> Vec<(DevNum, Timestamp)> {
        ear.overdue().collect()
    }

    #[test]
    fn an_answered_event_leaves_nothing_to_wait_for() {
        let (at, mut ear) = (clock(), Ear::default());
        assert_eq!(ear.udevd_is(), Udevd::Unknown);
        ear.kernel(7, A, at(0));
        assert_eq!(ear.wake(), Some(at(10).steady));
        assert!(!ear.udevd(7, A, at(1)));
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Heard(wall(1))));
    }

    #[test]
    fn an_answer_that_is_read_first_counts() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.udevd(7, A, at(0));
        ear.kernel(7, A, at(0));
        assert_eq!(ear.wake(), None);
    }

    #[test]
    fn an_answer_for_another_disk_is_none_for_this_one() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.udevd(7, B, at(0));
        ear.kernel(7, A, at(0));
        assert_eq!(ear.wake(), Some(at(10).steady));
    }

    #[test]
    fn ten_seconds_without_a_word_are_silence_until_udevd_is_heard_again() {
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
    fn a_disk_that_udevd_is_held_up_at_is_named_while_others_are_heard() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.kernel(7, A, at(0));
        ear.kernel(8, B, at(1));
        assert!(!ear.udevd(8, B, at(2)));
        assert_eq!(ear.tick(at(10).steady, || true), Late::Overdue);
        assert_eq!((ear.udevd_is(), ear.wake()), (Udevd::Heard(wall(2)), None));
        assert_eq!((overdue(&ear), ear.owes(A), ear.owes(B)), (vec![(A, wall(0))], true, false));
        // What follows of the same disk waits for it: udevd is not silent for that.
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
