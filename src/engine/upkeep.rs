//! Keeping a folder what it has to be: one look at it at a time, once more when something happened meanwhile, and again by
//! itself as long as it is not as it has to be.

use std::time::{Duration, Instant};

use super::pause::pause;
use super::waiting::Done;

/// How long strangers' files may come and go before the folder is looked at again for them.
const STRANGERS: Duration = Duration::from_secs(1);

/// When a folder is looked at.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    under_way: bool,
    /// Something happened since the one that is under way began.
    again: bool,
    /// Who waits for the end of one that begins from now on.
    waiting: Vec<Done>,
    attempts: u32,
    ended_at: Option<Instant>,
    again_at: Option<Instant>,
}

impl Upkeep {
    /// It is to be looked at; `done` is told of the end. Returns who waits for the one that begins now; without, one is under
    /// way, and another follows.
    pub(super) fn wish(&mut self, done: Option<Done>) -> Option<Vec<Done>> {
        self.waiting.extend(done);
        self.again_at = None;
        self.again = self.under_way;
        let begins = !std::mem::replace(&mut self.under_way, true);
        begins.then(|| std::mem::take(&mut self.waiting))
    }

    /// It has ended.
    pub(super) fn ended(&mut self) {
        self.under_way = false;
    }

    /// What it has shown: whether the folder is as it has to be, and whether there is more to do at once.
    pub(super) fn learn(&mut self, in_order: bool, more: bool, now: Instant) {
        self.attempts = if in_order { 0 } else { self.attempts + 1 };
        self.ended_at = Some(now);
        self.again_at = (!in_order).then(|| now + pause(self.attempts));
        self.again |= more;
    }

    /// Whether it is to be looked at once more at once; said once.
    pub(super) fn again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    /// A stranger's file came or went: not at once, and not for each.
    pub(super) fn strangers(&mut self, now: Instant) {
        let earliest = self.ended_at.map_or(now, |ended| ended + STRANGERS);
        self.again_at = Some(self.again_at.map_or(earliest, |again| again.min(earliest)));
    }

    /// When it is to be looked at by itself.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.again_at
    }

    /// Whether that has come.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.again_at.is_some_and(|again| again <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn one_look_at_a_time_and_who_asks_meanwhile_waits_for_the_next() {
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
    fn a_folder_that_is_not_in_order_is_looked_at_later_and_later_and_one_that_is_never() {
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
    fn strangers_files_are_looked_for_once_a_second_at_most() {
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
