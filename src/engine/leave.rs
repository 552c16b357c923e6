//! Seals, unseals and withdraws volumes: does what [`super::leaving`] decides.
//!
//! [`Engine::leave`] handles a caller's request, and [`Engine::go_on`] the result of the last step. [`super::asking`]
//! finds out who is connected. Only the volume's [`super::departure::Departure`] holds how far the withdrawal is and
//! who waits for the answer.

use super::answers::Rejection;
use super::asking;
use super::core::Engine;
use super::departure::Caller;
use super::leaving::{self, Act, Call, Next, Outcome, Write};
use crate::clock;
use crate::identity::VolumeId;
use crate::store::{Change, News};
use crate::volume::State;

impl Engine {
    /// Handles the request of a caller. Returns true if the volume was given back, and must be settled.
    #[must_use]
    pub(super) fn leave(&mut self, id: VolumeId, call: Call, caller: Caller) -> bool {
        let Some(volume) = self.world.volume_mut(id) else {
            drop(caller.reply.send(Err(Rejection::Unknown(id))));
            return false;
        };
        match leaving::called(id, &volume.departure.leaving, call) {
            Err(answer) => {
                drop(caller.reply.send(answer));
                false
            }
            Ok((leaving, act)) => {
                volume.departure.called(&leaving, caller);
                self.follow(id, Next { leaving, act, answer: None })
            }
        }
    }

    /// Handles the result of the last step. Returns true if the volume was given back, and must be settled.
    #[must_use]
    pub(super) fn go_on(&mut self, id: VolumeId, outcome: Outcome) -> bool {
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let next = volume.departure.next(id, outcome);
        self.follow(id, next)
    }

    fn follow(&mut self, id: VolumeId, mut next: Next) -> bool {
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let published = volume.published;
        volume.departure.leaving.clone_from(&next.leaving);
        if published && next.closes() && !self.revoke(id, None) {
            next = next.stuck(id);
            if let Some(volume) = self.world.volume_mut(id) {
                volume.departure.leaving.clone_from(&next.leaving);
            }
        }
        if self.world.volume_mut(id).is_some_and(|volume| volume.departure.wants_claim()) {
            self.restore_claims(None);
        }
        let reply = match (&next.answer, self.world.volume_mut(id)) {
            (Some(_), Some(volume)) => volume.departure.take_reply(),
            _ => None,
        };
        // The caller that receives the answer sees the volume's state after this turn.
        let given_back = self.act(id, next.act);
        if let (Some(reply), Some(answer)) = (reply, next.answer) {
            let _ = reply.send(answer);
        }
        given_back
    }

    /// Does what was decided. Returns true if the volume was given back.
    fn act(&mut self, id: VolumeId, act: Act) -> bool {
        match act {
            Act::Rest => self.world.wind(id),
            Act::Ask => self.ask_for_clients(id),
            Act::Write(write) => self.put_on_record(id, &write),
            Act::TellSealed => {
                self.tell_recorded(id);
                let reason = self.world.volume(id).map(|volume| volume.departure.reason());
                self.story.stand(&mut self.world, id, State::Detaching, reason);
                self.story.rest(&mut self.world, id);
            }
            Act::TellLingering(clients) => {
                let unit = self.steps.tools.server_unit;
                let reason = self.world.volume(id).map(|volume| volume.departure.insisted(&clients, unit));
                self.story.stand(&mut self.world, id, State::Detaching, reason);
                self.story.rest(&mut self.world, id);
                self.look_later(id);
            }
            Act::LookLater => self.look_later(id),
            Act::GiveBack => {
                self.tell_recorded(id);
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.departure.give_back();
                }
                self.world.stand_staying(id);
                return true;
            }
            Act::Unclaim => self.unclaim(id),
            Act::Forget => self.forget(id),
        }
        false
    }

    fn ask_for_clients(&mut self, id: VolumeId) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume(id) else { return };
        let (mapping, boot) = (volume.mapping.as_ref(), &self.world.ground.boot_id);
        let questions = asking::questions(id.serial(), mapping, boot, &self.world.table);
        let epoch = volume.epoch;
        self.steps.clients(ticket, epoch, questions);
    }

    /// Writes the change, the volume's state and the reported step in one transaction, so that they agree whatever is
    /// killed.
    fn put_on_record(&mut self, id: VolumeId, write: &Write) {
        let unit = self.steps.tools.server_unit;
        let at = clock::whole(self.steps.tools.clock.wall());
        let (Some(ticket), Some(volume)) = (self.world.ticket(id), self.world.volume_mut(id)) else { return };
        let given_back = volume.state_when_given_back();
        let record = volume.departure.record(write, at, unit, given_back);
        let changes = match record.stays {
            None => vec![Change::Withdraw(id)],
            Some((sealed, state, reason)) => {
                vec![Change::News(id, News::Stand(state, reason, at)), Change::Seal(id, sealed)]
            }
        };
        let note = record.entry.map(|entry| Change::News(id, News::Note(entry)));
        let changes = note.into_iter().chain(changes).collect();
        // The steps that led here are posted before.
        self.story.post(&mut self.world, id);
        self.steps.leave(ticket, changes);
    }

    fn look_later(&mut self, id: VolumeId) {
        let now = self.steps.tools.clock.now();
        if let Some(volume) = self.world.volume_mut(id) {
            volume.departure.postpone(now);
        }
        self.world.wind(id);
    }

    /// Removes the rest of a volume whose rows are deleted. From here on nothing brings the volume back.
    fn unclaim(&mut self, id: VolumeId) {
        // The volume stays known until its claim is removed, because a new intent for it would add a claim.
        if let Some(ticket) = self.world.ticket(id) {
            self.steps.unclaim(ticket);
        }
    }

    fn forget(&mut self, id: VolumeId) {
        self.story.post(&mut self.world, id);
        self.tell_recorded(id);
        if self.world.remove(id).is_some() && self.world.table.with_serial(id.serial()).next().is_some() {
            // The claim is removed, so the node gets its old group back.
            self.unmark(id.serial());
        }
    }

    /// Reports the step that was written with the change.
    fn tell_recorded(&mut self, id: VolumeId) {
        let entry = self.world.volume_mut(id).and_then(|volume| volume.departure.take_entry());
        if let Some(entry) = entry {
            self.story.note_recorded(&mut self.world, id, entry);
        }
    }
}
