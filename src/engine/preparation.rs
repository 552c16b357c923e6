//! Doing beforehand, outside, what an export needs before there is a disk, so that little is left to do when it comes: how far
//! that is for one volume.

use std::io;
use std::time::Instant;

use super::pause::pause;

/// How far an export is prepared.
#[derive(Debug, Default)]
pub(super) enum Preparation {
    /// Not begun.
    #[default]
    No,
    /// It is being done; `again`: something happened to it since that began. `failed`: why it could not be, before.
    UnderWay { again: bool, failed: Option<String>, attempts: u32 },
    /// It could not be, and is tried again.
    Failed { why: String, kind: io::ErrorKind, attempts: u32, again_at: Instant },
    /// It is.
    Done,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing: it is done.
    Done,
    /// Nothing now.
    Wait,
    /// It is to be begun.
    Begin,
}

/// What has come of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// It is done, and begun once more, for something happened to it meanwhile.
    pub(super) again: bool,
    /// Why it could not be, if that is new.
    pub(super) told: Option<String>,
}

impl Preparation {
    /// It is wanted, when the volume is decided on at `judged`. `closed`: the volume is on its way out; `needed`: there is
    /// anything to do.
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

    /// Somebody has touched what was prepared, or a caller wants it tried now.
    pub(super) fn touched(&mut self, judged: Instant, closed: bool, needed: bool) -> Wish {
        match self {
            _ if closed => return Wish::Wait,
            Self::UnderWay { again, .. } => *again = true,
            Self::Failed { again_at, .. } => *again_at = judged,
            // It is as it was until it is known to be otherwise.
            Self::Done => return Wish::Begin,
            Self::No => {}
        }
        self.wish(judged, closed, needed)
    }

    /// It was done, or could not be.
    pub(super) fn ended(&mut self, result: &io::Result<bool>, judged: Instant, now: Instant) -> Outcome {
        let (again, failed, attempts) = match std::mem::replace(self, Self::Done) {
            Self::UnderWay { again, failed, attempts } => (again, failed, attempts),
            _ => (false, None, 0),
        };
        let Err(error) = result else { return Outcome { again, told: None } };
        let (why, attempts) = (error.to_string(), attempts + 1);
        // Said once: it is tried again and again.
        let told = Some(why.clone()).filter(|why| failed.as_ref() != Some(why));
        let again_at = if again { judged } else { now + pause(attempts) };
        *self = Self::Failed { why, kind: error.kind(), attempts, again_at };
        Outcome { again: false, told }
    }

    /// What could not be done may be tried again at once.
    pub(super) fn forgive(&mut self, judged: Instant) {
        if let Self::Failed { again_at, .. } = self {
            *again_at = judged;
        }
    }

    /// When it is to be tried again.
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
    fn it_is_done_once_and_tried_again_later_and_later_when_it_fails() {
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
    fn what_is_touched_is_done_again_and_what_leaves_is_not() {
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
