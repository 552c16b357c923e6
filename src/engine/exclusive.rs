//! Just before a disk is published: has anybody of this host got it open exclusively? The kernel knows, and the helper may ask.
//!
//! The answer is about one disk at one moment. It is used for the export that is made in the same breath, or not at all.

use super::Engine;
use super::helper::unless_died;
use super::input::{Input, Ticket};
use super::world::Disk;
use crate::device::evidence::Evidence;
use crate::helper_client::{Exclusive, HelperError};
use crate::identity::VolumeId;
use crate::reason::{Case, Code};
use crate::volume::Reason;

impl Engine {
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

    pub(super) fn tried(&mut self, ticket: Ticket, evidence: &Evidence, answer: Result<Exclusive, HelperError>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let disk = (evidence.devnum, evidence.diskseq);
        let free = matches!(answer, Ok(Exclusive::Free { diskseq }) if diskseq == evidence.diskseq);
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = false;
            volume.free = free.then_some(disk);
            // Another failure, of the folder of exports for instance, is not over with that.
            volume.trouble = volume.trouble.take().filter(|trouble| !free || trouble.disk.is_none());
        }
        if let Some(reason) = why_not(evidence, answer).filter(|_| !free) {
            self.trouble_with(id, reason, disk);
        }
        self.settle(id);
        // Whatever came of it: the next export needs another answer.
        if let Some(volume) = self.world.volume_mut(id) {
            volume.free = None;
        }
    }

    /// A failure that was about one disk is none of another's.
    pub(super) fn forget_trouble_of_another(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume(id) else { return };
        let here: Option<Disk> = self.world.table.with_serial(volume.intent.serial()).next().map(super::settle::disk);
        let of = volume.trouble.as_ref().and_then(|trouble| trouble.disk);
        if of.is_some_and(|disk| Some(disk) != here)
            && let Some(volume) = self.world.volume_mut(id)
        {
            volume.trouble = None;
        }
    }
}

/// Why the disk is not published, if it was not shown to be free.
fn why_not(evidence: &Evidence, answer: Result<Exclusive, HelperError>) -> Option<Reason> {
    let devnum = evidence.devnum;
    let unknown = |why: String| {
        let message = format!("whether this host uses the disk {devnum} could not be found out: {why}");
        Reason::new(Code::UseUnknown, message)
    };
    match answer {
        Ok(Exclusive::Free { diskseq }) if diskseq == evidence.diskseq => None,
        Ok(Exclusive::Free { .. }) => Some(unknown("another disk has its number now".to_owned())),
        Ok(Exclusive::Used(who)) => Some(Reason::of_case_about(Case::UsedUnseen, &devnum.to_string(), who)),
        Err(error @ HelperError::Silent(..)) => {
            let message = format!("whether this host uses the disk {devnum} is not known: {error}");
            Some(Reason::new(Code::HelperSilent, message))
        }
        Err(HelperError::Refused { message, code }) => Some(unknown(format!("{message} ({code})"))),
        Err(HelperError::Died(why)) => Some(unknown(why)),
    }
}
