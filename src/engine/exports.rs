//! Compares what is published with what should be. The folders are listed outside, and watched. Differences are
//! repaired.
//!
//! A listing is of a past moment. Where it differs from what is known, that one name is checked again before anything
//! is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::core::Engine;
use super::waiting::Round;
use crate::export::backend::{Contents, Which};
use crate::folder::{Names, is_away};
use crate::folder_watch::FolderChanges;
use crate::identity::{Serial, VolumeId};
use crate::reason::{Code, StoryStep};

impl Engine {
    /// Continues after the folders were listed, or after that failed.
    pub(super) fn exports_listed(&mut self, contents: io::Result<Contents>, round: Round) {
        self.world.exported.upkeep.ended();
        let changed = self.adopt(contents);
        self.settle_some(changed, Some(round));
        if self.world.exported.upkeep.again() {
            self.list_exports(None);
        }
    }

    /// Compares the exports at the start, before anything else is decided.
    pub(super) async fn adopt_exports(&mut self) {
        let known = self.world.volume_ids().collect();
        let backend = self.steps.tools.backend.clone();
        let listed = self.steps.work(move || backend.list(&known)).await;
        let _ = self.adopt(listed.flatten());
    }

    /// Compares the folders with what is known. Unknown exports are revoked, and known ones count as published. A
    /// revocation that fails is retried by itself. Returns the volumes for which something has changed.
    fn adopt(&mut self, contents: io::Result<Contents>) -> Vec<VolumeId> {
        let (changed, failed, stuck, more) = match contents {
            Ok(contents) => {
                self.world.exported.found_foreign(contents.foreign);
                let mut changed = self.compare_all(&contents.links);
                // Some may have become known since the listing, and may be sealed by now.
                changed.extend(contents.strays.iter().filter(|id| self.compare_anew(**id)));
                let mut stuck: Names = contents.strays.iter().filter_map(|id| self.take_unknown(*id).err()).collect();
                stuck.extend(self.take_unpublished(contents.links.into_keys()));
                (changed, contents.unusable, stuck, contents.more_strays)
            }
            // Nothing is published, as anybody can see.
            Err(error) if is_away(&error) => {
                (self.compare_all(&BTreeMap::new()), Some(error.to_string()), Names::default(), false)
            }
            Err(error) => {
                let why = format!("what is exported cannot be read: {error}");
                (Vec::new(), Some(why.clone()), self.revoke_unseen(why), false)
            }
        };
        let mut changed = changed;
        let now = self.steps.tools.clock.now();
        if self.world.exported.learn(failed, stuck, more, now) {
            changed.extend(self.forgive());
        }
        changed
    }

    /// Ends the waits for a retry, because the folder is in order.
    fn forgive(&mut self) -> Vec<VolumeId> {
        let mut forgiven = Vec::new();
        for volume in self.world.volumes_mut() {
            if volume.trouble.take_if(|trouble| trouble.reason.code == Code::ExportFolder).is_some() {
                forgiven.push(volume.intent.volume);
            }
        }
        forgiven
    }

    /// A volume that neither was nor is exported cannot have changed.
    fn compare_all(&mut self, links: &BTreeMap<VolumeId, String>) -> Vec<VolumeId> {
        let published = self.world.volumes().filter(|volume| volume.published).map(|volume| volume.intent.volume);
        let ids: BTreeSet<VolumeId> = published.chain(links.keys().copied()).collect();
        ids.into_iter().filter(|id| self.compare(*id, links.get(id).map(String::as_str))).collect()
    }

    /// Checks one export that is known by now.
    fn compare_anew(&mut self, id: VolumeId) -> bool {
        let known = self.world.volume(id).is_some();
        let seen = self.steps.tools.backend.look(id).ok().filter(|_| known);
        seen.is_some_and(|link| self.compare(id, link.as_deref()))
    }

    /// Compares one volume with what its export was seen to lead to. Returns whether something has changed.
    fn compare(&mut self, id: VolumeId, seen: Option<&str>) -> bool {
        let published = |engine: &Self, link: Option<&str>| {
            engine.world.volume(id).is_some_and(|volume| {
                let recorded = volume.mapping.as_ref().map(|mapping| &*mapping.link);
                // The export of a sealed volume counts wherever it leads, but only once the seal is durable.
                link.is_some() && (volume.departure.leaving.is_closed() || link == recorded)
            })
        };
        let believed = self.world.volume(id).is_some_and(|volume| volume.published);
        let mut is = published(self, seen);
        if is != believed {
            // The export may have been published or revoked since the listing.
            is = match self.steps.tools.backend.look(id) {
                Ok(link) => published(self, link.as_deref()),
                Err(error) if is_away(&error) => false,
                // The state is unknown, so it stays as it was.
                Err(_) => believed,
            };
        }
        let sealed = self.world.volume(id).is_some_and(|volume| volume.departure.leaving.is_on_record());
        if is && sealed {
            self.revoke(id, None);
        }
        if is == believed {
            return false;
        }
        let epoch = self.next_epoch();
        let Some(volume) = self.world.volume_mut(id) else { return false };
        volume.published = is && !sealed;
        volume.proven = false;
        volume.epoch = epoch;
        if !is {
            // The export may still be in an earlier folder of this name.
            let _ = self.steps.tools.backend.revoke(id);
            self.world.stand_unserved(id);
            self.story.note(
                &mut self.world,
                id,
                StoryStep::Vanished,
                "somebody else has removed or changed the export".to_owned(),
            );
        }
        true
    }

    /// Revokes the listed exports of volumes that must not be published, if they still exist. Returns what could not
    /// be revoked.
    fn take_unpublished(&mut self, listed: impl Iterator<Item = VolumeId>) -> Names {
        let unpublished = |id: &VolumeId| {
            self.world.volume(*id).is_none_or(|volume| !volume.published && !volume.departure.leaving.is_closed())
        };
        listed.filter(unpublished).filter_map(|id| self.take_unknown(id).err()).collect()
    }

    fn take_unknown(&self, id: VolumeId) -> Result<(), String> {
        let backend = &self.steps.tools.backend;
        let known = match self.world.volume(id) {
            // The volume became a known one in between.
            Some(volume) if volume.published || volume.departure.leaving.is_closed() => return Ok(()),
            known => known.is_some(),
        };
        let taken = if known { backend.revoke(id) } else { backend.forget(id) };
        let name = id.export_name();
        taken.map_err(|error| format!("the export {name} is on no record and cannot be taken away: {error}"))?;
        tracing::warn!(VOLUME_ID = %id, "an export that is on no record was taken away");
        Ok(())
    }

    /// Revokes by name, when what is published cannot be read, all exports that are not known to be published,
    /// because they may exist all the same. Returns why that is not enough.
    fn revoke_unseen(&self, why: String) -> Names {
        let unseen = self.world.volumes().filter(|volume| !volume.published).map(|volume| volume.intent.volume);
        let failed = unseen.filter_map(|id| {
            let error = self.steps.tools.backend.revoke(id).err()?;
            Some(format!("the export {} may be there and cannot be taken away: {error}", id.export_name()))
        });
        std::iter::once(why).chain(failed).collect()
    }

    /// Handles changes in the folders. What attachd has changed itself agrees with what is known, and costs one
    /// check.
    pub(super) fn folders_changed(&mut self, changes: FolderChanges) {
        for which in changes.whole {
            match which {
                Which::Claims => self.restore_claims(None),
                Which::Links | Which::Sections => self.list_exports(None),
            }
        }
        let names = changes.went.iter().map(|name| (name, true)).chain(changes.came.iter().map(|name| (name, false)));
        for ((which, name), went) in names {
            let name = name.to_str().unwrap_or_default();
            match which {
                Which::Links => self.link_changed(VolumeId::from_export_name(name), went),
                Which::Sections => {
                    let name = name.strip_suffix(".conf");
                    self.section_changed(name.and_then(VolumeId::from_export_name), name.is_some(), went);
                }
                Which::Claims => self.claim_changed(name.parse().ok(), went),
            }
        }
    }

    fn link_changed(&mut self, id: Option<VolumeId>, went: bool) {
        let Some(id) = id.filter(|id| self.world.volume(*id).is_some()) else {
            // This is a stray or a foreign file, or attachd itself has removed it.
            if id.is_none() || !went {
                self.world.exported.upkeep.strangers(self.steps.tools.clock.now());
            }
            return;
        };
        match self.steps.tools.backend.look(id) {
            Ok(link) => {
                if self.compare(id, link.as_deref()) {
                    self.settle(id);
                }
                let published = self
                    .world
                    .volume(id)
                    .is_some_and(|volume| volume.published || volume.departure.leaving.is_closed());
                if link.is_some() && !published && self.take_unknown(id).is_err() {
                    self.list_exports(None);
                }
            }
            // The folder itself is the problem, which is reported separately.
            Err(_) => self.list_exports(None),
        }
    }

    fn section_changed(&mut self, id: Option<VolumeId>, is_read: bool, went: bool) {
        match id.filter(|id| self.world.volume(*id).is_some()) {
            Some(id) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.departure.section_came |= !went && volume.departure.leaving.is_closed();
                }
                self.prepare_again(id);
            }
            None if is_read && !(id.is_some() && went) => {
                self.world.exported.upkeep.strangers(self.steps.tools.clock.now());
            }
            None => {}
        }
    }

    fn claim_changed(&mut self, serial: Option<Serial>, went: bool) {
        let of = serial.and_then(|serial| self.world.wanted(serial));
        let leaves = of.and_then(|id| self.world.volume_mut(id)).filter(|volume| volume.departure.leaving.may_go());
        let wanted = of.is_some() && leaves.is_none();
        if let Some(volume) = leaves {
            volume.departure.claim_unsure |= went;
        }
        if let Some(id) = of.filter(|_| !went) {
            self.world.admissions.claim_came(id);
        }
        match serial {
            Some(_) if went == wanted => self.restore_claims(None),
            Some(_) => {}
            // This is a foreign file, which is reported.
            None => self.world.claimed.upkeep.strangers(self.steps.tools.clock.now()),
        }
    }
}
