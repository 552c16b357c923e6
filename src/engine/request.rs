//! Accepting intents. Nothing is answered with success before it is durable.

use std::sync::Arc;

use super::Engine;
use super::input::{Accepted, Input, NotAdmitted, Rejection, Reply};
use super::outside::Died;
use super::settle::pause;
use super::tools::write;
use super::world::Volume;
use crate::device::facts::Facts;
use crate::identity::{Serial, VolumeId};
use crate::reason::StoryStep;
use crate::store::{Change, News, StoreError};
use crate::volume::{Entry, Intent, State, User};

/// An intent on its way to being durable.
pub(super) struct Admission {
    intent: Intent,
    /// Who asked for it.
    first: Reply<Accepted>,
    /// Who has asked for the same meanwhile.
    also: Vec<Reply<Accepted>>,
    /// A claim of its serial may be there, from whomever.
    pub(super) claim_unsure: bool,
}

impl Engine {
    /// Accepts an intent, or says why not.
    ///
    /// In this order: is it known already; does its serial belong to another; does the host use its disk (a look
    /// outside); the row, then the claim with its folder, synced; the answer.
    pub(super) fn intend(&mut self, mut intent: Intent, reply: Reply<Accepted>) {
        let volume = intent.volume;
        if let Some(known) = self.world.volume(volume) {
            let leaving = &known.departure.leaving;
            let answer = match leaving.operation().filter(|_| leaving.is_closed()) {
                Some(operation) => Err(Rejection::Sealed { volume, operation }),
                None if leaving.is_closed() => Err(Rejection::Leaving(volume)),
                None => differs(&known.intent, &intent).map_or(Ok(Accepted::Known), Err),
            };
            return drop(reply.send(answer));
        }
        if let Some(pending) = self.admissions.get_mut(&volume) {
            match differs(&pending.intent, &intent) {
                Some(rejection) => drop(reply.send(Err(rejection))),
                None => pending.also.push(reply),
            }
            return;
        }
        let serial = intent.serial();
        if let Some(have) = self.wanted(serial) {
            return drop(reply.send(Err(Rejection::SerialTaken { asked: volume, have, serial })));
        }
        if let Some(rejection) = self.too_many(intent.uid) {
            return drop(reply.send(Err(rejection)));
        }
        if intent.vm_id.is_empty() {
            intent.vm_id.clone_from(&self.tools.vm_id);
        }
        self.admissions.insert(volume, Admission { intent, first: reply, also: Vec::new(), claim_unsure: false });
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

    /// Why one more intent of this user is too many.
    fn too_many(&self, uid: Option<u32>) -> Option<Rejection> {
        let limits = &self.tools.limits;
        let all = self.world.volumes().len() + self.admissions.len();
        if all >= limits.intents as usize {
            return Some(Rejection::TooMany { whose: "on this host".to_owned(), used: all, limit: limits.intents });
        }
        let pending = self.admissions.values().filter(|pending| pending.intent.uid == uid).count();
        let own = self.world.intents_of(uid) + pending;
        // Root writes the limits.
        let over = uid != Some(0) && own >= limits.intents_per_user as usize;
        over.then(|| Rejection::TooMany {
            whose: format!("of {}", User(uid)),
            used: own,
            limit: limits.intents_per_user,
        })
    }

    /// The volume of this serial that is wanted, or on its way to being so.
    pub(super) fn wanted(&self, serial: Serial) -> Option<VolumeId> {
        let pending = || self.admissions.keys().find(|pending| pending.serial() == serial).copied();
        self.world.volume_of(serial).or_else(pending)
    }

    /// The disks that were already present have been read.
    pub(super) fn examined(&mut self, volume: VolumeId, disks: Result<Vec<Facts>, Died>) {
        let disks = match disks {
            Ok(disks) => disks,
            // What uses the disk is not known.
            Err(died) => {
                let why = Rejection::NotDurable(format!("the volume's disk could not be looked at: {died}"));
                return self.answer_admission(volume, &Err(why));
            }
        };
        let used = disks.iter().find_map(|disk| {
            let identity = disk.identity.as_ref().ok().filter(|identity| identity.serial == volume.serial())?;
            let uses: Vec<String> = identity.uses.iter().map(ToString::to_string).collect();
            (!uses.is_empty()).then(|| format!("/dev/{} is {}", disk.name, uses.join(", ")))
        });
        match used {
            None => self.admit(volume),
            Some(uses) => self.answer_admission(volume, &Err(Rejection::InUseByHost { volume, uses })),
        }
    }

    fn admit(&mut self, volume: VolumeId) {
        let Some(Admission { intent, .. }) = self.admissions.get(&volume) else { return };
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
        if !self.leftovers.contains(&volume) {
            return;
        }
        if self.admissions.contains_key(&volume) {
            return self.later(pause(attempts), Input::TakeBackAgain(volume, attempts));
        }
        let truth = Arc::clone(&self.tools.truth);
        let step = async move { write(&*truth, vec![Change::Withdraw(volume)]).await };
        self.outside("step.take-back", step, move |result| {
            let result = result.unwrap_or(Err(StoreError::Closed));
            Input::TakenBack { volume, attempts, result }
        });
    }

    pub(super) fn taken_back(&mut self, volume: VolumeId, attempts: u32, done: bool) {
        if done {
            self.leftovers.remove(&volume);
        } else {
            self.later(pause(attempts), Input::TakeBackAgain(volume, attempts + 1));
        }
    }

    pub(super) fn admitted(&mut self, volume: VolumeId, result: Result<(), NotAdmitted>) {
        let result = match result {
            Ok(()) => Ok(()),
            Err(NotAdmitted::Refused(rejection)) => Err(rejection),
            Err(NotAdmitted::Left(rejection)) => {
                if self.leftovers.insert(volume) {
                    self.later(pause(1), Input::TakeBackAgain(volume, 1));
                }
                Err(rejection)
            }
            Err(NotAdmitted::Unclaimed(why)) => return self.take_back(volume, why),
        };
        let intent = self.admissions.get(&volume).map(|pending| pending.intent.clone());
        if let Some(intent) = intent.filter(|_| result.is_ok()) {
            self.leftovers.remove(&volume);
            let mut new = Volume::new(intent.clone(), self.tools.clock.wall(), self.tools.clock.now());
            // A disk that is already here was not yet held against this intent.
            new.look_after = self.readings;
            new.epoch = self.next_epoch();
            new.instance = new.epoch;
            self.world.insert(new);
            tracing::info!(EVENT = StoryStep::Intent.name(), VOLUME_ID = %volume, SERIAL = %volume.serial(), EXPORT = volume.export_name(), UID = intent.uid, "intent accepted {}", described(&intent));
            self.tell_intent(&intent);
        }
        // Perhaps the whole folder needs a look; and this claim was perhaps not removed.
        let not_claimed = matches!(result, Err(Rejection::NotClaimed(_)));
        self.answer_admission(volume, &result.map(|()| Accepted::New));
        if not_claimed {
            self.restore_claims(None);
        }
        self.settle(volume);
    }

    fn answer_admission(&mut self, volume: VolumeId, answer: &Result<Accepted, Rejection>) {
        if let Some(Admission { first, also, claim_unsure, .. }) = self.admissions.remove(&volume) {
            if claim_unsure && answer.is_err() {
                // Nobody wants it.
                self.restore_claims(None);
            }
            // Its claim was there for a moment, if it is not wanted after all.
            let marked = self.world.table.with_serial(volume.serial()).find_map(|disk| self.marked_in_vain(disk));
            if let Some(serial) = marked {
                self.unmark(serial);
            }
            let _ = first.send(answer.clone());
            for reply in also {
                let _ = reply.send(answer.clone().map(|_| Accepted::Known));
            }
        }
    }

    fn tell_intent(&mut self, intent: &Intent) {
        self.tell(|id| super::Event {
            id,
            at: intent.created_at,
            volume_id: intent.volume,
            serial: intent.serial(),
            event: StoryStep::Intent.into(),
            detail: described(intent),
            state: State::waiting_for(intent.origin),
            reason: None,
        });
    }
}

/// The first field in which a repeated request asks for something else. What it leaves out, it does not ask for.
fn differs(have: &Intent, asked: &Intent) -> Option<Rejection> {
    let number = |value: Option<u64>| value.map_or_else(|| "unset".to_owned(), |value| value.to_string());
    let fields = [
        (!asked.vm_id.is_empty(), "vm_id", have.vm_id.clone(), asked.vm_id.clone()),
        (asked.size_bytes.is_some(), "size_bytes", number(have.size_bytes), number(asked.size_bytes)),
        (
            asked.deadline_seconds.is_some(),
            "deadline_seconds",
            number(have.deadline_seconds.map(u64::from)),
            number(asked.deadline_seconds.map(u64::from)),
        ),
    ];
    fields.into_iter().find(|(named, _, have, asked)| *named && have != asked).map(|(_, field, have, asked_value)| {
        Rejection::Differs { volume: asked.volume, field, have, asked: asked_value }
    })
}

fn described(intent: &Intent) -> String {
    let mut words = Vec::new();
    if !intent.vm_id.is_empty() {
        words.push(format!("VM {}", intent.vm_id));
    }
    words.extend(intent.size_bytes.map(|size| format!("at least {size} bytes")));
    words.extend(intent.deadline_seconds.map(|seconds| format!("within {seconds} s")));
    words.push(format!("by {}", User(intent.uid)));
    words.join(", ")
}
