//! Asking attachd-helper for what takes privilege, and what its answer means.

use super::Engine;
use super::input::{Asked, Input};
use super::outside::Died;
use super::settle::pause;
use crate::device::table::Device;
use crate::helper_client::HelperError;
use crate::identity::Serial;
use crate::volume::State;

/// How often udev is asked to look at a disk again that stays as it was.
const IN_VAIN: u32 = 5;

/// How much longer than for a helper that is away: udevd gets seconds (3 at first) to do it.
const PATIENCE: u32 = 4;

impl Engine {
    /// Has udev look at the disk of this serial again, outside.
    pub(super) fn ask_for_retrigger(&self, serial: Serial, asked: Asked) {
        let step = self.tools.helper.retrigger(serial);
        self.outside("step.retrigger", step, move |answer| Input::Helper { asked, answer: unless_died(answer) });
    }

    /// The serial of a disk that is marked although nobody wants it.
    pub(super) fn marked_in_vain(&self, disk: &Device) -> Option<Serial> {
        let marked = disk.facts.group() == Some(self.world.ground.nbd_gid);
        disk.facts.serial().filter(|serial| marked && self.wanted(*serial).is_none())
    }

    /// Has udev take the mark off a disk that nobody wants any more. Asked again until the helper answers: a node that
    /// stays the NBD servers' is a door left open. Wished for again meanwhile, it is done once more, for the answer may be
    /// older than the wish.
    pub(super) fn unmark(&mut self, serial: Serial) {
        if let Some(again) = self.world.unmarking.get_mut(&serial) {
            *again = true;
            return;
        }
        self.world.unmarking.insert(serial, false);
        self.ask_for_retrigger(serial, Asked::Unmark(serial, 1));
    }

    /// The helper has not answered the last time.
    pub(super) fn unmark_again(&mut self, serial: Serial, attempts: u32) {
        if let Some(again) = self.world.unmarking.get_mut(&serial) {
            // Whatever was wished for meanwhile is older than this.
            *again = false;
            self.ask_for_retrigger(serial, Asked::Unmark(serial, attempts));
        }
    }

    /// Has the disks this host lives on written down, outside. Until then, what is mounted or swapped to is refused anyway.
    pub(super) fn ask_for_host_disks(&self) {
        self.outside("step.host-disks", self.tools.helper.host_disks(), |answer| Input::Helper {
            asked: Asked::HostDisks,
            answer: unless_died(answer),
        });
    }

    pub(super) fn helper_answered(&mut self, asked: Asked, answer: &Result<(), HelperError>) {
        if let Err(error) = &answer {
            tracing::warn!(?asked, "{error}");
        }
        let (marked, answered) = (answer.is_ok(), matches!(answer, Ok(()) | Err(HelperError::Refused { .. })));
        if let Asked::Unmark(serial, attempts) = asked {
            if !answered {
                self.later(pause(attempts), Input::UnmarkAgain(serial, attempts + 1));
            } else if self.world.unmarking.remove(&serial) == Some(true) {
                self.unmark(serial);
            }
        }
        let Asked::Mark(ticket) = asked else { return };
        let owes = self.world.udevd_owes(ticket.volume.serial());
        let now = self.tools.clock.now();
        if self.world.holds(ticket)
            && let Some(volume) = self.world.volume_mut(ticket.volume)
        {
            let attempts = volume.helper_again.map_or(0, |(_, attempts)| attempts) + 1;
            let wait = if marked {
                // It was done, and yet the disk may stay as it is: udevd may have had rules from before the package's, or
                // be away.
                let may_help = owes || attempts <= IN_VAIN && volume.state == State::Refused;
                may_help.then(|| pause(attempts + PATIENCE))
            } else {
                Some(pause(attempts))
            };
            volume.helper_again = wait.map(|wait| (now + wait, attempts));
            self.rest(ticket.volume);
        }
    }
}

/// A task that panicked was no answer.
pub(super) fn unless_died<T>(answer: Result<Result<T, HelperError>, Died>) -> Result<T, HelperError> {
    answer.unwrap_or_else(|died| Err(HelperError::Died(died.to_string())))
}
