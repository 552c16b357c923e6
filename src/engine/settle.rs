//! Advances one volume as far as possible: asks [`super::decide`] for the next step, starts it, and stops when there
//! is none.

use std::time::Instant;

use jiff::Timestamp;

use super::core::Engine;
use super::decide::{Decision, Desired, Observed, Step, decide};
use super::input::Input;
use super::leaving::Outcome;
use super::preparation::Preparation;
use super::rest::waits;
use super::step::folder_reason;
use super::volume::{Disk, Trouble, Volume, disk};
use super::waiting::Round;
use crate::clock::Steady;
use crate::device::table::{Device, Heard};
use crate::identity::{Serial, VolumeId};
use crate::reason::StoryStep;
use crate::volume::State;

/// The number of volumes settled in one turn when many wait.
const AT_ONCE: usize = 64;

impl Engine {
    /// Advances one volume as far as possible without waiting.
    pub(super) fn settle(&mut self, id: VolumeId) {
        let clock = &self.steps.tools.clock;
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
                // The link may change between the two disks without an event for the disk that remains.
                self.world.distrust(id);
            }
            if decision.revoke && !self.revoke(id, decision.reason.as_ref()) {
                let stuck = self.world.volume(id).and_then(|volume| volume.trouble.as_ref());
                let stuck = stuck.map(|trouble| trouble.reason.clone());
                if !leaving {
                    self.story.stand(&mut self.world, id, decision.state, stuck);
                }
                break;
            }
            if leaving {
                if self.go_on(id, Outcome::Look) {
                    continue;
                }
                return;
            }
            if busy {
                // The running step's result is an input, which settles the volume again. Only what is known to be
                // wrong is shown now.
                if decision.revoke {
                    self.story.stand(&mut self.world, id, decision.state, decision.reason);
                }
                return;
            }
            if decision.revoke && troubled {
                // The failure to revoke, or any other reason for waiting, is over.
                continue;
            }
            let owes = self.world.udevd_owes(id.serial());
            if decision.state != State::Refused
                && !owes
                && let Some(volume) = self.world.volume_mut(id)
            {
                // The request to udev is done. The next trouble of this disk is a new one.
                (volume.retriggered, volume.helper_again) = (None, None);
            }
            self.story.stand(&mut self.world, id, decision.state, decision.reason);
            match decision.step {
                None => break,
                Some(Step::Look(devnum)) => {
                    let after = self.world.volume(id).map_or(0, |volume| volume.look_after);
                    if !self.world.looks.comes(devnum, after) {
                        self.look(devnum, Heard::Asked);
                    }
                    break;
                }
                Some(Step::Retrigger(serial)) => {
                    self.retrigger(id, serial, this_disk);
                    break;
                }
                // The step starts first. The notes follow, because they must not delay what is slow.
                Some(Step::Record(evidence)) => {
                    self.record(id, evidence.clone());
                    if let Some(at) = heard {
                        self.story.note_at(&mut self.world, id, at, StoryStep::Heard, String::new());
                    }
                    let detail =
                        format!("{} diskseq {} size {}", evidence.devnum, evidence.diskseq, evidence.size_bytes);
                    self.story.note_at(&mut self.world, id, evidence.at, StoryStep::Proven, detail);
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
                    if self.world.telling.wait(id) {
                        self.tell_server();
                    }
                    break;
                }
                Some(Step::Probe(evidence)) => {
                    self.probe(id, evidence);
                    return self.note_published(id, published);
                }
            }
        }
        self.note_published(id, published);
        self.story.rest(&mut self.world, id);
    }

    /// Returns the next step for a volume whose serial these disks show.
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
                server_unit: self.steps.tools.server_unit,
                trouble: volume.trouble.as_ref().map(|trouble| (&trouble.reason, waits(trouble.again_at, clock))),
                standing: (volume.state, volume.reason.as_ref()),
            },
        )
    }

    fn note_published(&mut self, id: VolumeId, at: Option<Timestamp>) {
        let mapping = self.world.volume(id).and_then(|volume| volume.mapping.as_ref());
        if let (Some(at), Some(link)) = (at, mapping.map(|mapping| mapping.link.clone())) {
            self.story.note_at(&mut self.world, id, at, StoryStep::Published, link);
        }
    }

    /// Handles a volume that is to be published and is not prepared. Returns whether that is now the reason for
    /// waiting.
    fn unprepared(&mut self, id: VolumeId) -> bool {
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let Preparation::Failed { why, kind, attempts, again_at } = &volume.preparation else { return false };
        let reason = folder_reason(&std::io::Error::new(*kind, why.clone()));
        let waits = waits(*again_at, volume.judged);
        volume.trouble = Some(Trouble { reason, attempts: *attempts, again_at: *again_at, disk: None });
        waits
    }

    /// Drops a failure that was about another disk.
    fn forget_trouble_of_another(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id) else { return };
        let here: Option<Disk> = self.world.table.with_serial(volume.intent.serial()).next().map(disk);
        let of = volume.trouble.as_ref().and_then(|trouble| trouble.disk);
        if of.is_some_and(|disk| Some(disk) != here)
            && let Some(volume) = self.world.volume_mut(id)
        {
            volume.trouble = None;
        }
    }

    pub(super) fn settle_serials(&mut self, serials: Vec<Serial>) {
        let ids: Vec<VolumeId> = serials.into_iter().filter_map(|serial| self.world.volume_of(serial)).collect();
        self.settle_some(ids, None);
    }

    /// Settles the first of these volumes, and the others in turn with other inputs, so that ten thousand volumes
    /// delay nobody. Ends the round after the last.
    pub(super) fn settle_some(&mut self, mut ids: Vec<VolumeId>, round: Option<Round>) {
        let rest = ids.split_off(ids.len().min(AT_ONCE));
        for id in ids {
            self.settle(id);
        }
        if !rest.is_empty() {
            return self.steps.afterwards(Input::Settle { ids: rest, round });
        }
        if let Some(round) = round {
            self.waiting.end(round, &Ok(()));
        }
    }
}
