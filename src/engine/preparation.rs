//! The preparation of one volume's export: what can be done outside before the disk is present, so that little is
//! left when it comes.

use std::io;
use std::time::Instant;

use super::pause::pause;

/// How far an export is prepared.
#[derive(Debug, Default)]
pub(super) enum Preparation {
    /// Not started.
    #[default]
    No,
    /// Running. `again`: something happened to it since the start. `failed`: why the attempt before failed.
    UnderWay { again: bool, failed: Option<String>, attempts: u32 },
    /// Failed. It is retried.
    Failed { why: String, kind: io::ErrorKind, attempts: u32, again_at: Instant },
    /// Done.
    Done,
}

/// What to do about the preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing, because it is done.
    Done,
    /// Nothing now.
    Wait,
    /// Start it.
    Begin,
}

/// The result of a preparation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Whether it must be started once more, because something happened to it meanwhile.
    pub(super) again: bool,
    /// Why it failed, if that is new.
    pub(super) told: Option<String>,
}

impl Preparation {
    /// Asks for the preparation when the volume is decided on at `judged`. `closed`: the volume is being withdrawn.
    /// `needed`: there is anything to do.
    pub(super) fn wish(&mut self, judged: Instant, closed: bool, needed: bool) -> Wish {
        let (failed, attempts) = match self {
            Self::Done => return Wish::Done,
            Self::UnderWay { .. } => return Wish::Wait,
            Self::No | Self::Failed { .. } if closed => return Wish::Wait,
            Self::Failed { again_at, .. } if *again_at > judged => return Wish::Wait,
            Self::Failed { why, attempts, .. } => (Some(why.clone()), *attempts),
            Self::No => (None, 0),
        };
        if needed {
            *self = Self::UnderWay { again: false, failed, attempts };
            return Wish::Begin;
        }
        *self = Self::Done;
        Wish::Done
    }

    /// Handles that another program has touched the prepared files, or that a caller wants a retry now.
    pub(super) fn touched(&mut self, judged: Instant, closed: bool, needed: bool) -> Wish {
        match self {
            _ if closed => return Wish::Wait,
            Self::UnderWay { again, .. } => *again = true,
            Self::Failed { again_at, .. } => *again_at = judged,
            // The preparation counts as done until the opposite is known.
            Self::Done => return Wish::Begin,
            Self::No => {}
        }
        self.wish(judged, closed, needed)
    }

    /// Records that the preparation succeeded or failed.
    pub(super) fn ended(&mut self, result: &io::Result<bool>, judged: Instant, now: Instant) -> Outcome {
        let (again, failed, attempts) = match std::mem::replace(self, Self::Done) {
            Self::UnderWay { again, failed, attempts } => (again, failed, attempts),
            _ => (false, None, 0),
        };
        let Err(error) = result else { return Outcome { again, told: None } };
        let (why, attempts) = (error.to_string(), attempts + 1);
        // Reported once, although it is retried again and again.
        let told = Some(why.clone()).filter(|why| failed.as_ref() != Some(why));
        let again_at = if again { judged } else { now + pause(attempts) };
        *self = Self::Failed { why, kind: error.kind(), attempts, again_at };
        Outcome { again: false, told }
    }

    /// Allows a retry at once.
    pub(super) fn forgive(&mut self, judged: Instant) {
        if let Self::Failed { again_at, .. } = self {
            *again_at = judged;
        }
    }

    /// Returns when it is retried.
    pub(super) fn wake(&self) -> Option<Instant> {
        match self {
            Self::Failed { again_at, .. } => Some(*again_at),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preparation_is_done_once_and_retried_with_back_off() {
        let (mut preparation, now) = (Preparation::default(), Instant::now());
        assert_eq!(preparation.wish(now, false, true), Wish::Begin);
        assert_eq!(preparation.wish(now, false, true), Wish::Wait, "it is under way");
        let full = || Err(io::Error::from(io::ErrorKind::StorageFull));
        let first = preparation.ended(&full(), now, now);
        assert!(first.told.is_some() && preparation.wake() == Some(now + pause(1)));
        assert_eq!(preparation.wish(now, false, true), Wish::Wait);
        let later = now + pause(1);
        assert_eq!(preparation.wish(later, false, true), Wish::Begin);
        let second = preparation.ended(&full(), later, later);
        assert_eq!((second.told, preparation.wake()), (None, Some(later + pause(2))), "said once");
        preparation.forgive(later);
        assert_eq!(preparation.wish(later, false, true), Wish::Begin);
        assert_eq!(preparation.ended(&Ok(true), later, later), Outcome { again: false, told: None });
        assert_eq!((preparation.wish(later, false, true), preparation.wake()), (Wish::Done, None));
    }

    #[test]
    fn touched_files_are_prepared_again_and_those_of_a_leaving_volume_are_not() {
        let (mut preparation, now) = (Preparation::default(), Instant::now());
        assert_eq!(preparation.touched(now, true, true), Wish::Wait, "it is on its way out");
        assert_eq!(preparation.touched(now, false, true), Wish::Begin);
        assert_eq!(preparation.touched(now, false, true), Wish::Wait);
        assert!(preparation.ended(&Ok(false), now, now).again, "touched while it was under way");
        assert_eq!(preparation.touched(now, false, true), Wish::Begin);
        assert!(!preparation.ended(&Ok(false), now, now).again, "the control");
        assert_eq!(Preparation::default().wish(now, false, false), Wish::Done, "there is nothing to do");
    }
}
