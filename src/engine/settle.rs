//! Bringing one volume as far as it gets: ask [`super::decide`] what is next, begin it, and rest when there is nothing.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Engine;
use super::decide::{Decision, Desired, Observed, Step, decide};
use super::exports::folder_reason;
use super::leaving::Outcome;
use super::world::{Disk, Preparation, Trouble, Volume};
use crate::clock::Steady;
use crate::device::table::{Device, Heard};
use crate::identity::VolumeId;
use crate::reason::StoryStep;
use crate::store::News;
use crate::volume::{Reason, State};

/// First and longest wait before a failed step is tried again; it doubles in between.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

impl Engine {
    /// Brings one volume as far as it gets without waiting.
    pub(super) fn settle(&mut self, id: VolumeId) {
        let clock = &self.tools.clock;
        let (now, steady, clock) = (clock.wall(), clock.steady(), clock.now());
        let mut published = None;
        self.forget_trouble_of_another(id);
        if let Some(volume) = self.world.volume_mut(id) {
            (volume.judged, volume.judged_steady) = (clock, steady);
        }
        let prepared = self.prepare(id);
        loop {
            let Some(volume) = self.world.volume(id) else { return };
            let present: Vec<&Device> = self.world.table.with_serial(volume.intent.serial()).collect();
            let decision = self.decide_on(volume, &present, (now, steady, clock));
            let (busy, leaving) = (volume.busy, volume.departure.leaving.is_closed());
            let troubled = volume.trouble.is_some();
            let heard = present.first().and_then(|device| device.heard_at);
            let this_disk = present.first().copied().map(disk);
            let several = present.len() > 1;
            if several {
                // Which of them the link leads to changes without a word about the one that is left.
                self.distrust(id);
            }
            if decision.revoke && !self.revoke(id, decision.reason.as_ref()) {
                let stuck = self.world.volume(id).and_then(|volume| volume.trouble.as_ref());
                let stuck = stuck.map(|trouble| trouble.reason.clone());
                if !leaving {
                    self.stand(id, decision.state, stuck);
                }
                break;
            }
            if leaving {
                return self.go_on(id, Outcome::Look);
            }
            if busy {
                // The step under way comes back as an input and settles again; only what is known to be wrong shows now.
                if decision.revoke {
                    self.stand(id, decision.state, decision.reason);
                }
                return;
            }
            if decision.revoke && troubled {
                // That it could not be revoked before, or what else was waited for, is over.
                continue;
            }
            let owes = self.world.udevd_owes(id.serial());
            if decision.state != State::Refused
                && !owes
                && let Some(volume) = self.world.volume_mut(id)
            {
                // What udev was asked for is over: the next trouble of this disk is another.
                (volume.retriggered, volume.helper_again) = (None, None);
            }
            self.stand(id, decision.state, decision.reason);
            match decision.step {
                None => break,
                Some(Step::Look(devnum)) => {
                    let after = self.world.volume(id).map_or(0, |volume| volume.look_after);
                    if self.looks.get(&devnum).is_none_or(|look| look.reading <= after) {
                        self.look(devnum, Heard::Asked);
                    }
                    break;
                }
                Some(Step::Retrigger(serial)) => {
                    self.retrigger(id, serial, this_disk);
                    break;
                }
                // First begun, then told: what is slow is not to wait for words.
                Some(Step::Record(evidence)) => {
                    self.record(id, evidence.clone());
                    if let Some(at) = heard {
                        self.note_at(id, at, StoryStep::Heard, String::new());
                    }
                    let detail =
                        format!("{} diskseq {} size {}", evidence.devnum, evidence.diskseq, evidence.size_bytes);
                    self.note_at(id, evidence.at, StoryStep::Proven, detail);
                    return;
                }
                Some(Step::TryOpen(evidence)) => {
                    self.try_open(id, evidence);
                    return;
                }
                Some(Step::Publish(_)) if !prepared => {
                    if !self.unprepared(id) {
                        break;
                    }
                }
                Some(Step::Publish(evidence)) => published = self.publish(id, &evidence).or(published),
                Some(Step::Tell) => {
                    self.wait_for_telling(id);
                    break;
                }
                Some(Step::Probe(evidence)) => {
                    self.probe(id, evidence);
                    return self.note_published(id, published);
                }
            }
        }
        self.note_published(id, published);
        self.rest(id);
    }

    /// What is next for a volume whose serial these disks show.
    fn decide_on(
        &self,
        volume: &Volume,
        present: &[&Device],
        (now, steady, clock): (Timestamp, Steady, Instant),
    ) -> Decision {
        let retriggered = present.first().is_some_and(|device| volume.retriggered == Some(disk(device)));
        let helper_waits = volume.helper_again.is_none_or(|(at, _)| waits(at, clock));
        decide(
            &Desired { intent: &volume.intent, mapping: volume.mapping.as_ref() },
            &Observed {
                now,
                steady,
                ground: &self.world.ground,
                present,
                fresh: present.iter().all(|device| device.reading > volume.look_after),
                published: volume.published,
                retriggered: retriggered && helper_waits,
                told: self.world.telling.knows(volume.change),
                free: volume.free.is_some() && volume.free == present.first().copied().map(disk),
                proven: volume.proven,
                unread: self.world.unread(volume, present),
                udevd_owes: self.world.udevd_owes(volume.intent.serial()),
                server: self.world.server.as_ref(),
                server_unit: self.tools.server_unit,
                trouble: volume.trouble.as_ref().map(|trouble| (&trouble.reason, waits(trouble.again_at, clock))),
                standing: (volume.state, volume.reason.as_ref()),
            },
        )
    }

    /// Tells the store what happened and sets the clock, once a volume waits for nothing but events.
    pub(super) fn rest(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        // What may yet be refused is not written down: a start would carry it out.
        let undecided = volume.departure.leaving.is_closed() && !volume.departure.leaving.is_on_record();
        if !undecided && std::mem::take(&mut volume.unwritten) {
            volume.news = Some(News::Stand(volume.state, volume.reason.clone(), volume.since));
        }
        self.unposted.push(id);
        self.wind(id);
    }

    /// Sets the volume's clock, from what each part of it waits for.
    pub(super) fn wind(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id) else { return };
        let again = volume.trouble.as_ref().map(|trouble| trouble.again_at);
        let helper = volume.helper_again.map(|(at, _)| at);
        let deadline = awaited(volume.intent.deadline, volume.state, volume.judged_steady);
        let prepare = match volume.preparation {
            Preparation::Failed { again_at, .. } if !volume.departure.leaving.is_closed() => Some(again_at),
            _ => None,
        };
        let steps = [again, helper, prepare, volume.departure.look_at()];
        let wake = wake(steps, deadline, volume.judged, (self.tools.clock.steady(), self.tools.clock.now()));
        self.world.set_wake(id, wake);
    }

    fn note_published(&mut self, id: VolumeId, at: Option<Timestamp>) {
        let mapping = self.world.volume(id).and_then(|volume| volume.mapping.as_ref());
        if let (Some(at), Some(link)) = (at, mapping.map(|mapping| mapping.link.clone())) {
            self.note_at(id, at, StoryStep::Published, link);
        }
    }

    /// It is to be published and is not prepared. Says whether that is now the reason for waiting.
    fn unprepared(&mut self, id: VolumeId) -> bool {
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let Preparation::Failed { why, kind, attempts, again_at } = &volume.preparation else { return false };
        let reason = folder_reason(&std::io::Error::new(*kind, why.clone()));
        let waits = waits(*again_at, volume.judged);
        volume.trouble = Some(Trouble { reason, attempts: *attempts, again_at: *again_at, disk: None });
        waits
    }

    /// A step failed: say why, and try again later.
    pub(super) fn trouble(&mut self, id: VolumeId, reason: Reason) {
        self.fail(id, reason, None);
    }

    /// The same for a step that failed for what this disk is.
    pub(super) fn trouble_with(&mut self, id: VolumeId, reason: Reason, disk: Disk) {
        self.fail(id, reason, Some(disk));
    }

    fn fail(&mut self, id: VolumeId, reason: Reason, disk: Option<Disk>) {
        let now = self.tools.clock.now();
        let Some(volume) = self.world.volume_mut(id) else { return };
        let attempts = volume.trouble.as_ref().map_or(0, |trouble| trouble.attempts) + 1;
        let wait = pause(attempts);
        tracing::warn!(VOLUME_ID = %id, CODE = %reason.code, attempts, "{}", reason.message);
        volume.trouble = Some(Trouble { reason, disk, attempts, again_at: now + wait });
    }
}

/// Timers look no further ahead; a deadline that is farther away sets its clock again.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Whether a step that is to be tried again at that moment waits, when it is decided on at `judged`.
fn waits(again: Instant, judged: Instant) -> bool {
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

/// How long to wait after so many failed attempts.
pub(super) fn pause(attempts: u32) -> Duration {
    (RETRY.0 * (1 << attempts.min(10) >> 1)).min(RETRY.1)
}

/// Which disk it is.
pub(super) fn disk(device: &Device) -> Disk {
    (device.facts.devnum, device.facts.diskseq)
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

    #[test]
    fn the_pauses_grow_up_to_half_a_minute() {
        let pauses: Vec<u128> = (1..12).map(|attempts| pause(attempts).as_millis()).collect();
        assert_eq!(pauses[..3], [200, 400, 800]);
        assert!(pauses.is_sorted() && pauses.last() == Some(&30_000), "{pauses:?}");
    }
}
