//! Whether udevd is heard: each kernel event must come back from udevd under the same sequence number.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

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

/// Pairs the two origins.
#[derive(Debug, Default)]
pub struct Ear {
    owed: BTreeMap<u64, Timestamp>,
    /// udevd's latest, for the case that both sockets were full and udevd's was read first.
    recent: VecDeque<u64>,
    heard: Option<Timestamp>,
    silent: Option<Timestamp>,
}

impl Ear {
    /// The kernel reported a disk event.
    pub fn kernel(&mut self, seqnum: u64, now: Timestamp) {
        if self.recent.contains(&seqnum) {
            return;
        }
        if self.owed.len() < MOST {
            self.owed.insert(seqnum, now);
        }
    }

    /// udevd reported a disk event.
    pub fn udevd(&mut self, seqnum: u64, now: Timestamp) {
        self.owed.remove(&seqnum);
        if self.recent.len() == MOST {
            self.recent.pop_front();
        }
        self.recent.push_back(seqnum);
        self.heard = Some(now);
        if self.silent.take().is_some() {
            // It is back; what it missed while it was away it never sends.
            self.owed.retain(|owed, _| *owed > seqnum);
        }
    }

    /// Events were lost: what is owed may have come.
    pub fn forget(&mut self) {
        self.owed.clear();
        self.recent.clear();
    }

    /// When to look again, as long as something is owed and udevd is not known to be silent.
    pub fn wake(&self) -> Option<Timestamp> {
        let oldest = self.owed.values().min().filter(|_| self.silent.is_none())?;
        Some(*oldest + PATIENCE)
    }

    /// Takes note of the time. Says so when udevd has become silent.
    pub fn tick(&mut self, now: Timestamp) -> bool {
        let overdue = self.wake().is_some_and(|wake| wake <= now);
        if overdue {
            self.silent = self.owed.values().min().copied();
        }
        overdue
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

    fn second(n: i64) -> Timestamp {
        Timestamp::from_second(n).unwrap()
    }

    #[test]
    fn an_answered_event_leaves_nothing_to_wait_for() {
        let mut ear = Ear::default();
        assert_eq!(ear.udevd_is(), Udevd::Unknown);
        ear.kernel(7, second(0));
        assert_eq!(ear.wake(), Some(second(10)));
        ear.udevd(7, second(1));
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Heard(second(1))));
    }

    #[test]
    fn an_answer_that_is_read_first_counts() {
        let mut ear = Ear::default();
        ear.udevd(7, second(0));
        ear.kernel(7, second(0));
        assert_eq!(ear.wake(), None);
    }

    #[test]
    fn ten_seconds_without_an_answer_are_silence_until_udevd_is_heard_again() {
        let mut ear = Ear::default();
        ear.kernel(7, second(0));
        ear.kernel(8, second(15));
        assert!(!ear.tick(second(9)));
        assert!(ear.tick(second(10)));
        assert!(!ear.tick(second(11)), "said once");
        assert_eq!((ear.wake(), ear.udevd_is()), (None, Udevd::Silent(second(0))));
        ear.kernel(12, second(20));
        ear.udevd(9, second(20));
        assert_eq!(ear.udevd_is(), Udevd::Heard(second(20)));
        assert_eq!(ear.wake(), Some(second(30)), "event 8 was missed for good, event 12 is owed");
    }
}
