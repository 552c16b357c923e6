//! A volume that waits: what it waits for, and when its clock is to be looked at.

use std::time::{Duration, Instant};

use super::pause::pause;
use super::volume::{Disk, Trouble, Volume};
use crate::clock::Steady;
use crate::volume::{Reason, State};

impl Volume {
    /// When its clock is to be looked at, from what each part of it waits for.
    pub(super) fn wakes_at(&self, steady: Steady, now: Instant) -> Option<Instant> {
        let again = self.trouble.as_ref().map(|trouble| trouble.again_at);
        let helper = self.helper_again.map(|(at, _)| at);
        let deadline = awaited(self.intent.deadline, self.state, self.judged_steady);
        let prepare = self.preparation.wake().filter(|_| !self.departure.leaving.is_closed());
        let steps = [again, helper, prepare, self.departure.look_at()];
        wake(steps, deadline, self.judged, (steady, now))
    }

    /// A step failed: says why, and has it tried again later. `disk`: it failed for what this disk is.
    pub(super) fn fail(&mut self, reason: Reason, disk: Option<Disk>, now: Instant) {
        let attempts = self.trouble.as_ref().map_or(0, |trouble| trouble.attempts) + 1;
        let wait = pause(attempts);
        tracing::warn!(VOLUME_ID = %self.intent.volume, CODE = %reason.code, attempts, "{}", reason.message);
        self.trouble = Some(Trouble { reason, disk, attempts, again_at: now + wait });
    }
}

/// Timers look no further ahead; a deadline that is farther away sets its clock again.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Whether a step that is to be tried again at that moment waits, when it is decided on at `judged`.
pub(super) fn waits(again: Instant, judged: Instant) -> bool {
    again > judged
}

/// The deadline that the clock is looked at for: none that had passed when the volume was decided on. That decision knew.
fn awaited(deadline: Option<Steady>, state: State, judged: Steady) -> Option<Steady> {
    deadline.filter(|deadline| matches!(state, State::Waiting | State::Attaching) && *deadline > judged)
}

/// When a volume needs a look at the clock that was decided on at `judged`, a moment before `now`.
///
/// A step that waited at that moment gets a timer, also when its time has come since: a delay in between must not leave a
/// volume that waits without one. A step that did not wait has been tried.
fn wake(
    steps: [Option<Instant>; 4],
    deadline: Option<Steady>,
    judged: Instant,
    (now, clock): (Steady, Instant),
) -> Option<Instant> {
    let steps = steps.into_iter().flatten().filter(|again| waits(*again, judged));
    // The timers' clock stands still while the host sleeps: a deadline that passes meanwhile is seen a little late.
    let deadline = deadline.map(|deadline| clock + deadline.left(now).min(LONGEST));
    steps.chain(deadline).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use proptest::prelude::*;

    /// Milliseconds around the moment of the decision.
    fn moment() -> impl Strategy<Value = u64> {
        0..2_000_u64
    }

    proptest! {
        /// However long it took from the decision until the clock is set: whoever waits is woken, not later than what
        /// comes first, and who waits for nothing is left alone.
        #[test]
        fn a_volume_that_waits_has_a_wake_up_and_any_other_has_none(
            steps in proptest::array::uniform4(proptest::option::of(moment())),
            deadline in proptest::option::of(moment()),
            judged in moment(),
            slow in moment(),
        ) {
            let begin = Instant::now();
            let steady = |ms| begin + Duration::from_millis(ms);
            let booted = |ms: u64| Steady::from_micros(i64::try_from(ms * 1000).unwrap());
            let deadline_at = deadline.map(booted);
            let now = (booted(judged + slow), steady(judged + slow));
            let woken = wake(steps.map(|step| step.map(steady)), deadline_at, steady(judged), now);

            let mut awaited: Vec<u64> = steps.into_iter().flatten().filter(|step| *step > judged).collect();
            // A deadline that has passed is seen at once.
            awaited.extend(deadline.map(|deadline| deadline.max(judged + slow)));
            prop_assert_eq!(woken, awaited.into_iter().min().map(steady));
        }
    }

    #[test]
    fn a_deadline_far_away_or_long_gone_is_taken_as_it_is() {
        let (now, clock) = (Steady::now(), Instant::now());
        let never = now.after(SignedDuration::MAX);
        assert!(wake([None; 4], Some(never), clock, (now, clock)).is_some());
        let passed = now.after(-SignedDuration::from_hours(1));
        assert_eq!(wake([None; 4], Some(passed), clock, (now, clock)), Some(clock), "it has passed");
    }

    /// A volume whose disk is just being read stays as it stood. With a wake-up at once it would be decided on again and
    /// again, and each time the reading would be too old.
    #[test]
    fn a_deadline_that_had_passed_when_the_volume_was_decided_on_wakes_nobody_again() {
        let at = Steady::from_micros;
        for state in [State::Waiting, State::Attaching] {
            assert_eq!(awaited(Some(at(5)), state, at(5)), None);
            assert_eq!(awaited(Some(at(5)), state, at(4)), Some(at(5)), "the control");
        }
        assert_eq!(awaited(Some(at(5)), State::Lost, at(4)), None);
    }
}
