//! Disks that could not be read. Each is retried by itself until a read succeeds.

use std::collections::BTreeMap;
use std::time::Instant;

use super::pause::pause;
use crate::device::DevNum;
use crate::device::event::Origin;
use crate::device::table::Heard;

/// The disks to retry, and when. Empty when every disk could be read.
#[derive(Debug, Default)]
pub(super) struct Again {
    by_devnum: BTreeMap<DevNum, Try>,
}

/// The number of reasons remembered for one disk: the latest ones.
const MOST_REASONS: usize = 8;

/// Why a disk is to be read, each reason once. Only the read shows which of them concerns the disk.
#[derive(Debug, Default)]
pub(super) struct Reasons(Vec<Heard>);

impl Reasons {
    pub(super) fn of(heard: Heard) -> Self {
        Self(vec![heard])
    }

    /// Adds later reasons.
    pub(super) fn extend(&mut self, more: &[Heard]) {
        for heard in more {
            // All events of the kernel mean the same: read the disk.
            let kernels = |heard: &Heard| matches!(heard, Heard::Event(Origin::Kernel, ..));
            if self.0.iter().any(|old| old == heard || kernels(old) && kernels(heard)) {
                continue;
            }
            let oldest = self.0.iter().position(|old| *old != Heard::Look).filter(|_| self.0.len() == MOST_REASONS);
            oldest.map(|oldest| self.0.remove(oldest));
            self.0.push(*heard);
        }
    }

    pub(super) fn as_slice(&self) -> &[Heard] {
        &self.0
    }
}

#[derive(Debug, Default)]
struct Try {
    /// The reasons for the read, which are still to be handled.
    heard: Reasons,
    attempts: u32,
    /// `None` while the disk is being read.
    at: Option<Instant>,
}

impl Again {
    /// Records that a disk could not be read. Returns whether that is new.
    pub(super) fn failed(&mut self, devnum: DevNum, heard: &[Heard], now: Instant) -> bool {
        let known = self.by_devnum.entry(devnum).or_default();
        known.attempts += 1;
        known.heard.extend(heard);
        known.at = Some(now + pause(known.attempts));
        known.attempts == 1
    }

    /// Records that the disk was read, or is gone. Returns whether that is new.
    pub(super) fn over(&mut self, devnum: DevNum) -> bool {
        self.by_devnum.remove(&devnum).is_some()
    }

    /// Returns the reasons that are still to be handled for a disk that could not be read.
    pub(super) fn heard(&self, devnum: DevNum) -> &[Heard] {
        self.by_devnum.get(&devnum).map_or(&[], |each| each.heard.as_slice())
    }

    /// Returns whether the last read of the disk failed.
    pub(super) fn holds(&self, devnum: DevNum) -> bool {
        self.by_devnum.contains_key(&devnum)
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.by_devnum.values().filter_map(|each| each.at).min()
    }

    /// Returns the disks whose retry is due. Each is returned once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<DevNum> {
        let due = self.by_devnum.iter_mut().filter(|(_, each)| each.at.is_some_and(|at| at <= now));
        due.map(|(devnum, each)| {
            each.at = None;
            *devnum
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    const DISK: DevNum = DevNum { major: 254, minor: 16 };

    #[test]
    fn the_latest_reasons_are_kept_and_a_reading_on_request_always() {
        let event = |seq| Heard::Event(Origin::Udev, Some(seq), Timestamp::UNIX_EPOCH);
        let mut reasons = Reasons::of(Heard::Look);
        for seq in (0..100).chain(98..100) {
            reasons.extend(&[event(seq)]);
        }
        assert_eq!(reasons.as_slice().len(), MOST_REASONS);
        assert!(reasons.as_slice().contains(&Heard::Look) && reasons.as_slice().contains(&event(98)));
        assert_eq!(reasons.as_slice().last(), Some(&event(99)));
    }

    #[test]
    fn a_disk_is_retried_with_back_off_until_it_is_read_and_its_reasons_are_kept() {
        let (mut again, now) = (Again::default(), Instant::now());
        assert_eq!(again.wake(), None);
        let udev = Heard::Event(Origin::Udev, Some(5), Timestamp::UNIX_EPOCH);
        assert!(again.failed(DISK, &[udev], now));
        let first = again.wake().unwrap();
        assert!(again.due(now).is_empty() && again.due(first) == [DISK]);
        assert_eq!((again.wake(), again.due(first)), (None, vec![]), "it is being read: nothing to wake up for");
        assert!(!again.failed(DISK, &[Heard::Asked], first));
        assert_eq!(again.heard(DISK), [udev, Heard::Asked]);
        let second = again.wake().unwrap();
        assert!(second - first > first - now);
        assert_eq!(again.due(second), [DISK]);
        assert!(again.over(DISK) && !again.over(DISK));
        assert_eq!(again.wake(), None);
    }
}
