//! The disks that are present, by number and by serial.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::DevNum;
use super::event::Origin;
use super::facts::Facts;
use super::found::Found;
use crate::identity::Serial;

/// The number of a reading of sysfs; a later reading has a higher number.
pub type Reading = u64;

/// Why a disk was read, ordered by which reason counts most when several come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    /// A decision asked for it; this says nothing about udev.
    Asked,
    /// A resync found it; the disk's link shows what udev has done.
    Look,
    /// An event named the disk with this disk sequence number at this time.
    Event(Origin, Option<u64>, Timestamp),
}

/// A present disk.
#[derive(Debug, Clone)]
pub struct Device {
    /// The facts that were read.
    pub facts: Facts,
    /// The number of that reading, to compare with the reading that a decision asked for.
    pub reading: Reading,
    /// Whether udevd has finished with this disk, as far as is known. A disk that is not settled is never published.
    pub settled: bool,
    /// When the event of udevd that settled it was received; `None` if a resync settled it.
    pub heard_at: Option<Timestamp>,
}

/// All present disks.
#[derive(Debug, Default)]
pub struct Table {
    by_devnum: HashMap<DevNum, Device>,
    by_serial: HashMap<Serial, Vec<DevNum>>,
    /// The reading that found a number empty, so that a slower, older reading does not bring its disk back.
    gone: HashMap<DevNum, Reading>,
    /// The sequence number of the disk that udevd has finished with, under a number that a later reading found empty.
    finished: HashMap<DevNum, u64>,
    /// Disks whose last reading failed wholly or in part.
    unread: HashMap<DevNum, Unread>,
}

/// A failed reading.
#[derive(Debug)]
struct Unread {
    /// The sequence number of the disk; `None` if not even that could be read.
    diskseq: Option<u64>,
    why: String,
    reading: Reading,
}

impl Table {
    /// Adds a reading of one device number and returns the serials that it concerns.
    ///
    /// A failed reading changes nothing of what is known about the same disk. It is noted ([`Table::unread`]) until a
    /// reading succeeds.
    pub fn update(&mut self, devnum: DevNum, found: Found<Facts>, reading: Reading, heard: Heard) -> Vec<Serial> {
        let before = self.by_devnum.get(&devnum);
        let last = before.map(|device| device.reading).or_else(|| self.gone.get(&devnum).copied());
        if last.is_some_and(|last| last > reading) {
            return self.settle_late(devnum, found.here().as_ref(), heard).into_iter().collect();
        }
        let unread = found.unread().map(str::to_owned);
        let facts = found.here();
        self.unread.remove(&devnum);
        if let Some(why) = unread {
            let diskseq = facts.as_ref().map(|facts| facts.diskseq_after);
            self.unread.insert(devnum, Unread { diskseq, why, reading });
            // It may be the known disk, or it certainly is.
            if diskseq.is_none() || diskseq == before.map(|device| device.facts.diskseq) {
                return before.and_then(|device| device.facts.serial()).into_iter().collect();
            }
        }
        let settled = facts.as_ref().is_some_and(|facts| {
            let known = before.is_some_and(|device| device.settled && device.facts.diskseq == facts.diskseq);
            known || heard.settles(facts) || self.finished.get(&devnum) == Some(&facts.diskseq)
        });
        let heard_at = match heard {
            Heard::Event(Origin::Udev, _, at) => Some(at),
            _ => before.filter(|_| settled).and_then(|device| device.heard_at),
        };
        let old = before.and_then(|device| device.facts.serial());
        let new = facts.as_ref().and_then(Facts::serial);
        if old != new {
            if let Some(serial) = old {
                self.forget(serial, devnum);
            }
            if let Some(serial) = new {
                self.by_serial.entry(serial).or_default().push(devnum);
            }
        }
        if let Some(facts) = facts {
            self.gone.remove(&devnum);
            self.finished.remove(&devnum);
            self.by_devnum.insert(devnum, Device { facts, reading, settled, heard_at });
        } else {
            self.by_devnum.remove(&devnum);
            self.gone.insert(devnum, reading);
        }
        old.into_iter().chain(new.filter(|new| Some(*new) != old)).collect()
    }

    /// Handles a reading that is older than the last one. All it can add is that udevd has finished with the same
    /// disk.
    ///
    /// This matters after events were lost. The kernel's event of a disk may still be queued and cause a read after
    /// the resync began, while udevd's event of the disk is among the lost ones. The later read shows at least what
    /// udevd had done by then.
    ///
    /// It also matters when the previous disk was found gone while this one was read: the disk is about to be read
    /// again, for an event that may be the kernel's.
    fn settle_late(&mut self, devnum: DevNum, older: Option<&Facts>, heard: Heard) -> Option<Serial> {
        let older = older.filter(|older| heard.settles(older))?;
        let Some(device) = self.by_devnum.get_mut(&devnum) else {
            self.finished.insert(devnum, older.diskseq);
            return None;
        };
        if device.settled || older.diskseq != device.facts.diskseq {
            return None;
        }
        device.settled = true;
        older.serial()
    }

    /// Adds a reading of all disks and returns the serials that it concerns. Disks that were read later than
    /// `reading` stay. `at_work` returns whether udevd is known to be still working on a disk; then the reading does
    /// not settle it.
    pub fn replace(
        &mut self,
        all: Vec<(DevNum, Found<Facts>)>,
        reading: Reading,
        at_work: impl Fn(DevNum) -> bool,
    ) -> Vec<Serial> {
        let found = all.iter().filter(|(_, found)| !found.is_gone());
        let present: HashSet<DevNum> = found.map(|(devnum, _)| *devnum).collect();
        let gone: Vec<DevNum> = self.by_devnum.keys().filter(|devnum| !present.contains(devnum)).copied().collect();
        let mut touched = Vec::new();
        for devnum in gone {
            touched.extend(self.update(devnum, Found::Gone, reading, Heard::Look));
        }
        self.gone.retain(|_, when| *when > reading);
        self.unread.retain(|devnum, unread| present.contains(devnum) || unread.reading > reading);
        for (devnum, found) in all.into_iter().filter(|(_, found)| !found.is_gone()) {
            let heard = if at_work(devnum) { Heard::Asked } else { Heard::Look };
            touched.extend(self.update(devnum, found, reading, heard));
        }
        touched
    }

    /// Returns why the last reading of this disk failed; `None` if it succeeded or found another disk.
    pub fn unread(&self, devnum: DevNum, diskseq: u64) -> Option<&str> {
        let unread = self.unread.get(&devnum).filter(|unread| unread.diskseq.is_none_or(|seq| seq == diskseq));
        unread.map(|unread| unread.why.as_str())
    }

    /// Returns every disk whose last reading failed, with the reason, in no order.
    pub fn all_unread(&self) -> impl Iterator<Item = (DevNum, &str)> {
        self.unread.iter().map(|(devnum, unread)| (*devnum, unread.why.as_str()))
    }

    /// Returns the disk that was last seen under this number.
    pub fn of(&self, devnum: DevNum) -> Option<&Device> {
        self.by_devnum.get(&devnum)
    }

    /// Returns the disks that show this serial; more than one is a conflict.
    pub fn with_serial(&self, serial: Serial) -> impl Iterator<Item = &Device> {
        self.by_serial.get(&serial).into_iter().flatten().filter_map(|devnum| self.by_devnum.get(devnum))
    }

    /// Returns every present disk, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Device> {
        self.by_devnum.values()
    }

    fn forget(&mut self, serial: Serial, devnum: DevNum) {
        if let Some(devnums) = self.by_serial.get_mut(&serial) {
            devnums.retain(|other| *other != devnum);
            if devnums.is_empty() {
                self.by_serial.remove(&serial);
            }
        }
    }
}

impl Heard {
    /// Returns whether a reading for this reason shows a disk that udevd has finished with.
    fn settles(self, facts: &Facts) -> bool {
        match self {
            Self::Look => true,
            // An event older than the present disk says nothing about the present disk.
            Self::Event(Origin::Udev, diskseq, _) => diskseq.is_none_or(|seq| seq == facts.diskseq),
            Self::Asked | Self::Event(Origin::Kernel, ..) => false,
        }
    }

    /// Returns the reason that says most about what was found.
    pub fn strongest(reasons: &[Self], found: &Found<Facts>) -> Self {
        let settles = |heard: &Self| matches!(found, Found::Here(facts) if heard.settles(facts));
        reasons.iter().copied().max_by_key(|heard| (settles(heard), *heard)).unwrap_or(Self::Asked)
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Identity, LinkTarget};
    use super::*;

    const DISK: DevNum = DevNum { major: 254, minor: 16 };
    const A: &str = "aaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbb";

    fn facts(devnum: DevNum, serial: &str, diskseq: u64) -> Facts {
        let identity = Identity {
            scheme: "virtio",
            instead: None,
            serial: serial.parse().unwrap(),
            link: String::new(),
            link_target: LinkTarget::Missing,
            node_group: None,
            uses: Vec::new(),
        };
        Facts {
            devnum,
            name: "vdb".into(),
            diskseq,
            diskseq_after: diskseq,
            size_bytes: 512,
            read_only: false,
            identity: Ok(identity),
        }
    }

    fn all(facts: Facts) -> Vec<(DevNum, Found<Facts>)> {
        vec![(facts.devnum, Found::Here(facts))]
    }

    /// A disk that is present but whose serial cannot be read.
    fn silent(diskseq: u64) -> Found<Facts> {
        let identity = Err(super::super::facts::NoIdentity::Unreadable("no answer".into()));
        Found::Here(Facts { identity, ..facts(DISK, A, diskseq) })
    }

    fn udev(diskseq: u64) -> Heard {
        Heard::Event(Origin::Udev, Some(diskseq), Timestamp::UNIX_EPOCH)
    }

    fn kernel(diskseq: u64) -> Heard {
        Heard::Event(Origin::Kernel, Some(diskseq), Timestamp::UNIX_EPOCH)
    }

    fn settled(table: &Table, serial: &str) -> Vec<bool> {
        table.with_serial(serial.parse().unwrap()).map(|device| device.settled).collect()
    }

    #[test]
    fn an_event_of_another_disk_does_not_hide_the_event_of_this_disk() {
        let found = Found::Here(facts(DISK, A, 5));
        assert_eq!(Heard::strongest(&[udev(5), udev(9), kernel(9)], &found), udev(5));
        assert_eq!(Heard::strongest(&[Heard::Look, udev(4)], &found), Heard::Look);
        assert_eq!(Heard::strongest(&[Heard::Asked, kernel(5)], &found), kernel(5));
        assert_eq!(Heard::strongest(&[udev(5), udev(9)], &Found::Gone), udev(9));
        assert_eq!(Heard::strongest(&[], &found), Heard::Asked);
    }

    #[test]
    fn a_reused_number_concerns_the_old_and_the_new_serial() {
        let mut table = Table::default();
        assert_eq!(table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, udev(1)), [A.parse().unwrap()]);
        assert_eq!(
            table.update(DISK, Found::Here(facts(DISK, B, 2)), 2, kernel(2)),
            [A.parse().unwrap(), B.parse().unwrap()]
        );
        assert!(settled(&table, A).is_empty());
        assert_eq!(settled(&table, B), [false], "the kernel's word alone must not publish");
        table.update(DISK, Found::Here(facts(DISK, B, 2)), 3, udev(2));
        assert_eq!(settled(&table, B), [true]);
        table.update(DISK, Found::Here(facts(DISK, B, 2)), 4, kernel(2));
        assert_eq!(settled(&table, B), [true], "a disk that udev has finished stays so");
    }

    #[test]
    fn a_reading_that_a_decision_asked_for_settles_nothing() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, Heard::Asked);
        assert_eq!(settled(&table, A), [false]);
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 2, udev(1));
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 3, Heard::Asked);
        assert_eq!(settled(&table, A), [true]);
        assert_eq!(table.of(DISK).map(|device| device.facts.diskseq), Some(1));
    }

    #[test]
    fn an_event_of_the_previous_disk_does_not_settle_the_next_one() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, B, 2)), 1, udev(1));
        assert_eq!(settled(&table, B), [false]);
    }

    #[test]
    fn udevs_event_still_counts_when_the_previous_disk_is_found_gone_during_the_read() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, kernel(1));
        // Reading 2 is for udev's event of the next disk. Before it ends, an event shows that the previous disk is
        // gone.
        table.update(DISK, Found::Gone, 3, Heard::Asked);
        assert!(table.update(DISK, Found::Here(facts(DISK, B, 2)), 2, udev(2)).is_empty());
        table.update(DISK, Found::Here(facts(DISK, B, 2)), 4, kernel(2));
        assert_eq!(settled(&table, B), [true]);
        // This holds for that disk and not for the next one.
        table.update(DISK, Found::Gone, 5, kernel(3));
        table.update(DISK, Found::Here(facts(DISK, B, 3)), 6, kernel(3));
        assert_eq!(settled(&table, B), [false]);
    }

    #[test]
    fn an_older_reading_never_replaces_a_newer_one() {
        let mut table = Table::default();
        table.update(DISK, Found::Gone, 5, udev(1));
        table.update(DISK, Found::Here(facts(DISK, A, 2)), 7, udev(2));
        assert!(table.update(DISK, Found::Here(facts(DISK, B, 1)), 6, udev(1)).is_empty());
        assert!(table.replace(Vec::new(), 6, |_| false).is_empty(), "a resync that began before the disk came");
        assert_eq!(settled(&table, A), [true]);
        assert_eq!(table.replace(Vec::new(), 8, |_| false), [A.parse().unwrap()]);
        assert_eq!(table.all().count(), 0);
    }

    #[test]
    fn a_slow_resync_does_not_bring_back_a_disk_that_was_pulled_in_the_meantime() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, udev(1));
        table.update(DISK, Found::Gone, 3, kernel(1));
        assert!(table.replace(all(facts(DISK, A, 1)), 2, |_| false).is_empty());
        assert_eq!(table.all().count(), 0);
    }

    #[test]
    fn a_resync_does_not_settle_a_disk_that_udevd_is_still_working_on() {
        let mut table = Table::default();
        table.replace(all(facts(DISK, A, 7)), 1, |devnum| devnum == DISK);
        assert_eq!(settled(&table, A), [false]);
        table.replace(all(facts(DISK, A, 7)), 2, |_| false);
        assert_eq!(settled(&table, A), [true], "the control");
        table.replace(all(facts(DISK, A, 7)), 3, |devnum| devnum == DISK);
        assert_eq!(settled(&table, A), [true], "a later event of a disk that was finished takes nothing back");
    }

    #[test]
    fn a_resync_settles_a_disk_that_the_kernels_event_made_it_read_later() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, A, 7)), 2, kernel(7));
        assert_eq!(settled(&table, A), [false]);
        assert_eq!(table.replace(all(facts(DISK, A, 7)), 1, |_| false), [A.parse().unwrap()]);
        assert_eq!(settled(&table, A), [true]);
        assert!(table.replace(all(facts(DISK, A, 7)), 1, |_| false).is_empty(), "said once");
        // Another disk under the same number is not settled by it.
        table.update(DISK, Found::Here(facts(DISK, B, 8)), 4, kernel(8));
        assert!(table.replace(all(facts(DISK, A, 7)), 3, |_| false).is_empty());
        assert_eq!(settled(&table, B), [false]);
    }

    #[test]
    fn two_disks_with_one_serial_are_both_returned() {
        let mut table = Table::default();
        let other = DevNum { major: 254, minor: 32 };
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, udev(1));
        table.update(other, Found::Here(facts(other, A, 2)), 2, kernel(2));
        assert_eq!(settled(&table, A), [true, false]);
        table.update(other, Found::Gone, 3, kernel(2));
        assert_eq!(settled(&table, A), [true]);
    }

    /// Invariant 13: a failed read changes nothing of what is known about the same disk.
    #[test]
    fn a_failed_reading_changes_nothing_and_is_noted_until_one_succeeds() {
        let failures = [silent(1), Found::Unknown("too many open files".into())];
        for (failed, again) in failures.iter().flat_map(|failed| [(failed, false), (failed, true)]) {
            let mut table = Table::default();
            table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, udev(1));
            assert_eq!(table.unread(DISK, 1), None);
            if again {
                table.replace(vec![(DISK, failed.clone())], 2, |_| false);
            } else {
                assert_eq!(table.update(DISK, failed.clone(), 2, kernel(1)), [A.parse().unwrap()]);
            }
            assert_eq!(settled(&table, A), [true], "{failed:?}");
            assert_eq!(table.unread(DISK, 1), failed.unread());
            assert_eq!(table.of(DISK).unwrap().reading, 1, "it was no reading");
            table.update(DISK, Found::Here(facts(DISK, A, 1)), 3, Heard::Asked);
            assert_eq!((table.unread(DISK, 1), table.all_unread().count()), (None, 0));
            // The control: a disk that is gone is removed, with or without a failed read.
            table.update(DISK, failed.clone(), 4, Heard::Asked);
            table.update(DISK, Found::Gone, 5, Heard::Asked);
            assert_eq!((settled(&table, A), table.all_unread().count()), (vec![], 0));
        }
    }

    #[test]
    fn an_unreadable_disk_with_another_sequence_number_replaces_the_known_disk() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, udev(1));
        assert_eq!(table.update(DISK, silent(2), 2, udev(2)), [A.parse().unwrap()]);
        assert!(settled(&table, A).is_empty());
        assert_eq!((table.unread(DISK, 1), table.unread(DISK, 2)), (None, Some("no answer")));
        table.update(DISK, Found::Here(facts(DISK, B, 2)), 3, Heard::Asked);
        assert_eq!(settled(&table, B), [true], "udev's word of it is not forgotten meanwhile");
    }

    #[test]
    fn a_disk_missing_from_a_resync_is_gone_even_if_its_last_read_failed() {
        let mut table = Table::default();
        table.update(DISK, Found::Here(facts(DISK, A, 1)), 1, udev(1));
        table.update(DISK, silent(1), 2, Heard::Asked);
        assert_eq!(table.replace(vec![(DISK, Found::Gone)], 3, |_| false), [A.parse().unwrap()]);
        assert_eq!((table.all().count(), table.all_unread().count()), (0, 0));
    }
}
