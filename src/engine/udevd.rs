//! Whether udevd is heard: each kernel event must come back from udevd under the same sequence number.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How long udevd may take for one event before it counts as silent.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Kernel events remembered while they wait; udevd is long silent before there are as many.
const MOST: usize = 4096;

/// What is known of udevd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Udevd {
    /// Nothing happened yet that would tell.
    #[default]
    Unknown,
    /// Its last event was received then.
    Heard(Timestamp),
    /// It owes the event of a disk since then.
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

/// Pairs the two origins.
#[derive(Debug, Default)]
pub struct Ear {
    owed: BTreeMap<u64, Moment>,
    /// udevd's latest, for the case that both sockets were full and udevd's was read first.
    recent: VecDeque<u64>,
    heard: Option<Timestamp>,
    silent: Option<Timestamp>,
}

impl Ear {
    /// The kernel reported a disk event.
    pub fn kernel(&mut self, seqnum: u64, now: Moment) {
        if self.recent.contains(&seqnum) {
            return;
        }
        if self.owed.len() < MOST {
            self.owed.insert(seqnum, now);
        }
    }

    /// udevd reported a disk event. Says whether it was silent before: what it missed meanwhile it never sends.
    pub fn udevd(&mut self, seqnum: u64, now: Timestamp) -> bool {
        self.owed.remove(&seqnum);
        if self.recent.len() == MOST {
            self.recent.pop_front();
        }
        self.recent.push_back(seqnum);
        self.heard = Some(now);
        let back = self.silent.take().is_some();
        if back {
            self.owed.retain(|owed, _| *owed > seqnum);
        }
        back
    }

    /// Events were lost: what is owed may have come.
    pub fn forget(&mut self) {
        self.owed.clear();
        self.recent.clear();
    }

    /// When to look again, as long as something is owed and udevd is not known to be silent.
    pub fn wake(&self) -> Option<Instant> {
        self.oldest().filter(|_| self.silent.is_none()).map(|oldest| oldest.steady + PATIENCE)
    }

    /// Takes note of the time. Says so when udevd has become silent.
    pub fn tick(&mut self, now: Instant) -> bool {
        let overdue = self.wake().is_some_and(|wake| wake <= now);
        if overdue {
            self.silent = self.oldest().map(|oldest| oldest.wall);
        }
        overdue
    }

    fn oldest(&self) -> Option<&Moment> {
        self.owed.values().min_by_key(|owed| owed.steady)
    }

    /// The verdict.
    pub fn udevd_is(&self) -> Udevd {
        match (self.silent, self.heard) {
            (Some(since), _) => Udevd::Silent(since),
            (None, Some(at)) => Udevd::Heard(at),
            (None, None) => Udevd::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The moments of one run, by the second.
    fn clock() -> impl Fn(u32) -> Moment {
        let start = Instant::now();
        move |second| Moment { wall: wall(second.into()), steady: start + Duration::from_secs(second.into()) }
    }

    #[test]
    fn an_answered_event_leaves_nothing_to_wait_for() {
        let (at, mut ear) = (clock(), Ear::default());
        assert_eq!(ear.udevd_is(), Udevd::Unknown);
        ear.kernel(7, at(0));
        assert_eq!(ear.wake(), Some(at(10).steady));
        assert!(!ear.udevd(7, wall(1)));
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Heard(wall(1))));
    }

    #[test]
    fn an_answer_that_is_read_first_counts() {
        let mut ear = Ear::default();
        ear.udevd(7, wall(0));
        ear.kernel(7, clock()(0));
        assert_eq!(ear.wake(), None);
    }

    #[test]
    fn ten_seconds_without_an_answer_are_silence_until_udevd_is_heard_again() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.kernel(7, at(0));
        ear.kernel(8, at(15));
        assert!(!ear.tick(at(9).steady));
        assert!(ear.tick(at(10).steady));
        assert!(!ear.tick(at(11).steady), "said once");
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Silent(wall(0))));
        ear.kernel(12, at(20));
        assert!(ear.udevd(9, wall(20)), "it is back");
        assert_eq!(ear.udevd_is(), Udevd::Heard(wall(20)));
        assert_eq!(ear.wake(), Some(at(30).steady), "event 8 was missed for good, event 12 is owed");
    }

    #[test]
    fn a_wall_clock_that_is_set_delays_nothing() {
        let (at, mut ear) = (clock(), Ear::default());
        ear.kernel(7, Moment { wall: wall(1_000_000), ..at(0) });
        ear.kernel(8, Moment { wall: wall(3), ..at(1) });
        assert!(ear.tick(at(10).steady));
        assert_eq!(ear.udevd_is(), Udevd::Silent(wall(1_000_000)), "the one that is owed longest");
    }
}
