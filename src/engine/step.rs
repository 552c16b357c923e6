//! Starts the steps that [`super::decide`] asks for. The result of each is an input, handled in [`super::results`].

use std::io;

use jiff::Timestamp;

use super::core::Engine;
use super::decide::unread;
use super::errands::Asked;
use super::steps::still_leads;
use super::volume::Disk;
use crate::device::evidence::Evidence;
use crate::device::facts::LinkTarget;
use crate::device::found::Found;
use crate::identity::{Serial, VolumeId};
use crate::reason::{Case, Code, StoryStep};
use crate::volume::Reason;

impl Engine {
    /// Asks the helper to retrigger udev. The result is an event of udev.
    pub(super) fn retrigger(&mut self, id: VolumeId, serial: Serial, disk: Option<Disk>) {
        if let (Some(ticket), Some(volume)) = (self.world.ticket(id), self.world.volume_mut(id)) {
            volume.retriggered = disk;
            self.steps.retrigger(serial, Asked::Mark(ticket));
        }
    }

    pub(super) fn record(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = true;
        }
        self.steps.record(ticket, evidence);
    }

    /// Asks the helper whether a process has the disk open exclusively.
    pub(super) fn try_open(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = true;
        }
        self.steps.try_open(ticket, evidence);
    }

    /// Publishes the export, and returns when, if that succeeded.
    pub(super) fn publish(&mut self, id: VolumeId, evidence: &Evidence) -> Option<Timestamp> {
        // The commit took some time, so this is the last check before clients can connect.
        let disks = &self.steps.tools.disks;
        let leads_there = LinkTarget::Device(evidence.devnum, self.world.ground.nbd_gid);
        let still = disks.still(evidence.devnum, evidence.diskseq);
        match still_leads(&still, disks.resolve(&evidence.link), |target| target == leads_there) {
            Found::Here(()) => {}
            Found::Gone => {
                self.world.distrust(id);
                return None;
            }
            Found::Unknown(why) => {
                self.world.trouble(id, unread(&format!("device {}", evidence.devnum), &why));
                return None;
            }
        }
        match self.steps.tools.backend.publish(id, &evidence.link) {
            Ok(()) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.published = true;
                    volume.proven = false;
                    volume.trouble = None;
                    // The volume was not served for a while.
                    volume.stood = None;
                }
                Some(self.steps.tools.clock.wall())
            }
            Err(error) => {
                self.world.trouble(id, folder_reason(&error));
                // The missing file may be one that was prepared.
                if self.steps.tools.backend.prepares() {
                    self.prepare_again(id);
                }
                None
            }
        }
    }

    /// Revokes the export. Returns false if that failed; then it is retried.
    pub(super) fn revoke(&mut self, id: VolumeId, reason: Option<&Reason>) -> bool {
        let (epoch, unit) = (self.next_epoch(), self.steps.tools.server_unit);
        match self.steps.tools.backend.revoke(id) {
            Ok(()) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.published = false;
                    volume.proven = false;
                    volume.epoch = epoch;
                    volume.trouble = None;
                }
                self.world.stand_unserved(id);
                // Whatever made the export go, earlier readings count no more.
                self.world.distrust(id);
                let departure = self.world.volume(id).map(|volume| &volume.departure);
                let why = match (reason, departure) {
                    (Some(reason), _) => reason.message.clone(),
                    (None, Some(departure)) if departure.leaving.is_closed() => departure.purpose(),
                    (None, Some(_)) => "its disk is another than the one on record".to_owned(),
                    (None, None) => String::new(),
                };
                self.story.note(&mut self.world, id, StoryStep::Revoked, why);
                true
            }
            Err(error) => {
                let message = format!("the export could not be taken away: {error}");
                self.world.trouble(id, Reason::about(Code::ExportStuck, unit, message));
                false
            }
        }
    }

    pub(super) fn probe(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.busy = true;
        let epoch = volume.epoch;
        self.steps.probe(ticket, epoch, evidence);
    }
}

/// Returns why nothing can be published.
pub(super) fn folder_reason(error: &io::Error) -> Reason {
    let message = format!("the export could not be made: {error}");
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Reason::of_case(Case::NameTaken, message);
    }
    Reason::new(Code::ExportFolder, message)
}
