//! The readings of disks: which are running, the reasons that are still to be handled, and what could not be read.
//!
//! Each disk has one reading at a time. An event meanwhile makes another reading follow. The reasons of earlier
//! readings are handled with the first one that succeeds.

use std::collections::HashMap;
use std::time::Instant;

use super::again::{Again, Reasons};
use crate::device::DevNum;
use crate::device::facts::Facts;
use crate::device::found::Found;
use crate::device::table::{Heard, Reading};

/// All readings.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The number of the last reading.
    last: Reading,
    under_way: HashMap<DevNum, Look>,
    /// Disks that could not be read.
    again: Again,
}

/// A disk that is being read.
#[derive(Debug, Default)]
struct Look {
    reading: Reading,
    reasons: Reasons,
    /// What has happened to the disk meanwhile, because of which it is read again.
    more: Reasons,
}

/// What follows when a reading has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// The events of the disk, if they say something about it.
    pub(super) heard: Heard,
    /// Whether volumes are concerned although no serial shows it.
    pub(super) turned: bool,
    /// The reasons for another reading, if one must begin.
    pub(super) more: Option<Reasons>,
}

impl Looks {
    /// Returns the number of a reading that begins now.
    pub(super) fn next(&mut self) -> Reading {
        self.last += 1;
        self.last
    }

    /// Returns the number of the last reading that was started.
    pub(super) fn last(&self) -> Reading {
        self.last
    }

    /// Asks for a reading of the disk. Returns the reading that begins now. `None`: the disk is being read, and
    /// another reading follows.
    pub(super) fn wish(&mut self, devnum: DevNum, heard: Heard) -> Option<Reading> {
        if let Some(look) = self.under_way.get_mut(&devnum) {
            look.more.extend(&[heard]);
            return None;
        }
        Some(self.begin(devnum, Reasons::of(heard)))
    }

    /// Starts a reading for these reasons.
    pub(super) fn begin(&mut self, devnum: DevNum, reasons: Reasons) -> Reading {
        let reading = self.next();
        self.under_way.insert(devnum, Look { reading, reasons, more: Reasons::default() });
        reading
    }

    /// Returns whether a later reading of the disk than this one is running.
    pub(super) fn comes(&self, devnum: DevNum, after: Reading) -> bool {
        self.under_way.get(&devnum).is_some_and(|look| look.reading > after)
    }

    /// Handles the end of a reading.
    pub(super) fn ended(&mut self, devnum: DevNum, found: &Found<Facts>, now: Instant) -> Ended {
        let Look { reasons, more, .. } = self.under_way.remove(&devnum).unwrap_or_default();
        let mut all = Reasons::default();
        all.extend(self.again.heard(devnum));
        all.extend(reasons.as_slice());
        let turned = self.learn(devnum, found, reasons.as_slice(), now);
        let more = Some(more).filter(|more| !more.as_slice().is_empty());
        Ended { heard: Heard::strongest(all.as_slice(), found), turned, more }
    }

    /// Records whether a disk could be read. Returns true if volumes are concerned although no serial shows it.
    pub(super) fn learn(&mut self, devnum: DevNum, found: &Found<Facts>, heard: &[Heard], now: Instant) -> bool {
        let Some(why) = found.unread() else {
            let over = self.again.over(devnum);
            if over {
                tracing::info!(%devnum, "the disk could be read again");
            }
            return over;
        };
        if self.again.failed(devnum, heard, now) {
            tracing::warn!(%devnum, "a disk could not be read; what is known of it holds, and it is read again by itself: {why}");
        }
        true
    }

    /// Returns whether the last reading of the disk failed.
    pub(super) fn is_unread(&self, devnum: DevNum) -> bool {
        self.again.holds(devnum)
    }

    /// Returns when a disk that could not be read is read again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.again.wake()
    }

    /// Returns the disks whose retry is due. Each is returned once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<DevNum> {
        self.again.due(now)
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::event::Origin;
    use crate::device::facts::sample::{DEVNUM, device};
    use jiff::Timestamp;

    fn udev() -> Heard {
        Heard::Event(Origin::Udev, Some(device().facts.diskseq), Timestamp::UNIX_EPOCH)
    }

    fn here() -> Found<Facts> {
        Found::Here(device().facts)
    }

    #[test]
    fn a_disk_has_one_reading_at_a_time_and_one_more_for_all_events_meanwhile() {
        let (mut looks, now) = (Looks::default(), Instant::now());
        let first = looks.wish(DEVNUM, Heard::Asked).unwrap();
        assert!(looks.wish(DEVNUM, udev()).is_none() && looks.wish(DEVNUM, Heard::Asked).is_none());
        assert!(looks.comes(DEVNUM, first - 1) && !looks.comes(DEVNUM, first));
        let ended = looks.ended(DEVNUM, &here(), now);
        assert_eq!(ended.heard, Heard::Asked, "what came later is not of this reading");
        let more = ended.more.expect("one more");
        assert_eq!(more.as_slice(), [udev(), Heard::Asked]);
        assert!(looks.begin(DEVNUM, more) > first);
        let ended = looks.ended(DEVNUM, &here(), now);
        assert_eq!((ended.heard, ended.more.is_none()), (udev(), true), "the control");
        assert!(looks.is_idle());
    }

    /// Invariant 13.
    #[test]
    fn the_reasons_of_failed_readings_are_handled_with_the_first_successful_one() {
        let (mut looks, now) = (Looks::default(), Instant::now());
        looks.wish(DEVNUM, udev());
        let failed = looks.ended(DEVNUM, &Found::Unknown("no memory".to_owned()), now);
        assert!(failed.turned && looks.is_unread(DEVNUM));
        let at = looks.wake().expect("it is read again by itself");
        assert_eq!(looks.due(at), [DEVNUM]);
        looks.wish(DEVNUM, Heard::Asked);
        let ended = looks.ended(DEVNUM, &here(), at);
        assert_eq!((ended.heard, ended.turned), (udev(), true));
        assert!(!looks.is_unread(DEVNUM) && looks.wake().is_none());
        looks.wish(DEVNUM, Heard::Asked);
        let ended = looks.ended(DEVNUM, &here(), at);
        assert_eq!((ended.heard, ended.turned), (Heard::Asked, false), "the control");
    }
}
