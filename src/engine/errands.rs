//! The requests to attachd-helper to let udev mark a disk, or remove the mark of a disk that nobody wants any more.

use std::collections::HashMap;
use std::time::Duration;

use super::pause::pause;
use super::tools::Died;
use super::volume::Ticket;
use crate::helper_client::HelperError;
use crate::identity::Serial;

/// How often udev is asked again for a disk that does not change.
const IN_VAIN: u32 = 5;

/// The additional attempts in the pause, compared with a helper that is away: udevd gets seconds (3 at first) to do
/// the work.
const PATIENCE: u32 = 4;

/// What the helper was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To let udev mark this volume's disk.
    Mark(Ticket),
    /// To let udev un-mark the disk of a serial that is no longer claimed, with the number of attempts.
    Unmark(Serial, u32),
    /// To record the host's own disks.
    HostDisks,
}

/// The marks to remove. A node that keeps the NBD servers' group would stay accessible, so the request is repeated
/// until the mark is removed.
#[derive(Debug, Default)]
pub(super) struct Errands {
    unmarking: HashMap<Serial, Unmarking>,
}

/// How far the removal of a mark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unmarking {
    /// The helper is being asked. `again`: another request has come since.
    Asking { again: bool },
    /// The helper has not answered.
    Unanswered,
    /// The request succeeded. Whether the mark is removed is not known yet.
    Done,
}

/// What follows from an answer about a mark to remove.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unmarked {
    /// Ask again now.
    Ask(Asked),
    /// Check after this time, with this number of attempts.
    Wait(Duration, u32),
    /// Nothing.
    Over,
}

impl Errands {
    /// Asks to remove the mark of this serial's disk. Returns what to ask the helper for now. If the helper is being
    /// asked, another request follows, because the answer may be older than this call.
    pub(super) fn unmark(&mut self, serial: Serial) -> Option<Asked> {
        if let Some(Unmarking::Asking { again }) = self.unmarking.get_mut(&serial) {
            *again = true;
            return None;
        }
        Some(self.ask(serial, 1))
    }

    fn ask(&mut self, serial: Serial, attempts: u32) -> Asked {
        self.unmarking.insert(serial, Unmarking::Asking { again: false });
        Asked::Unmark(serial, attempts)
    }

    /// Handles the helper's answer.
    pub(super) fn unmarked(&mut self, serial: Serial, attempts: u32, answer: &Result<(), HelperError>) -> Unmarked {
        let again = matches!(self.unmarking.get(&serial), Some(Unmarking::Asking { again: true }));
        let (next, wait) = match answer {
            Ok(()) | Err(HelperError::Refused { .. }) if again => return Unmarked::Ask(self.ask(serial, 1)),
            Ok(()) => (Unmarking::Done, pause(attempts + PATIENCE)),
            // There is no such disk.
            Err(HelperError::Refused { .. }) => {
                self.unmarking.remove(&serial);
                return Unmarked::Over;
            }
            Err(_) => (Unmarking::Unanswered, pause(attempts)),
        };
        self.unmarking.insert(serial, next);
        Unmarked::Wait(wait, attempts + 1)
    }

    /// Handles the end of a timer: checks whether the mark is removed, or asks a helper again that has not answered.
    /// `marked`: the disk is marked and nobody wants it. `owes`: udevd owes that disk's event.
    pub(super) fn due(&mut self, serial: Serial, attempts: u32, marked: bool, owes: bool) -> Option<Asked> {
        match self.unmarking.get(&serial)? {
            Unmarking::Unanswered => Some(self.ask(serial, attempts)),
            // The request succeeded, and yet the disk may stay as it is: udevd may be away, or rules of another
            // program may mark it, too.
            Unmarking::Done if marked && (owes || attempts <= IN_VAIN) => Some(self.ask(serial, attempts)),
            Unmarking::Done => {
                self.unmarking.remove(&serial);
                None
            }
            // Another request has come since.
            Unmarking::Asking { .. } => None,
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.unmarking.is_empty()
    }
}

/// Returns when a disk that is to be marked is asked for again after this number of attempts. `answered`: udev was
/// asked to handle it. `refused`: the disk is refused as it is. `owes`: udevd owes its event.
pub(super) fn mark_again(answered: bool, attempts: u32, refused: bool, owes: bool) -> Option<Duration> {
    if !answered {
        return Some(pause(attempts));
    }
    // The request succeeded, and yet the disk may stay as it is: udevd may have older rules than the package's, or be
    // away.
    let may_help = owes || attempts <= IN_VAIN && refused;
    may_help.then(|| pause(attempts + PATIENCE))
}

/// Converts the panic of a task to an error.
pub(super) fn unless_died<T>(answer: Result<Result<T, HelperError>, Died>) -> Result<T, HelperError> {
    answer.unwrap_or_else(|died| Err(HelperError::Died(died.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial() -> Serial {
        "0123456789abcdef0123".parse().unwrap()
    }

    fn silent() -> Result<(), HelperError> {
        Err(HelperError::Died("x".to_owned()))
    }

    #[test]
    fn the_removal_of_a_mark_is_retried_a_limited_number_of_times() {
        let mut errands = Errands::default();
        let mut asked = errands.unmark(serial());
        for attempts in 1..=IN_VAIN {
            assert_eq!(asked, Some(Asked::Unmark(serial(), attempts)));
            let wait = Unmarked::Wait(pause(attempts + PATIENCE), attempts + 1);
            assert_eq!(errands.unmarked(serial(), attempts, &Ok(())), wait);
            asked = errands.due(serial(), attempts + 1, true, false);
        }
        assert_eq!(asked, None, "somebody else's rules mark it, too");
        assert!(errands.is_empty());
        // For comparison: udevd has not handled it yet; the mark is removed.
        errands.unmark(serial());
        errands.unmarked(serial(), IN_VAIN + 1, &Ok(()));
        assert!(errands.due(serial(), IN_VAIN + 2, true, true).is_some());
        errands.unmarked(serial(), 1, &Ok(()));
        assert_eq!(errands.due(serial(), 2, false, false), None);
        assert!(errands.is_empty());
    }

    #[test]
    fn a_helper_that_does_not_answer_is_asked_again_for_ever() {
        let mut errands = Errands::default();
        errands.unmark(serial());
        for attempts in 1..50 {
            assert_eq!(errands.unmarked(serial(), attempts, &silent()), Unmarked::Wait(pause(attempts), attempts + 1));
            assert!(errands.due(serial(), attempts + 1, false, false).is_some());
        }
        let gone = Err(HelperError::Refused { code: crate::reason::HelperCode::Other, message: String::new() });
        assert_eq!(errands.unmarked(serial(), 50, &gone), Unmarked::Over);
        assert!(errands.is_empty(), "there is no such disk");
    }

    #[test]
    fn a_request_while_the_helper_is_asked_is_made_after_its_answer() {
        let mut errands = Errands::default();
        assert!(errands.unmark(serial()).is_some());
        assert_eq!(errands.unmark(serial()), None, "it is being asked");
        assert_eq!(errands.unmarked(serial(), 1, &Ok(())), Unmarked::Ask(Asked::Unmark(serial(), 1)));
        assert!(matches!(errands.unmarked(serial(), 1, &Ok(())), Unmarked::Wait(..)), "the control");
    }

    #[test]
    fn a_disk_is_marked_again_only_if_that_can_help() {
        assert_eq!(mark_again(false, 9, false, false), Some(pause(9)), "a helper that is away");
        assert_eq!(mark_again(true, 1, true, false), Some(pause(1 + PATIENCE)), "it stays refused");
        assert_eq!(mark_again(true, IN_VAIN + 1, true, false), None);
        assert_eq!(mark_again(true, 1, false, false), None, "it did help");
        assert!(mark_again(true, 99, false, true).is_some(), "udevd is away");
    }
}
