//! Decides what a waiting volume waits for, and when its timer ends.

use std::time::{Duration, Instant};

use super::pause::pause;
use super::volume::{Disk, Trouble, Volume};
use crate::clock::Steady;
use crate::volume::{Reason, State};

impl Volume {
    /// Returns when the volume's timer ends, from what each part of the volume waits for.
    pub(super) fn wakes_at(&self, steady: Steady, now: Instant) -> Option<Instant> {
        let again = self.trouble.as_ref().map(|trouble| trouble.again_at);
        let helper = self.helper_again.map(|(at, _)| at);
        let deadline = awaited(self.intent.deadline, self.state, self.judged_steady);
        let prepare = self.preparation.wake().filter(|_| !self.departure.leaving.is_closed());
        let steps = [again, helper, prepare, self.departure.look_at()];
        wake(steps, deadline, self.judged, (steady, now))
    }

    /// Records a failed step with its reason, and schedules the retry. `disk` is the disk that caused the failure, if
    /// one did.
    pub(super) fn fail(&mut self, reason: Reason, disk: Option<Disk>, now: Instant) {
        let attempts = self.trouble.as_ref().map_or(0, |trouble| trouble.attempts) + 1;
        let wait = pause(attempts);
        tracing::warn!(VOLUME_ID = %self.intent.volume, CODE = %reason.code, attempts, "{}", reason.message);
        self.trouble = Some(Trouble { reason, disk, attempts, again_at: now + wait });
    }
}

/// The longest time of a timer. A later deadline sets its timer again.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Returns whether a step that is retried at `again` waits when it is decided on at `judged`.
pub(super) fn waits(again: Instant, judged: Instant) -> bool {
    again > judged
}

/// Returns the deadline for which a timer is needed. A deadline that had passed when the volume was decided on needs
/// none, because that decision knew.
fn awaited(deadline: Option<Steady>, state: State, judged: Steady) -> Option<Steady> {
    deadline.filter(|deadline| matches!(state, State::Waiting | State::Attaching) && *deadline > judged)
}

/// Returns when a volume that was decided on at `judged`, a moment before `now`, needs its timer.
///
/// A step that waited at that moment gets a timer, also when its time has come since. Otherwise a delay in between
/// would leave a waiting volume without a timer. A step that did not wait has been tried.
fn wake(
    steps: [Option<Instant>; 4],
    deadline: Option<Steady>,
    judged: Instant,
    (now, clock): (Steady, Instant),
) -> Option<Instant> {
    let steps = steps.into_iter().flatten().filter(|again| waits(*again, judged));
    // The timers' clock stands still while the host sleeps, so that a deadline that passes meanwhile is noticed a
    // little late.
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
        /// For any time between the decision and the setting of the timer: a waiting volume is woken, no later than
        /// at the first thing that it waits for. A volume that waits for nothing is not woken.
        #[test]
        fn exactly_the_waiting_volumes_have_a_timer(
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
            // A deadline that has passed is noticed at once.
            awaited.extend(deadline.map(|deadline| deadline.max(judged + slow)));
            prop_assert_eq!(woken, awaited.into_iter().min().map(steady));
        }
    }

    #[test]
    fn a_very_late_or_long_past_deadline_is_used_as_it_is() {
        let (now, clock) = (Steady::now(), Instant::now());
        let never = now.after(SignedDuration::MAX);
        assert!(wake([None; 4], Some(never), clock, (now, clock)).is_some());
        let passed = now.after(-SignedDuration::from_hours(1));
        assert_eq!(wake([None; 4], Some(passed), clock, (now, clock)), Some(clock), "it has passed");
    }

    /// A volume whose disk is being read keeps its state. With a timer that ends at once the volume would be decided
    /// on again and again, and each time the reading would be too old.
    #[test]
    fn a_deadline_that_passed_before_the_decision_sets_no_timer() {
        let at = Steady::from_micros;
        for state in [State::Waiting, State::Attaching] {
            assert_eq!(awaited(Some(at(5)), state, at(5)), None);
            assert_eq!(awaited(Some(at(5)), state, at(4)), Some(at(5)), "the control");
        }
        assert_eq!(awaited(Some(at(5)), State::Lost, at(4)), None);
    }
}
