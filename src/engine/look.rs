//! Having one disk read, outside: what comes back is an input.

use std::sync::Arc;

use super::again::Reasons;
use super::input::Input;
use super::{Engine, Look};
use crate::device::DevNum;
use crate::device::facts::Facts;
use crate::device::found::Found;
use crate::device::table::{Heard, Reading};
use crate::identity::VolumeId;

impl Engine {
    /// Reads one disk outside; it comes back as [`Input::Looked`].
    pub(super) fn look(&mut self, devnum: DevNum, heard: Heard) {
        if let Some(look) = self.looks.get_mut(&devnum) {
            look.again.extend(&[heard]);
            return;
        }
        self.read(devnum, Reasons::of(heard));
    }

    fn read(&mut self, devnum: DevNum, reasons: Reasons) {
        let reading = self.next_reading();
        self.looks.insert(devnum, Look { reading, reasons, again: Reasons::default() });
        let (step, disks) = (self.tools.disks.read(devnum), Arc::clone(&self.tools.disks));
        self.outside("step.look", step, move |found| {
            // What it is, is not known; that it is gone, neither.
            let found = found.unwrap_or_else(|died| disks.read_unanswered(devnum, &died.to_string()));
            Input::Looked { devnum, reading, found }
        });
    }

    /// One disk was read.
    pub(super) fn looked(&mut self, devnum: DevNum, reading: Reading, found: Found<Facts>) {
        let (reasons, again) = match self.looks.remove(&devnum) {
            Some(Look { reasons, again, .. }) => (reasons, again),
            None => (Reasons::default(), Reasons::default()),
        };
        // What the readings before were made for counts with the first that succeeds.
        let mut all = Reasons::default();
        all.extend(self.world.again.heard(devnum));
        all.extend(reasons.as_slice());
        let concerned = self.read_or_not(devnum, &found, reasons.as_slice());
        let heard = Heard::strongest(all.as_slice(), &found);
        let in_vain = |engine: &Self| engine.world.table.of(devnum).and_then(|disk| engine.marked_in_vain(disk));
        let before = in_vain(self);
        let touched = self.world.table.update(devnum, found, reading, heard);
        if !again.as_slice().is_empty() {
            self.read(devnum, again);
        }
        // udev had read the claim before a withdrawal took it away. Asked once: rules of somebody else's may do the same.
        if let Some(serial) = in_vain(self).filter(|serial| before != Some(*serial)) {
            self.unmark(serial);
        }
        let serial = self.world.table.of(devnum).and_then(|disk| disk.facts.serial());
        if serial.and_then(|serial| self.world.volume_of(serial)).is_none() {
            // A loop device, LVM, MD or crypt may be on a disk of ours.
            self.tools.stacks.notify_one();
        }
        self.settle_serials(touched);
        self.settle_some(concerned, None);
    }

    /// This host has begun to use these disks, or has ceased to: what is said of them was true a moment ago.
    pub(super) fn use_changed(&mut self, disks: Vec<DevNum>) {
        for devnum in disks {
            if self.world.table.of(devnum).is_some() {
                self.look(devnum, Heard::Asked);
            }
        }
    }

    /// The disk that was known under this number is not there any more: what it served goes at once, whatever the disk
    /// that may have its number now says of itself, and however long it takes to say it.
    pub(super) fn drop_exchanged(&mut self, devnum: DevNum) {
        let Some(diskseq) = self.known_diskseq(devnum) else { return };
        // What cannot be found out this quickly is found out by the reading that follows.
        if self.tools.disks.still(devnum, diskseq).is_gone() {
            let concerned = self.read_or_not(devnum, &Found::Gone, &[Heard::Asked]);
            let reading = self.next_reading();
            let touched = self.world.table.update(devnum, Found::Gone, reading, Heard::Asked);
            self.settle_serials(touched);
            self.settle_some(concerned, None);
        }
    }

    /// Which disk is taken to have this number: the one that was read, or, where none could be, the one on record.
    fn known_diskseq(&self, devnum: DevNum) -> Option<u64> {
        let read = self.world.table.of(devnum).map(|device| device.facts.diskseq);
        let on_record = || {
            let volumes = self.world.mapped_to(devnum).into_iter().filter_map(|id| self.world.volume(id));
            volumes.filter(|volume| volume.published).find_map(|volume| Some(volume.mapping.as_ref()?.diskseq))
        };
        read.or_else(|| self.world.again.holds(devnum).then(on_record).flatten())
    }

    /// From now on only a new reading of this volume's disk counts.
    pub(super) fn distrust(&mut self, id: VolumeId) {
        let readings = self.readings;
        if let Some(volume) = self.world.volume_mut(id) {
            volume.look_after = readings;
        }
    }

    pub(super) fn next_reading(&mut self) -> Reading {
        self.readings += 1;
        self.readings
    }
}
