//! Schedules the checks of a folder. One check runs at a time. Another follows if something happened meanwhile, and
//! checks are retried as long as the folder is not in order.

use std::time::{Duration, Instant};

use super::pause::pause;
use super::waiting::Done;

/// How long changes of foreign files may continue before the folder is checked because of them.
const STRANGERS: Duration = Duration::from_secs(1);

/// When a folder is checked.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    under_way: bool,
    /// Whether something happened since the running check began.
    again: bool,
    /// The callers that wait for the end of the next check.
    waiting: Vec<Done>,
    attempts: u32,
    ended_at: Option<Instant>,
    again_at: Option<Instant>,
}

impl Upkeep {
    /// Requests a check, and notifies `done` at its end. Returns the callers of the check that starts now. `None`: a
    /// check is running, and another follows.
    pub(super) fn wish(&mut self, done: Option<Done>) -> Option<Vec<Done>> {
        self.waiting.extend(done);
        self.again_at = None;
        self.again = self.under_way;
        let begins = !std::mem::replace(&mut self.under_way, true);
        begins.then(|| std::mem::take(&mut self.waiting))
    }

    /// Marks that the check has ended.
    pub(super) fn ended(&mut self) {
        self.under_way = false;
    }

    /// Records the result: whether the folder is in order, and whether there is more to do at once.
    pub(super) fn learn(&mut self, in_order: bool, more: bool, now: Instant) {
        self.attempts = if in_order { 0 } else { self.attempts + 1 };
        self.ended_at = Some(now);
        self.again_at = (!in_order).then(|| now + pause(self.attempts));
        self.again |= more;
    }

    /// Returns once whether another check must start at once.
    pub(super) fn again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    /// Records that a foreign file came or went. The check is not made at once, and not for each file.
    pub(super) fn strangers(&mut self, now: Instant) {
        let earliest = self.ended_at.map_or(now, |ended| ended + STRANGERS);
        self.again_at = Some(self.again_at.map_or(earliest, |again| again.min(earliest)));
    }

    /// Returns when the next check is made without a request.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.again_at
    }

    /// Returns whether that time has come.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.again_at.is_some_and(|again| again <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn one_check_runs_at_a_time_and_later_callers_wait_for_the_next() {
        let (mut upkeep, now) = (Upkeep::default(), Instant::now());
        let done = || Some(oneshot::channel().0);
        assert_eq!(upkeep.wish(done()).map(|waiting| waiting.len()), Some(1));
        assert!(upkeep.wish(done()).is_none() && upkeep.wish(done()).is_none());
        upkeep.ended();
        upkeep.learn(true, false, now);
        assert!(upkeep.again() && !upkeep.again());
        assert_eq!(upkeep.wish(None).map(|waiting| waiting.len()), Some(2));
        upkeep.ended();
        assert!(!upkeep.again(), "the control: nothing happened");
        upkeep.learn(true, true, now);
        assert!(upkeep.again(), "there was more than one look takes");
    }

    #[test]
    fn a_folder_is_checked_with_back_off_until_it_is_in_order() {
        let (mut upkeep, now) = (Upkeep::default(), Instant::now());
        upkeep.learn(false, false, now);
        assert!(!upkeep.is_due(now) && upkeep.is_due(now + pause(1)));
        upkeep.learn(false, false, now);
        assert_eq!(upkeep.wake(), Some(now + pause(2)));
        upkeep.learn(true, false, now);
        assert_eq!(upkeep.wake(), None);
        upkeep.learn(false, false, now);
        assert_eq!(upkeep.wake(), Some(now + pause(1)));
    }

    #[test]
    fn changes_of_foreign_files_cause_at_most_one_check_per_second() {
        let (mut upkeep, now) = (Upkeep::default(), Instant::now());
        upkeep.strangers(now);
        assert!(upkeep.is_due(now), "the first at once");
        upkeep.learn(true, false, now);
        upkeep.strangers(now + Duration::from_millis(1));
        upkeep.strangers(now + Duration::from_millis(900));
        assert_eq!(upkeep.wake(), Some(now + STRANGERS));
        upkeep.wish(None);
        assert_eq!(upkeep.wake(), None, "what is looked at needs no timer");
    }
}
