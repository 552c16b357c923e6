//! What a part wants done outside is begun: readings of disks, looks at the folders, the helper's errands, what is prepared,
//! what the server is told and asked. What comes of it is an input, taken up in [`super::results`].

use std::collections::BTreeSet;

use super::again::Reasons;
use super::core::Engine;
use super::preparation::Wish;
use super::waiting::Done;
use crate::device::DevNum;
use crate::device::table::Heard;
use crate::identity::{Serial, VolumeId};

impl Engine {
    /// Has one disk read; it comes back as [`super::input::Input::Looked`].
    pub(super) fn look(&mut self, devnum: DevNum, heard: Heard) {
        if let Some(reading) = self.world.looks.wish(devnum, heard) {
            self.steps.read(devnum, reading);
        }
    }

    /// The same once more, for what happened while it was read.
    pub(super) fn look_again(&mut self, devnum: DevNum, reasons: Reasons) {
        let reading = self.world.looks.begin(devnum, reasons);
        self.steps.read(devnum, reading);
    }

    /// Has all disks read; they come back as [`super::input::Input::Scanned`]. `done` is told when each volume was held against them.
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.world.looks.next();
        let round = self.waiting.begin(done);
        self.steps.read_all(reading, reason, round);
    }

    /// Has the folders of exports listed. `done` is told when they have been compared.
    pub(super) fn list_exports(&mut self, done: Option<Done>) {
        let Some(waiting) = self.world.exported.upkeep.wish(done) else { return };
        let round = self.waiting.begin(waiting);
        let known = self.world.volume_ids().collect();
        self.steps.list_exports(known, round);
    }

    /// Has put right what was added to the claims or taken from them by hand. `done` is told of the end.
    pub(super) fn restore_claims(&mut self, done: Option<Done>) {
        let Some(waiting) = self.world.claimed.upkeep.wish(done) else { return };
        let round = self.waiting.begin(waiting);
        // What is left as it is now, is looked at once more should it end the other way.
        self.world.admissions.doubt_claims();
        let (mut wanted, mut under_way) = (Vec::new(), self.world.admissions.volumes().collect::<Vec<_>>());
        for volume in self.world.volumes_mut() {
            let going = volume.departure.leaving.may_go();
            volume.departure.claim_unsure |= going;
            let to = if going { &mut under_way } else { &mut wanted };
            to.push(volume.intent.volume);
        }
        // From here on: what is accepted or withdrawn while it runs is left as it is.
        self.steps.restore_claims(wanted, under_way, round);
    }

    /// Has udev take the mark off a disk that nobody wants any more.
    pub(super) fn unmark(&mut self, serial: Serial) {
        if let Some(asked) = self.world.errands.unmark(serial) {
            self.steps.retrigger(serial, asked);
        }
    }

    /// Gives back the nodes of disks that were withdrawn and, for a crash in between, never un-marked.
    pub(super) fn unmark_unwanted(&mut self) {
        let serials: BTreeSet<_> = self.world.table.all().filter_map(|disk| self.world.marked_in_vain(disk)).collect();
        for serial in serials {
            self.unmark(serial);
        }
    }

    /// Has an export prepared, unless it is, or that is under way or to be tried later. Says whether it is.
    pub(super) fn prepare(&mut self, id: VolumeId) -> bool {
        let needed = self.steps.tools.backend.prepares();
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let closed = volume.departure.leaving.is_closed();
        let wish = volume.preparation.wish(volume.judged, closed, needed);
        self.prepare_if(id, wish);
        wish == Wish::Done
    }

    /// Somebody has touched what was prepared, or a caller wants it tried now.
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

    /// Takes note of a change to a volume's files that the server must be told of.
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

    /// Tells the server everything.
    pub(super) fn tell_server(&mut self) {
        if self.world.telling.begin() {
            self.steps.tell(self.world.telling.last());
        }
    }

    /// Asks the server whether it answers at all. At most one question is under way.
    pub(super) fn greet_server(&mut self) {
        if let Some(life) = self.world.handshakes.begin(self.steps.tools.clock.now()) {
            self.steps.greet(life);
        }
    }
}
