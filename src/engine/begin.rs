//! Starts what a part wants done outside: readings of disks, checks of the folders, requests to the helper,
//! preparations, notifications of the server and handshakes. Each result is an input, handled in [`super::results`].

use std::collections::BTreeSet;

use super::again::Reasons;
use super::core::Engine;
use super::preparation::Wish;
use super::waiting::Done;
use crate::device::DevNum;
use crate::device::table::Heard;
use crate::identity::{Serial, VolumeId};

impl Engine {
    /// Starts reading one disk. The result is [`super::input::Input::Looked`].
    pub(super) fn look(&mut self, devnum: DevNum, heard: Heard) {
        if let Some(reading) = self.world.looks.wish(devnum, heard) {
            self.steps.read(devnum, reading);
        }
    }

    /// Reads a disk again because of what happened while it was read.
    pub(super) fn look_again(&mut self, devnum: DevNum, reasons: Reasons) {
        let reading = self.world.looks.begin(devnum, reasons);
        self.steps.read(devnum, reading);
    }

    /// Starts reading all disks. The result is [`super::input::Input::Scanned`]. `done` is notified when each volume
    /// was compared with them.
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.world.looks.next();
        let round = self.waiting.begin(done);
        self.steps.read_all(reading, reason, round);
    }

    /// Starts listing the folders of exports. `done` is notified when they have been compared.
    pub(super) fn list_exports(&mut self, done: Option<Done>) {
        let Some(waiting) = self.world.exported.upkeep.wish(done) else { return };
        let round = self.waiting.begin(waiting);
        let known = self.world.volume_ids().collect();
        self.steps.list_exports(known, round);
    }

    /// Starts restoring the claims, of which some may have been added or removed by hand. `done` is notified at the
    /// end.
    pub(super) fn restore_claims(&mut self, done: Option<Done>) {
        let Some(waiting) = self.world.claimed.upkeep.wish(done) else { return };
        let round = self.waiting.begin(waiting);
        // Claims that are being added or removed now are left as they are. They are checked again if that ends the
        // other way.
        self.world.admissions.doubt_claims();
        let (mut wanted, mut under_way) = (Vec::new(), self.world.admissions.volumes().collect::<Vec<_>>());
        for volume in self.world.volumes_mut() {
            let going = volume.departure.leaving.may_go();
            volume.departure.claim_unsure |= going;
            let to = if going { &mut under_way } else { &mut wanted };
            to.push(volume.intent.volume);
        }
        // From here on, the restoration leaves alone the claims of intents that are accepted or withdrawn while it
        // runs.
        self.steps.restore_claims(wanted, under_way, round);
    }

    /// Asks udev to remove the mark from a disk that nobody wants any more.
    pub(super) fn unmark(&mut self, serial: Serial) {
        if let Some(asked) = self.world.errands.unmark(serial) {
            self.steps.retrigger(serial, asked);
        }
    }

    /// Removes the marks of disks that were withdrawn and, because of a crash in between, never un-marked.
    pub(super) fn unmark_unwanted(&mut self) {
        let serials: BTreeSet<_> = self.world.table.all().filter_map(|disk| self.world.marked_in_vain(disk)).collect();
        for serial in serials {
            self.unmark(serial);
        }
    }

    /// Starts preparing an export, unless it is prepared, is being prepared, or waits for a retry. Returns whether it
    /// is prepared.
    pub(super) fn prepare(&mut self, id: VolumeId) -> bool {
        let needed = self.steps.tools.backend.prepares();
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let closed = volume.departure.leaving.is_closed();
        let wish = volume.preparation.wish(volume.judged, closed, needed);
        self.prepare_if(id, wish);
        wish == Wish::Done
    }

    /// Prepares again, because another program has touched the files, or because a caller wants it now.
    pub(super) fn prepare_again(&mut self, id: VolumeId) {
        let needed = self.steps.tools.backend.prepares();
        let Some(volume) = self.world.volume_mut(id) else { return };
        let closed = volume.departure.leaving.is_closed();
        let wish = volume.preparation.touched(volume.judged, closed, needed);
        self.prepare_if(id, wish);
    }

    fn prepare_if(&self, id: VolumeId, wish: Wish) {
        if let Some(ticket) = self.world.ticket(id).filter(|_| wish == Wish::Begin) {
            self.steps.prepare(ticket);
        }
    }

    /// Records a change to a volume's files of which the server must be notified.
    pub(super) fn changed(&mut self, id: VolumeId) {
        if !self.steps.tools.backend.must_be_told() {
            return;
        }
        let change = self.world.telling.change();
        if let Some(volume) = self.world.volume_mut(id) {
            volume.change = Some(change);
        }
        if self.server_is_up() {
            self.tell_server();
        }
    }

    /// Notifies the server of all changes.
    pub(super) fn tell_server(&mut self) {
        if self.world.telling.begin() {
            self.steps.tell(self.world.telling.last());
        }
    }

    /// Checks whether the server answers at all. At most one check runs.
    pub(super) fn greet_server(&mut self) {
        if let Some(life) = self.world.handshakes.begin(self.steps.tools.clock.now()) {
            self.steps.greet(life);
        }
    }
}
