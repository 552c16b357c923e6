//! The requests of callers: intents, a resync, a check of the server. No request is answered with success before its
//! effect is durable.

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::admissions::{self, Leftover, NotAdmitted, described};
use super::answers::{Accepted, Event, Rejection, Reply};
use super::core::Engine;
use super::input::Input;
use super::pause::pause;
use super::tools::Died;
use super::volume::Volume;
use super::waiting::Done;
use crate::device::facts::Facts;
use crate::identity::VolumeId;
use crate::reason::StoryStep;
use crate::store::Change;
use crate::volume::{Intent, State, User};

impl Engine {
    /// Accepts an intent or refuses it. The order is: the checks in memory, the check of the host's use of the disk
    /// (outside), the row, the claim with its folder synced, the answer.
    pub(super) fn intend(&mut self, intent: Intent, also: Vec<Change>, reply: Reply<Accepted>) {
        let (volume, serial) = (intent.volume, intent.serial());
        if !self.world.ask((intent, also), reply, self.steps.tools.limits, &self.steps.tools.vm_id) {
            return;
        }
        let present: Vec<_> = self.world.table.with_serial(serial).map(|device| device.facts.devnum).collect();
        if present.is_empty() {
            return self.admit(volume);
        }
        self.steps.examine(volume, present);
    }

    /// Continues after the disks that were already present have been read.
    pub(super) fn examined(&mut self, volume: VolumeId, disks: Result<Vec<Facts>, Died>) {
        let refused = match disks {
            Ok(disks) => admissions::uses(volume, &disks).map(|uses| Rejection::InUseByHost { volume, uses }),
            // It is unknown what uses the disk.
            Err(died) => Some(Rejection::NotDurable(format!("the volume's disk could not be looked at: {died}"))),
        };
        match refused {
            None => self.admit(volume),
            Some(why) => self.answer_admission(volume, &Err(why)),
        }
    }

    fn admit(&self, volume: VolumeId) {
        if let Some((intent, also)) = self.world.admissions.to_write(volume) {
            self.steps.admit(intent, also);
        }
    }

    /// Retries the deletion of a refused intent's row. A timer runs until the row is deleted. (An intent for the same
    /// volume that is accepted in between takes the row over.)
    pub(super) fn take_back_again(&mut self, volume: VolumeId, attempts: u32) {
        match self.world.admissions.leftover(volume) {
            Leftover::Nothing => {}
            Leftover::Wait => self.steps.later(pause(attempts), Input::TakeBackAgain(volume, attempts)),
            Leftover::Delete => self.steps.delete_leftover(volume, attempts),
        }
    }

    /// Continues after an attempt to delete the row.
    pub(super) fn taken_back(&mut self, volume: VolumeId, attempts: u32, done: bool) {
        if done {
            self.world.admissions.not_left(volume);
        } else {
            self.steps.later(pause(attempts), Input::TakeBackAgain(volume, attempts + 1));
        }
    }

    /// Continues after the row and the claim are durable, or after that failed.
    pub(super) fn admitted(&mut self, volume: VolumeId, result: Result<(), NotAdmitted>) {
        let result = match result {
            Ok(()) => Ok(()),
            Err(NotAdmitted::Refused(rejection)) => Err(rejection),
            Err(NotAdmitted::Left(rejection)) => {
                if self.world.admissions.left(volume) {
                    self.steps.later(pause(1), Input::TakeBackAgain(volume, 1));
                }
                Err(rejection)
            }
            Err(NotAdmitted::Unclaimed(why)) => return self.steps.take_back(volume, why),
        };
        let intent = self.world.admissions.intent(volume).cloned();
        if let Some(intent) = intent.filter(|_| result.is_ok()) {
            self.world.admissions.not_left(volume);
            self.take_up(&intent);
        }
        // The whole folder may need a check, and this claim may not have been removed.
        let not_claimed = matches!(result, Err(Rejection::NotClaimed(_)));
        self.answer_admission(volume, &result.map(|()| Accepted::New));
        if not_claimed {
            self.restore_claims(None);
        }
        self.settle(volume);
    }

    /// Adds the volume of an intent that is durable.
    fn take_up(&mut self, intent: &Intent) {
        let volume = intent.volume;
        let mut new = Volume::new(intent.clone(), self.steps.tools.clock.wall(), self.steps.tools.clock.now());
        // A disk that is already present was not compared with this intent yet.
        new.look_after = self.world.looks.last();
        new.epoch = self.next_epoch();
        new.instance = new.epoch;
        self.world.insert(new);
        tracing::info!(EVENT = StoryStep::Intent.name(), VOLUME_ID = %volume, SERIAL = %volume.serial(), EXPORT = volume.export_name(), UID = intent.uid, "intent accepted {}", described(intent));
        self.story.events.tell(|id| Event {
            id,
            at: intent.created_at,
            volume_id: volume,
            serial: intent.serial(),
            event: StoryStep::Intent.into(),
            detail: described(intent),
            state: State::waiting_for(intent.origin),
            reason: None,
        });
    }

    fn answer_admission(&mut self, volume: VolumeId, answer: &Result<Accepted, Rejection>) {
        let Some(admission) = self.world.admissions.end(volume) else { return };
        if admission.leaves_claim(answer) {
            // Nobody wants the volume.
            self.restore_claims(None);
        }
        // If the volume is not wanted in the end, its claim existed for a moment and may have left a mark.
        let marked = self.world.table.with_serial(volume.serial()).find_map(|disk| self.world.marked_in_vain(disk));
        if let Some(serial) = marked {
            self.unmark(serial);
        }
        admission.answer(answer);
    }

    /// Reads and compares everything. `done` is notified at the end.
    pub(super) fn resync(&mut self, reason: &'static str, by: Option<User>, done: Done) {
        if let Some(by) = by {
            tracing::info!(EVENT = StoryStep::Resync.name(), UID = by.0, "a resync was asked for by {by}");
        }
        let (exports_done, exports) = oneshot::channel();
        let (claims_done, claims) = oneshot::channel();
        let (disks_done, disks) = oneshot::channel();
        self.list_exports(Some(exports_done));
        self.restore_claims(Some(claims_done));
        self.steps.host_disks();
        self.world.try_again(self.steps.tools.clock.now());
        self.steps.tools.truth.tidy();
        self.scan(reason, Some(disks_done));
        let all = async move {
            let _ = exports.await;
            let _ = claims.await;
            let _ = done.send(disks.await.unwrap_or(Err("it failed by a defect of attachd: ask again".to_owned())));
        };
        self.steps.tools.outside.start(all.boxed());
    }

    /// Handles a request whether the server answers now.
    pub(super) fn server_is_asked_for(&mut self, reply: oneshot::Sender<()>) {
        let (costly, now) = (self.steps.tools.server.is_started_for_each(), self.steps.tools.clock.now());
        if self.world.handshakes.wish(reply, costly, now) {
            self.greet_server();
        }
    }

    /// Handles a report that a client of these volumes would not have been served.
    pub(super) fn doubt(&mut self, volumes: Vec<VolumeId>, server: bool) {
        let epoch = self.next_epoch();
        for id in &volumes {
            if let Some(volume) = self.world.volume_mut(*id) {
                volume.disprove(epoch);
            }
        }
        self.settle_some(volumes, None);
        if server {
            self.greet_server();
        }
    }
}
