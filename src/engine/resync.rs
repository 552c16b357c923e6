//! Reading everything and putting right what differs: the one routine behind start, loss, reload and repair.

use std::time::Instant;

use super::Engine;
use super::input::{Done, Input};
use super::settle::pause;
use super::world::Stuck;
use crate::clock;
use crate::device::facts::Facts;
use crate::device::found::Found;
use crate::device::table::{Heard, Reading};
use crate::device::{DevNum, monitor};
use crate::export::backend::Contents;
use crate::identity::VolumeId;

/// How long until the list of disks is read again after that failed.
const LIST_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Volumes settled in one go when many wait.
const AT_ONCE: usize = 64;

impl Engine {
    /// Reads all disks outside; they come back as [`Input::Scanned`].
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.next_reading();
        let reader = self.reader.clone();
        self.outside("step.scan", async move { reader.read_all().await }, move |all| {
            let all = all.unwrap_or_else(|died| Err(died.into()));
            Input::Scanned { reading, all, reason, done }
        });
    }

    pub(super) async fn scanned(
        &mut self,
        reading: Reading,
        all: std::io::Result<Vec<(DevNum, Found<Facts>)>>,
        reason: &'static str,
        done: Option<Done>,
    ) {
        match all {
            Ok(all) => {
                let disks = all.iter().filter(|(_, found)| found.is_here()).count();
                tracing::info!(reason, disks, "read all disks");
                for (devnum, found) in &all {
                    self.read_or_not(*devnum, found, Heard::Look);
                }
                self.world.table.replace(all, reading);
                self.unmark_unwanted();
                self.world.resyncs.count += 1;
                self.world.resyncs.last_reason = reason;
                self.world.resyncs.last_at = Some(clock::wall());
                let ids = self.world.ids();
                self.settle_some(ids, done).await;
            }
            Err(error) => {
                tracing::error!(%error, reason, "cannot read the list of disks; trying again shortly");
                done.map(|done| done.send(Err(error.to_string())));
                // What was lost is still lost: until this succeeds there is a timer.
                self.later(LIST_AGAIN, monitor::Heard::Lost("the list of disks could not be read").into());
            }
        }
    }

    /// Gives back the nodes of disks that were withdrawn and, for a crash in between, never un-marked.
    fn unmark_unwanted(&mut self) {
        let serials: Vec<_> = self.world.table.all().filter_map(|disk| self.marked_in_vain(disk)).collect();
        for serial in serials {
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
        self.afterwards(Input::Settle { ids, done });
    }

    /// Compares the folder with what is known: unknown exports go, known ones count as published. What cannot be taken away
    /// is tried again by itself. Returns the volumes for which something has changed.
    pub(super) fn adopt_exports(&mut self) -> Vec<VolumeId> {
        let (changed, stuck) = match self.tools.backend.list() {
            Ok(contents) => self.adopt(contents),
            // Where there is none, nothing is published.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!(%error, "cannot read the folder of exports");
                self.adopt(Contents::default())
            }
            Err(error) => (Vec::new(), self.revoke_unseen(&error)),
        };
        let before = self.world.stuck.take();
        let known = |why: &&String| before.as_ref().is_some_and(|before| before.why.contains(why));
        for why in stuck.iter().filter(|why| !known(why)) {
            tracing::error!("{why}; it is tried again by itself, or remove it by hand");
        }
        if !stuck.is_empty() {
            let attempts = before.map_or(0, |before| before.attempts) + 1;
            self.world.stuck = Some(Stuck { why: stuck, attempts, again_at: Instant::now() + pause(attempts) });
        }
        changed
    }

    /// Returns also what could not be taken away.
    fn adopt(&mut self, contents: Contents) -> (Vec<VolumeId>, Vec<String>) {
        let (mut changed, mut stuck) = (Vec::new(), Vec::new());
        for name in contents.foreign.iter().filter(|name| !self.world.foreign_exports.contains(name)) {
            tracing::warn!(name, "the folder of exports holds something attachd did not make; the server offers it");
        }
        self.world.foreign_exports = contents.foreign;
        for id in self.world.ids() {
            let Some(volume) = self.world.volume_mut(id) else { continue };
            let (link, recorded) = (contents.links.get(&id), volume.mapping.as_ref().map(|mapping| &mapping.link));
            // What is on its way out goes wherever it leads, and not before the wish is durable.
            let published = link.is_some() && (volume.leaving.is_begun() || link == recorded);
            if std::mem::replace(&mut volume.published, published) != published {
                changed.push(id);
            }
            volume.proven &= published;
            if published && volume.leaving.lingers() {
                self.revoke(id, None);
            } else if !published {
                self.stand_unserved(id);
            }
        }
        for id in contents.links.into_keys() {
            if !self.world.volume(id).is_some_and(|volume| volume.published || volume.leaving.is_begun()) {
                stuck.extend(self.take_unknown(id).err());
            }
        }
        // Left by a crash between a withdrawal's commit and its end.
        for id in contents.prepared.iter().filter(|id| self.world.volume(**id).is_none()) {
            if let Err(error) = self.tools.backend.forget(*id) {
                tracing::error!(VOLUME_ID = %id, %error, "what was prepared for the export could not be removed");
            }
        }
        (changed, stuck)
    }

    fn take_unknown(&self, id: VolumeId) -> Result<(), String> {
        let backend = &self.tools.backend;
        let taken = backend.revoke(id).and_then(|()| match self.world.volume(id) {
            Some(_) => Ok(()),
            None => backend.forget(id),
        });
        let name = id.export_name();
        taken.map_err(|error| format!("the export {name} is on no record and cannot be taken away: {error}"))?;
        tracing::warn!(VOLUME_ID = %id, "an export that is on no record was taken away");
        Ok(())
    }

    /// What is published cannot be read: what is not known to be, is taken away by its name, for it may be all the same.
    /// Returns why that is not enough.
    fn revoke_unseen(&self, error: &std::io::Error) -> Vec<String> {
        let unseen = self.world.volumes().filter(|volume| !volume.published).map(|volume| volume.intent.volume);
        let failed = unseen.filter_map(|id| {
            let error = self.tools.backend.revoke(id).err()?;
            Some(format!("the export {} may be there and cannot be taken away: {error}", id.export_name()))
        });
        std::iter::once(format!("what is exported cannot be read: {error}")).chain(failed).collect()
    }
}
