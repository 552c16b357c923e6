//! Keeping the folder of claims what it has to be, outside.

use std::io;
use std::time::Instant;

use super::Engine;
use super::exports::STRANGERS;
use super::input::{Done, Input};
use super::settle::pause;
use super::waiting::Round;
use crate::claims::Restored;
use crate::folder::Names;

/// What is known of the claims.
#[derive(Debug, Default)]
pub struct Claimed {
    /// What is in the folder and not attachd's.
    pub foreign: Names,
    /// Why the folder cannot be put right, if that is so.
    pub failed: Option<String>,
    under_way: bool,
    /// Something happened since the one that is under way began.
    again: bool,
    /// Who waits for the end of one that begins from now on.
    waiting: Vec<Done>,
    attempts: u32,
    restored_at: Option<Instant>,
    again_at: Option<Instant>,
}

impl Claimed {
    /// What the start found.
    pub(super) fn new(restored: &io::Result<Restored>, now: Instant) -> Self {
        let mut claimed = Self::default();
        claimed.learn(restored, now);
        claimed
    }

    /// When it is to be tried again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.again_at
    }

    /// A stranger's file came or went: told in a while, not at once for each.
    pub(super) fn strangers(&mut self, now: Instant) {
        let earliest = self.restored_at.map_or(now, |restored| restored + STRANGERS);
        self.again_at = Some(self.again_at.map_or(earliest, |again| again.min(earliest)));
    }

    /// Takes note, and says what is new.
    fn learn(&mut self, restored: &io::Result<Restored>, now: Instant) {
        let (foreign, failed) = match restored {
            Ok(restored) => {
                for (claims, what) in
                    [(&restored.written, "were missing"), (&restored.removed, "belonged to no intent")]
                {
                    if !claims.is_empty() {
                        tracing::warn!("claims {what}: {claims}; repaired");
                    }
                }
                let blocked = &restored.blocked;
                let failed = (!blocked.is_empty())
                    .then(|| format!("something that is no claim of attachd's has the name of wanted ones: {blocked}"));
                (restored.foreign.clone(), failed)
            }
            Err(error) => (self.foreign.clone(), Some(error.to_string())),
        };
        if let Some(why) = failed.as_ref().filter(|why| self.failed.as_ref() != Some(*why)) {
            tracing::error!("the claims cannot be put right: {why}; it is tried again by itself");
        }
        if !foreign.is_empty() && foreign != self.foreign {
            tracing::warn!("the folder of claims holds what attachd did not make: {foreign}; it is left alone");
        }
        self.restored_at = Some(now);
        self.attempts = if failed.is_some() { self.attempts + 1 } else { 0 };
        self.again_at = failed.is_some().then(|| now + pause(self.attempts));
        (self.foreign, self.failed) = (foreign, failed);
    }
}

impl Engine {
    /// Puts right what was added to the claims or taken from them by hand, outside. `done` is told of the end.
    pub(super) fn restore_claims(&mut self, done: Option<Done>) {
        let claimed = &mut self.world.claimed;
        claimed.waiting.extend(done);
        claimed.again_at = None;
        claimed.again = claimed.under_way;
        if std::mem::replace(&mut claimed.under_way, true) {
            return;
        }
        let round = self.waiting.begin(std::mem::take(&mut claimed.waiting));
        // What is left as it is now, is looked at once more should it end the other way.
        self.admissions.values_mut().for_each(|admission| admission.claim_unsure = true);
        let (mut wanted, mut under_way) = (Vec::new(), self.admissions.keys().copied().collect::<Vec<_>>());
        for volume in self.world.volumes_mut() {
            let going = volume.departure.leaving.may_go();
            volume.departure.claim_unsure |= going;
            let to = if going { &mut under_way } else { &mut wanted };
            to.push(volume.intent.volume);
        }
        // From here on: what is accepted or withdrawn while it runs is left as it is.
        let step = self.tools.claims.restore(wanted, under_way);
        self.outside("step.claims", step, move |result| {
            let result = result.map_err(io::Error::from).flatten();
            Input::Claims { result, round }
        });
    }

    pub(super) fn claims_restored(&mut self, result: &io::Result<Restored>, round: Round) {
        self.world.claimed.learn(result, self.tools.clock.now());
        self.world.claimed.under_way = false;
        if result.as_ref().is_ok_and(|restored| !restored.removed.is_empty()) {
            // udev has read these until now.
            self.unmark_unwanted();
        }
        self.waiting.end(round, &Ok(()));
        if std::mem::take(&mut self.world.claimed.again) {
            self.restore_claims(None);
        }
    }
}
