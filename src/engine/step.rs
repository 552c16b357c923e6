//! The steps that [`super::decide`] asks for: each is begun here. What comes of it is an input, taken up in [`super::results`].

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use jiff::Timestamp;

use super::core::Engine;
use super::decide::unread;
use super::errands::{Asked, unless_died};
use super::input::Input;
use super::tools::{Died, answered};
use super::volume::Disk;
use crate::device::evidence::Evidence;
use crate::device::facts::LinkTarget;
use crate::device::found::Found;
use crate::export::probe::ProbeError;
use crate::identity::{Serial, VolumeId};
use crate::reason::{Case, Code, StoryStep};
use crate::store::Change;
use crate::volume::Reason;

impl Engine {
    /// What comes of it is an event of udev's.
    pub(super) fn retrigger(&mut self, id: VolumeId, serial: Serial, disk: Option<Disk>) {
        if let (Some(ticket), Some(volume)) = (self.world.ticket(id), self.world.volume_mut(id)) {
            volume.retriggered = disk;
            self.ask_for_retrigger(serial, Asked::Mark(ticket));
        }
    }

    pub(super) fn record(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = true;
        }
        let begun = self.tools.truth.begin(vec![Change::Map(id, evidence.clone())]);
        self.outside("step.record", answered(begun), move |written| {
            let died = |died: Died| Reason::of_case(Case::WriteBrokeOff, died.to_string());
            let result = written.map_err(died).and_then(|written| written.map_err(|error| error.reason()));
            Input::Recorded { ticket, evidence, result }
        });
    }

    /// Has the helper try, outside; it comes back as [`Input::Tried`].
    pub(super) fn try_open(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = true;
        }
        let step = self.tools.helper.exclusive(evidence.devnum, evidence.serial);
        self.outside("step.exclusive", step, move |answer| Input::Tried {
            ticket,
            evidence,
            answer: unless_died(answer),
        });
    }

    /// Lets clients in. Says when, if that was done.
    pub(super) fn publish(&mut self, id: VolumeId, evidence: &Evidence) -> Option<Timestamp> {
        // The commit took a moment: the last look before.
        let disks = &self.tools.disks;
        let leads_there = LinkTarget::Device(evidence.devnum, self.world.ground.nbd_gid);
        let still = disks.still(evidence.devnum, evidence.diskseq);
        match still_leads(&still, disks.resolve(&evidence.link), |target| target == leads_there) {
            Found::Here(()) => {}
            Found::Gone => {
                self.distrust(id);
                return None;
            }
            Found::Unknown(why) => {
                self.trouble(id, unread(&format!("device {}", evidence.devnum), &why));
                return None;
            }
        }
        match self.tools.backend.publish(id, &evidence.link) {
            Ok(()) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.published = true;
                    volume.proven = false;
                    volume.trouble = None;
                    // It was not served for a while.
                    volume.stood = None;
                }
                Some(self.tools.clock.wall())
            }
            Err(error) => {
                self.trouble(id, folder_reason(&error));
                // What was prepared may be what is missing.
                if self.tools.backend.prepares() {
                    self.prepare_again(id);
                }
                None
            }
        }
    }

    /// Takes the export away. False when that failed; it is tried again.
    pub(super) fn revoke(&mut self, id: VolumeId, reason: Option<&Reason>) -> bool {
        let (epoch, unit) = (self.next_epoch(), self.tools.server_unit);
        match self.tools.backend.revoke(id) {
            Ok(()) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.published = false;
                    volume.proven = false;
                    volume.epoch = epoch;
                    volume.trouble = None;
                }
                self.stand_unserved(id);
                // Whatever made it go, what was read before counts no more.
                self.distrust(id);
                let departure = self.world.volume(id).map(|volume| &volume.departure);
                let why = match (reason, departure) {
                    (Some(reason), _) => reason.message.clone(),
                    (None, Some(departure)) if departure.leaving.is_closed() => departure.purpose(),
                    (None, Some(_)) => "its disk is another than the one on record".to_owned(),
                    (None, None) => String::new(),
                };
                self.note(id, StoryStep::Revoked, why);
                true
            }
            Err(error) => {
                let message = format!("the export could not be taken away: {error}");
                self.trouble(id, Reason::about(Code::ExportStuck, unit, message));
                false
            }
        }
    }

    pub(super) fn probe(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.busy = true;
        let epoch = volume.epoch;
        let answer = self.tools.server.ask(id.export_name());
        let (disks, outside) = (Arc::clone(&self.tools.disks), Arc::clone(&self.tools.outside));
        let proven = evidence.clone();
        let step = async move {
            let (evidence, name) = (proven, id.export_name());
            let (mut result, goodbye) = match answer.await {
                Ok((served, goodbye)) => (Ok(served), Some(goodbye)),
                Err(error) => (Err(error), None),
            };
            let there = |target| matches!(target, LinkTarget::Device(devnum, _) if devnum == evidence.devnum);
            if result.is_ok() {
                let still = disks.still(evidence.devnum, evidence.diskseq);
                match still_leads(&still, disks.resolve(&evidence.link), there) {
                    Found::Here(()) => {}
                    Found::Gone => result = Err(ProbeError::Exchanged(name)),
                    Found::Unknown(why) => result = Err(ProbeError::Unread(name, why)),
                }
            }
            if let Some(goodbye) = goodbye {
                // The engine first: closing the connection wakes the server's threads.
                let close = async move {
                    tokio::task::yield_now().await;
                    drop(goodbye);
                };
                outside.start(close.boxed());
            }
            result
        };
        self.outside("step.probe", step, move |result| {
            let result = result.unwrap_or_else(|died| Err(ProbeError::Died(died.to_string())));
            Input::Probed { ticket, epoch, evidence, result }
        });
    }
}

/// Whether it is still the disk, and its link leads to it.
fn still_leads(still: &Found<()>, target: io::Result<LinkTarget>, leads: impl Fn(LinkTarget) -> bool) -> Found<()> {
    match (still, target) {
        (Found::Gone, _) => Found::Gone,
        (Found::Unknown(why), _) => Found::Unknown(why.clone()),
        (Found::Here(()), Err(error)) => Found::Unknown(format!("its link: {error}")),
        (Found::Here(()), Ok(target)) => {
            if leads(target) {
                Found::Here(())
            } else {
                Found::Gone
            }
        }
    }
}

/// Why nothing can be published.
pub(super) fn folder_reason(error: &io::Error) -> Reason {
    let message = format!("the export could not be made: {error}");
    if error.kind() == io::ErrorKind::AlreadyExists {
        return Reason::of_case(Case::NameTaken, message);
    }
    Reason::new(Code::ExportFolder, message)
}
