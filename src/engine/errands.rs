//! What attachd-helper is asked to have udev do: to mark a disk, and to take the mark off one that nobody wants any more.

use std::collections::HashMap;
use std::time::Duration;

use super::pause::pause;
use super::tools::Died;
use super::volume::Ticket;
use crate::helper_client::HelperError;
use crate::identity::Serial;

/// How often udev is asked to look at a disk again that stays as it was.
const IN_VAIN: u32 = 5;

/// How much longer than for a helper that is away: udevd gets seconds (3 at first) to do it.
const PATIENCE: u32 = 4;

/// What the helper was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To have udev mark this volume's disk.
    Mark(Ticket),
    /// To have udev un-mark the disk of a serial that is no longer claimed, for this many times now.
    Unmark(Serial, u32),
    /// To write down the host's own disks.
    HostDisks,
}

/// The marks that are to be taken off. A node that stays the NBD servers' is a door left open: it is asked for again until
/// the mark is off.
#[derive(Debug, Default)]
pub(super) struct Errands {
    unmarking: HashMap<Serial, Unmarking>,
}

/// How far the helper is of having a mark taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unmarking {
    /// It is being asked. `again`: wished for again since.
    Asking { again: bool },
    /// It has not answered.
    Unanswered,
    /// It was done; whether the mark is off is still to be seen.
    Done,
}

/// What follows from an answer about a mark that is to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unmarked {
    /// Ask again, now.
    Ask(Asked),
    /// See how it is in a while; for this many times then.
    Wait(Duration, u32),
    /// Nothing.
    Over,
}

impl Errands {
    /// The mark of this serial's disk is to go. Says what the helper is to be asked for now. Wished for again while it is asked,
    /// it is done once more, for the answer may be older than the wish.
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

    /// The helper has answered.
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

    /// It is time to see whether the mark is off, or to ask a helper again that has not answered. `marked`: it is on, and nobody
    /// wants it; `owes`: udevd owes that disk's event.
    pub(super) fn due(&mut self, serial: Serial, attempts: u32, marked: bool, owes: bool) -> Option<Asked> {
        match self.unmarking.get(&serial)? {
            Unmarking::Unanswered => Some(self.ask(serial, attempts)),
            // It was done, and yet the disk may stay as it is: udevd may be away, or somebody else's rules may mark it, too.
            Unmarking::Done if marked && (owes || attempts <= IN_VAIN) => Some(self.ask(serial, attempts)),
            Unmarking::Done => {
                self.unmarking.remove(&serial);
                None
            }
            // Asked again meanwhile.
            Unmarking::Asking { .. } => None,
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.unmarking.is_empty()
    }
}

/// After the answer about a disk that is to be marked, for so many times now: when it is asked for again. `answered`: udev was
/// asked to look at it; `refused`: the disk is refused as it is; `owes`: udevd owes its event.
pub(super) fn mark_again(answered: bool, attempts: u32, refused: bool, owes: bool) -> Option<Duration> {
    if !answered {
        return Some(pause(attempts));
    }
    // It was done, and yet the disk may stay as it is: udevd may have had rules from before the package's, or be away.
    let may_help = owes || attempts <= IN_VAIN && refused;
    may_help.then(|| pause(attempts + PATIENCE))
}

/// A task that panicked was no answer.
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
    fn a_mark_is_asked_to_go_until_it_is_off_and_not_for_ever_if_it_stays() {
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
        // The controls: udevd has not looked at it yet; it is off.
        errands.unmark(serial());
        errands.unmarked(serial(), IN_VAIN + 1, &Ok(()));
        assert!(errands.due(serial(), IN_VAIN + 2, true, true).is_some());
        errands.unmarked(serial(), 1, &Ok(()));
        assert_eq!(errands.due(serial(), 2, false, false), None);
        assert!(errands.is_empty());
    }

    #[test]
    fn a_helper_that_does_not_answer_is_asked_again_without_end() {
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
    fn a_wish_that_comes_while_the_helper_is_asked_is_done_after_that() {
        let mut errands = Errands::default();
        assert!(errands.unmark(serial()).is_some());
        assert_eq!(errands.unmark(serial()), None, "it is being asked");
        assert_eq!(errands.unmarked(serial(), 1, &Ok(())), Unmarked::Ask(Asked::Unmark(serial(), 1)));
        assert!(matches!(errands.unmarked(serial(), 1, &Ok(())), Unmarked::Wait(..)), "the control");
    }

    #[test]
    fn a_disk_is_marked_again_only_where_that_can_help() {
        assert_eq!(mark_again(false, 9, false, false), Some(pause(9)), "a helper that is away");
        assert_eq!(mark_again(true, 1, true, false), Some(pause(1 + PATIENCE)), "it stays refused");
        assert_eq!(mark_again(true, IN_VAIN + 1, true, false), None);
        assert_eq!(mark_again(true, 1, false, false), None, "it did help");
        assert!(mark_again(true, 99, false, true).is_some(), "udevd is away");
    }
}
