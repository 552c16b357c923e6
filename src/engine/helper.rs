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

/// How far the helper's task is of having a mark taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmarking {
    /// It is being asked. `again`: wished for again since.
    Asking { again: bool },
    /// It has not answered.
    Unanswered,
    /// It was done; whether the mark is off is still to be seen.
    Done,
}

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

    /// Has udev take the mark off a disk that nobody wants any more. Asked again until it is off: a node that stays the NBD
    /// servers' is a door left open. Wished for again meanwhile, it is done once more, for the answer may be older than the
    /// wish.
    pub(super) fn unmark(&mut self, serial: Serial) {
        if let Some(Unmarking::Asking { again }) = self.world.unmarking.get_mut(&serial) {
            *again = true;
            return;
        }
        self.ask_to_unmark(serial, 1);
    }

    fn ask_to_unmark(&mut self, serial: Serial, attempts: u32) {
        self.world.unmarking.insert(serial, Unmarking::Asking { again: false });
        self.ask_for_retrigger(serial, Asked::Unmark(serial, attempts));
    }

    /// It is time to see whether the mark is off, or to ask a helper again that has not answered.
    pub(super) fn unmark_again(&mut self, serial: Serial, attempts: u32) {
        let is_marked = || self.world.table.with_serial(serial).any(|disk| self.marked_in_vain(disk).is_some());
        // It was done, and yet the disk may stay as it is: udevd may be away, or somebody else's rules may mark it, too.
        let may_help = || self.world.udevd_owes(serial) || attempts <= IN_VAIN;
        match self.world.unmarking.get(&serial) {
            Some(Unmarking::Unanswered) => self.ask_to_unmark(serial, attempts),
            Some(Unmarking::Done) if is_marked() && may_help() => self.ask_to_unmark(serial, attempts),
            Some(Unmarking::Done) => {
                self.world.unmarking.remove(&serial);
            }
            // Asked again meanwhile.
            Some(Unmarking::Asking { .. }) | None => {}
        }
    }

    fn unmarked(&mut self, serial: Serial, attempts: u32, answer: &Result<(), HelperError>) {
        let again = matches!(self.world.unmarking.get(&serial), Some(Unmarking::Asking { again: true }));
        let (next, wait) = match answer {
            Ok(()) | Err(HelperError::Refused { .. }) if again => return self.ask_to_unmark(serial, 1),
            Ok(()) => (Unmarking::Done, pause(attempts + PATIENCE)),
            // There is no such disk.
            Err(HelperError::Refused { .. }) => {
                self.world.unmarking.remove(&serial);
                return;
            }
            Err(_) => (Unmarking::Unanswered, pause(attempts)),
        };
        self.world.unmarking.insert(serial, next);
        self.later(wait, Input::UnmarkAgain(serial, attempts + 1));
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
        let marked = answer.is_ok();
        if let Asked::Unmark(serial, attempts) = asked {
            self.unmarked(serial, attempts, answer);
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
                let refused = volume.state == State::Refused;
                if !refused {
                    // Should it be refused later, for what udev can put right, udev is asked anew.
                    volume.retriggered = None;
                }
                let may_help = owes || attempts <= IN_VAIN && refused;
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
