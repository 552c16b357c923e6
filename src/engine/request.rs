//! Accepting intents. Nothing is answered with success before it is durable.

use super::Engine;
use super::input::{Accepted, Input, Rejection, Reply};
use super::world::Volume;
use crate::device::facts::Facts;
use crate::identity::{Serial, VolumeId};
use crate::store::Change;
use crate::volume::{Entry, Intent};
use jiff::Timestamp;

impl Engine {
    /// Accepts an intent, or says why not.
    ///
    /// In this order: is it known already; does its serial belong to another; does the host use its disk (a look
    /// outside); the row, then the claim with its folder, synced; the answer.
    pub(super) fn intend(&mut self, mut intent: Intent, reply: Reply<Accepted>) {
        let volume = intent.volume;
        if let Some(known) = self.world.volume(volume) {
            let answer = if known.leaving {
                Err(Rejection::Leaving(volume))
            } else {
                differs(&known.intent, &intent).map_or(Ok(Accepted::Known), Err)
            };
            return drop(reply.send(answer));
        }
        if let Some((pending, waiting)) = self.admissions.get_mut(&volume) {
            match differs(pending, &intent) {
                Some(rejection) => drop(reply.send(Err(rejection))),
                None => waiting.push(reply),
            }
            return;
        }
        let serial = intent.serial();
        if let Some(have) = self.wanted(serial) {
            return drop(reply.send(Err(Rejection::SerialTaken { asked: volume, have, serial })));
        }
        if intent.vm_id.is_empty() {
            intent.vm_id.clone_from(&self.tools.vm_id);
        }
        self.admissions.insert(volume, (intent.clone(), Vec::new()));
        let present: Vec<_> = self.world.table.with_serial(serial).map(|device| device.facts.devnum).collect();
        if present.is_empty() {
            return self.admit(intent, reply);
        }
        let (reader, back) = (self.reader.clone(), self.back.clone());
        tokio::spawn(async move {
            let mut disks = Vec::new();
            for devnum in present {
                // One that does not answer in time names no use; evidence looks again before anything is published.
                disks.extend(reader.read(devnum).await);
            }
            let _ = back.send(Input::Examined { intent, disks, reply }).await;
        });
    }

    /// The volume of this serial that is wanted, or on its way to being so.
    pub(super) fn wanted(&self, serial: Serial) -> Option<VolumeId> {
        let pending = || self.admissions.keys().find(|pending| pending.serial() == serial).copied();
        self.world.volume_of(serial).or_else(pending)
    }

    /// The disks that were already present have been read.
    pub(super) fn examined(&mut self, intent: Intent, disks: &[Facts], reply: Reply<Accepted>) {
        let used = disks.iter().find_map(|disk| {
            let identity = disk.identity.as_ref().ok().filter(|identity| identity.serial == intent.serial())?;
            let uses: Vec<String> = identity.uses.iter().map(ToString::to_string).collect();
            (!uses.is_empty()).then(|| format!("/dev/{} is {}", disk.name, uses.join(", ")))
        });
        match used {
            None => self.admit(intent, reply),
            Some(uses) => self.answer_admission(
                intent.volume,
                &Err(Rejection::InUseByHost { volume: intent.volume, uses }),
                reply,
            ),
        }
    }

    fn admit(&mut self, intent: Intent, reply: Reply<Accepted>) {
        let (store, claims, back) = (self.tools.store.clone(), self.tools.claims.clone(), self.back.clone());
        let volume = intent.volume;
        let entry = Entry { at: intent.created_at, event: "intent".into(), detail: described(&intent) };
        let left = claims.clone();
        tokio::spawn(async move {
            let result = match store.write(vec![Change::Intend(intent.clone()), Change::Note(volume, entry)]).await {
                Err(error) => Err(Rejection::NotDurable(error.to_string())),
                Ok(()) => match tokio::task::spawn_blocking(move || claims.add(volume)).await {
                    Ok(Ok(())) => Ok(()),
                    failed => {
                        let why = failed
                            .map_or_else(|e| e.to_string(), |r| r.map_or_else(|e| e.to_string(), |()| String::new()));
                        let _ = tokio::task::spawn_blocking(move || left.remove(volume.serial())).await;
                        let undone = store.write(vec![Change::Withdraw(volume)]).await;
                        let rest =
                            undone.err().map(|error| format!(", and the intent could not be taken back ({error})"));
                        Err(Rejection::NotDurable(format!(
                            "the claim could not be written: {why}{}",
                            rest.unwrap_or_default()
                        )))
                    }
                },
            };
            let _ = back.send(Input::Admitted { intent, result, reply }).await;
        });
    }

    pub(super) async fn admitted(&mut self, intent: Intent, result: Result<(), Rejection>, reply: Reply<Accepted>) {
        let volume = intent.volume;
        if result.is_ok() {
            let mut new = Volume::new(intent.clone(), Timestamp::now());
            // A disk that is already here was not yet held against this intent.
            new.look_after = self.readings;
            new.epoch = self.next_epoch();
            new.instance = new.epoch;
            self.world.insert(new);
            tracing::info!(EVENT = "intent", VOLUME_ID = %volume, SERIAL = %volume.serial(), EXPORT = volume.export_name(), UID = intent.uid, "intent accepted {}", described(&intent));
            self.tell_intent(&intent);
        }
        self.answer_admission(volume, &result.map(|()| Accepted::New), reply);
        // Its claim was there for a moment, if it is not wanted after all.
        let marked = self.world.table.with_serial(volume.serial()).find_map(|disk| self.marked_in_vain(disk));
        if let Some(serial) = marked {
            self.unmark(serial);
        }
        self.settle(volume).await;
    }

    fn answer_admission(&mut self, volume: VolumeId, answer: &Result<Accepted, Rejection>, reply: Reply<Accepted>) {
        let _ = reply.send(answer.clone());
        if let Some((_, waiting)) = self.admissions.remove(&volume) {
            for reply in waiting {
                let _ = reply.send(answer.clone().map(|_| Accepted::Known));
            }
        }
    }

    fn tell_intent(&mut self, intent: &Intent) {
        self.tell(super::Event {
            id: 0,
            at: intent.created_at,
            volume_id: intent.volume,
            serial: intent.serial(),
            event: "intent".to_owned(),
            detail: described(intent),
            state: crate::volume::State::Waiting,
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
    words.join(", ")
}
