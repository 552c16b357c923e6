//! Disks that could not be read: each is read again by itself until that succeeds.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Engine;
use super::settle::pause;
use crate::device::DevNum;
use crate::device::facts::Facts;
use crate::device::found::Found;
use crate::device::table::Heard;
use crate::identity::VolumeId;

/// The disks that are to be read again, and when. Empty when every disk could be read.
#[derive(Debug, Default)]
pub(super) struct Again {
    by_devnum: BTreeMap<DevNum, Try>,
}

#[derive(Debug)]
struct Try {
    /// Why it was to be read, which is still to be heard.
    heard: Heard,
    attempts: u32,
    /// `None`: it is being read.
    at: Option<Instant>,
}

impl Again {
    /// A disk could not be read. Says whether that is new.
    fn failed(&mut self, devnum: DevNum, heard: Heard, now: Instant) -> bool {
        let known = self.by_devnum.get(&devnum);
        let attempts = known.map_or(0, |known| known.attempts) + 1;
        let heard = known.map_or(heard, |known| known.heard.max(heard));
        self.by_devnum.insert(devnum, Try { heard, attempts, at: Some(now + pause(attempts)) });
        attempts == 1
    }

    /// It was read, or is gone. Says whether that is new.
    pub(super) fn over(&mut self, devnum: DevNum) -> bool {
        self.by_devnum.remove(&devnum).is_some()
    }

    /// It could not be read the last time.
    pub(super) fn holds(&self, devnum: DevNum) -> bool {
        self.by_devnum.contains_key(&devnum)
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.by_devnum.values().filter_map(|each| each.at).min()
    }

    /// The disks whose time has come; each is handed out once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(DevNum, Heard)> {
        let due = self.by_devnum.iter_mut().filter(|(_, each)| each.at.is_some_and(|at| at <= now));
        due.map(|(devnum, each)| {
            each.at = None;
            (*devnum, each.heard)
        })
        .collect()
    }
}

impl Engine {
    /// Takes note of whether a disk could be read. Returns the volumes that are concerned although no serial tells so.
    pub(super) fn read_or_not(&mut self, devnum: DevNum, found: &Found<Facts>, heard: Heard) -> Vec<VolumeId> {
        match found.unread() {
            Some(why) => {
                if self.world.again.failed(devnum, heard, self.tools.clock.now()) {
                    tracing::warn!(%devnum, "a disk could not be read; what is known of it holds, and it is read again by itself: {why}");
                }
            }
            None if self.world.again.over(devnum) => tracing::info!(%devnum, "the disk could be read again"),
            None => return Vec::new(),
        }
        self.world.mapped_to(devnum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::event::Origin;
    use jiff::Timestamp;

    const DISK: DevNum = DevNum { major: 254, minor: 16 };

    #[test]
    fn a_disk_is_tried_again_later_and_later_until_it_is_read_and_what_was_heard_is_kept() {
        let (mut again, now) = (Again::default(), Instant::now());
        assert_eq!(again.wake(), None);
        let udev = Heard::Event(Origin::Udev, Some(5), Timestamp::UNIX_EPOCH);
        assert!(again.failed(DISK, udev, now));
        let first = again.wake().unwrap();
        assert!(again.due(now).is_empty() && again.due(first) == [(DISK, udev)]);
        assert_eq!((again.wake(), again.due(first)), (None, vec![]), "it is being read: nothing to wake up for");
        assert!(!again.failed(DISK, Heard::Asked, first));
        let second = again.wake().unwrap();
        assert!(second - first > first - now);
        assert_eq!(again.due(second), [(DISK, udev)]);
        assert!(again.over(DISK) && !again.over(DISK));
        assert_eq!(again.wake(), None);
    }
}
