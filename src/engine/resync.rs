//! Reading everything and putting right what differs: the one routine behind start, loss, reload and repair.

use jiff::Timestamp;

use super::Engine;
use super::input::{Done, Input};
use crate::device::facts::{Facts, LinkTarget};
use crate::device::monitor;
use crate::device::table::{Device, Reading};
use crate::identity::VolumeId;

/// How long until the list of disks is read again after that failed.
const LIST_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Volumes settled in one go when many wait.
const AT_ONCE: usize = 64;

impl Engine {
    /// Reads all disks outside; they come back as [`Input::Scanned`].
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.next_reading();
        let (reader, back) = (self.reader.clone(), self.back.clone());
        tokio::spawn(async move {
            let facts = reader.read_all().await;
            let _ = back.send(Input::Scanned { reading, facts, reason, done }).await;
        });
    }

    pub(super) async fn scanned(
        &mut self,
        reading: Reading,
        facts: std::io::Result<Vec<Facts>>,
        reason: &'static str,
        done: Option<Done>,
    ) {
        match facts {
            Ok(facts) => {
                tracing::info!(reason, disks = facts.len(), "read all disks");
                self.world.table.replace(facts, reading);
                self.unmark_unwanted();
                self.world.resyncs.count += 1;
                self.world.resyncs.last_reason = reason;
                self.world.resyncs.last_at = Some(Timestamp::now());
                let ids = self.world.ids();
                self.settle_some(ids, done).await;
            }
            Err(error) => {
                tracing::error!(%error, reason, "cannot read the list of disks; trying again shortly");
                done.map(|done| done.send(Err(error.to_string())));
                // What was lost is still lost: until this succeeds there is a timer.
                let back = self.back.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LIST_AGAIN).await;
                    back.send(monitor::Heard::Lost("the list of disks could not be read").into()).await
                });
            }
        }
    }

    /// Gives back the nodes of disks that were withdrawn and, for a crash in between, never un-marked.
    fn unmark_unwanted(&self) {
        let marked = |device: &&Device| {
            let target = device.facts.identity.as_ref().ok().map(|identity| identity.link_target);
            matches!(target, Some(LinkTarget::Device(_, gid)) if gid == self.world.ground.nbd_gid)
        };
        let serials = self.world.table.all().filter(marked).filter_map(|device| device.facts.serial());
        for serial in serials.filter(|serial| self.world.volume_of(*serial).is_none()) {
            self.unmark(serial);
        }
    }

    /// Settles the first of these, and the rest in turn with other inputs: ten thousand volumes whose disks are away must
    /// keep nobody waiting. Says `done` after the last.
    pub(super) async fn settle_some(&mut self, mut ids: Vec<VolumeId>, done: Option<Done>) {
        let here = |id: &VolumeId| self.world.table.with_serial(id.serial()).next().is_some();
        let first = ids.iter().take_while(|id| here(id)).count().max(AT_ONCE).min(ids.len());
        for id in ids.drain(..first) {
            self.settle(id).await;
        }
        if ids.is_empty() {
            done.map(|done| done.send(Ok(())));
            return;
        }
        let back = self.back.clone();
        tokio::spawn(async move { back.send(Input::Settle { ids, done }).await });
    }

    /// Compares the folder with what is known: unknown exports go, known ones count as published.
    pub(super) fn adopt_exports(&mut self) {
        let contents = match self.tools.backend.list() {
            Ok(contents) => contents,
            Err(error) => {
                tracing::error!(%error, "cannot read the folder of exports");
                // Where there is none, nothing is published.
                if error.kind() != std::io::ErrorKind::NotFound {
                    self.revoke_unseen();
                }
                return;
            }
        };
        for name in &contents.foreign {
            tracing::warn!(name, "the folder of exports holds something attachd did not make; the server offers it");
        }
        self.world.foreign_exports = contents.foreign;
        for id in self.world.ids() {
            let Some(volume) = self.world.volume_mut(id) else { continue };
            let link = contents.links.get(&id);
            volume.published =
                !volume.leaving && link.is_some() && link == volume.mapping.as_ref().map(|mapping| &mapping.link);
            volume.proven &= volume.published;
        }
        for id in contents.links.keys() {
            if !self.world.volume(*id).is_some_and(|volume| volume.published) {
                tracing::warn!(VOLUME_ID = %id, "an export that is on no record is taken away");
                let backend = &self.tools.backend;
                let wanted = self.world.volume(*id).is_some_and(|volume| !volume.leaving);
                let taken = backend.revoke(*id).and_then(|()| if wanted { Ok(()) } else { backend.forget(*id) });
                if let Err(error) = taken {
                    tracing::error!(VOLUME_ID = %id, %error, "cannot take the export away: remove it by hand");
                }
            }
        }
        // Left by a crash between a withdrawal's commit and its end.
        for id in contents.prepared.iter().filter(|id| self.world.volume(**id).is_none()) {
            if let Err(error) = self.tools.backend.forget(*id) {
                tracing::error!(VOLUME_ID = %id, %error, "what was prepared for the export could not be removed");
            }
        }
    }

    /// What is published cannot be read: what is not known to be, is taken away by its name, for it may be all the same.
    fn revoke_unseen(&self) {
        for volume in self.world.volumes().filter(|volume| !volume.published) {
            let id = volume.intent.volume;
            if let Err(error) = self.tools.backend.revoke(id) {
                tracing::error!(VOLUME_ID = %id, %error, "cannot take the export away: remove it by hand");
            }
        }
    }

    /// Puts right what was added to the claims or taken from them by hand.
    pub(super) fn restore_claims(&mut self) {
        let leaving = |id: &VolumeId| self.world.volume(*id).is_some_and(|volume| volume.leaving);
        let (going, wanted): (Vec<VolumeId>, Vec<VolumeId>) = self.world.ids().into_iter().partition(leaving);
        // Nothing else can begin while this runs.
        let under_way = going.into_iter().chain(self.admissions.keys().copied());
        match self.tools.claims.restore(wanted.into_iter(), under_way) {
            Ok(repaired) => repaired.iter().for_each(|claim| tracing::warn!("the claim {claim}; repaired")),
            Err(error) => tracing::error!(%error, "the claims cannot be put right"),
        }
    }
}
