//! What callers ask: intents, a resync, whether the server serves. Nothing is answered with success before it is durable.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::admissions::{self, Leftover, NotAdmitted, described};
use super::answers::{Accepted, Event, Rejection, Reply};
use super::core::Engine;
use super::input::Input;
use super::pause::pause;
use super::tools::{Died, write};
use super::volume::Volume;
use super::waiting::Done;
use crate::device::facts::Facts;
use crate::identity::VolumeId;
use crate::reason::StoryStep;
use crate::store::{Change, News, StoreError};
use crate::volume::{Entry, Intent, State, User};

impl Engine {
    /// Accepts an intent, or says why not: what is known is asked first, then the host's use of its disk (a look outside); then
    /// the row, then the claim with its folder, synced; the answer.
    pub(super) fn intend(&mut self, intent: Intent, reply: Reply<Accepted>) {
        let (volume, serial) = (intent.volume, intent.serial());
        if !self.world.ask(intent, reply, self.tools.limits, &self.tools.vm_id) {
            return;
        }
        let present: Vec<_> = self.world.table.with_serial(serial).map(|device| device.facts.devnum).collect();
        if present.is_empty() {
            return self.admit(volume);
        }
        let disks = Arc::clone(&self.tools.disks);
        let step = async move {
            let mut read = Vec::new();
            for devnum in present {
                // One that does not answer in time names no use; evidence looks again before anything is published.
                read.extend(disks.read(devnum).await.here());
            }
            read
        };
        self.outside("step.examine", step, move |disks| Input::Examined { volume, disks });
    }

    /// The disks that were already present have been read.
    pub(super) fn examined(&mut self, volume: VolumeId, disks: Result<Vec<Facts>, Died>) {
        let refused = match disks {
            Ok(disks) => admissions::uses(volume, &disks).map(|uses| Rejection::InUseByHost { volume, uses }),
            // What uses the disk is not known.
            Err(died) => Some(Rejection::NotDurable(format!("the volume's disk could not be looked at: {died}"))),
        };
        match refused {
            None => self.admit(volume),
            Some(why) => self.answer_admission(volume, &Err(why)),
        }
    }

    fn admit(&mut self, volume: VolumeId) {
        let Some(intent) = self.world.admissions.intent(volume) else { return };
        let (truth, claims) = (Arc::clone(&self.tools.truth), Arc::clone(&self.tools.claims));
        let entry = Entry { at: intent.created_at, event: StoryStep::Intent.into(), detail: described(intent) };
        let row = vec![Change::Intend(intent.clone()), Change::News(volume, News::Note(entry))];
        let step = async move {
            write(&*truth, row).await.map_err(|error| NotAdmitted::Refused(Rejection::Store(error)))?;
            claims.add(volume).await.map_err(|error| NotAdmitted::unclaimed(&error))
        };
        self.outside("step.admit", step, move |result| {
            // Perhaps it is on record.
            let result = result.unwrap_or_else(|died| Err(NotAdmitted::unclaimed(&died)));
            Input::Admitted { volume, result }
        });
    }

    /// An intent that has no claim is none: its row goes too.
    fn take_back(&self, volume: VolumeId, why: String) {
        let (truth, claims) = (Arc::clone(&self.tools.truth), Arc::clone(&self.tools.claims));
        let step = async move {
            let _ = claims.remove(volume.serial()).await;
            write(&*truth, vec![Change::Withdraw(volume)]).await.map_err(|error| error.to_string())
        };
        self.outside("step.take-back", step, move |undone| {
            let failed = undone.map_err(|died| died.to_string()).and_then(|undone| undone).err();
            let refused = |rest: &str| Rejection::NotClaimed(format!("the claim could not be written: {why}{rest}"));
            let result = match failed {
                None => NotAdmitted::Refused(refused("")),
                Some(error) => {
                    let rest =
                        format!(", and the intent is still to be taken back ({error}; it is tried again by itself)");
                    NotAdmitted::Left(refused(&rest))
                }
            };
            Input::Admitted { volume, result: Err(result) }
        });
    }

    /// A refused intent is on record still: until its row is deleted there is a timer. (An intent for the same volume that is
    /// accepted meanwhile takes the row over.)
    pub(super) fn take_back_again(&mut self, volume: VolumeId, attempts: u32) {
        match self.world.admissions.leftover(volume) {
            Leftover::Nothing => {}
            Leftover::Wait => self.later(pause(attempts), Input::TakeBackAgain(volume, attempts)),
            Leftover::Delete => {
                let truth = Arc::clone(&self.tools.truth);
                let step = async move { write(&*truth, vec![Change::Withdraw(volume)]).await };
                self.outside("step.take-back", step, move |result| {
                    let result = result.unwrap_or(Err(StoreError::Closed));
                    Input::TakenBack { volume, attempts, result }
                });
            }
        }
    }

    /// That was tried.
    pub(super) fn taken_back(&mut self, volume: VolumeId, attempts: u32, done: bool) {
        if done {
            self.world.admissions.not_left(volume);
        } else {
            self.later(pause(attempts), Input::TakeBackAgain(volume, attempts + 1));
        }
    }

    /// The row and the claim are durable, or are not.
    pub(super) fn admitted(&mut self, volume: VolumeId, result: Result<(), NotAdmitted>) {
        let result = match result {
            Ok(()) => Ok(()),
            Err(NotAdmitted::Refused(rejection)) => Err(rejection),
            Err(NotAdmitted::Left(rejection)) => {
                if self.world.admissions.left(volume) {
                    self.later(pause(1), Input::TakeBackAgain(volume, 1));
                }
                Err(rejection)
            }
            Err(NotAdmitted::Unclaimed(why)) => return self.take_back(volume, why),
        };
        let intent = self.world.admissions.intent(volume).cloned();
        if let Some(intent) = intent.filter(|_| result.is_ok()) {
            self.world.admissions.not_left(volume);
            self.take_up(&intent);
        }
        // Perhaps the whole folder needs a look; and this claim was perhaps not removed.
        let not_claimed = matches!(result, Err(Rejection::NotClaimed(_)));
        self.answer_admission(volume, &result.map(|()| Accepted::New));
        if not_claimed {
            self.restore_claims(None);
        }
        self.settle(volume);
    }

    /// An intent is durable: from here on its volume is known.
    fn take_up(&mut self, intent: &Intent) {
        let volume = intent.volume;
        let mut new = Volume::new(intent.clone(), self.tools.clock.wall(), self.tools.clock.now());
        // A disk that is already here was not yet held against this intent.
        new.look_after = self.world.looks.last();
        new.epoch = self.next_epoch();
        new.instance = new.epoch;
        self.world.insert(new);
        tracing::info!(EVENT = StoryStep::Intent.name(), VOLUME_ID = %volume, SERIAL = %volume.serial(), EXPORT = volume.export_name(), UID = intent.uid, "intent accepted {}", described(intent));
        self.events.tell(|id| Event {
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
            // Nobody wants it.
            self.restore_claims(None);
        }
        // Its claim was there for a moment, if it is not wanted after all.
        let marked = self.world.table.with_serial(volume.serial()).find_map(|disk| self.world.marked_in_vain(disk));
        if let Some(serial) = marked {
            self.unmark(serial);
        }
        admission.answer(answer);
    }

    /// Reads and compares everything. `done` is told when all of it was.
    pub(super) fn resync(&mut self, reason: &'static str, by: Option<User>, done: Done) {
        if let Some(by) = by {
            tracing::info!(EVENT = StoryStep::Resync.name(), UID = by.0, "a resync was asked for by {by}");
        }
        let (exports_done, exports) = oneshot::channel();
        let (claims_done, claims) = oneshot::channel();
        let (disks_done, disks) = oneshot::channel();
        self.list_exports(Some(exports_done));
        self.restore_claims(Some(claims_done));
        self.ask_for_host_disks();
        self.world.try_again(self.tools.clock.now());
        self.tools.truth.tidy();
        self.scan(reason, Some(disks_done));
        let all = async move {
            let _ = exports.await;
            let _ = claims.await;
            let _ = done.send(disks.await.unwrap_or(Err("it failed by a defect of attachd: ask again".to_owned())));
        };
        self.tools.outside.start(all.boxed());
    }

    /// Somebody wants to know whether the server answers now.
    pub(super) fn server_is_asked_for(&mut self, reply: oneshot::Sender<()>) {
        let (costly, now) = (self.tools.server.is_started_for_each(), self.tools.clock.now());
        if self.world.handshakes.wish(reply, costly, now) {
            self.greet_server();
        }
    }

    /// A client of these volumes would not have been served.
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
