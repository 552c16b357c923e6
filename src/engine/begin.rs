//! What is begun outside, each at the word of its part: readings of disks, looks at the folders, the helper's errands, what is
//! prepared, what the server is told and asked. What comes of it is an input, taken up in [`super::results`].

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::again::Reasons;
use super::core::Engine;
use super::errands::{Asked, unless_died};
use super::input::Input;
use super::preparation::Wish;
use super::telling::{self, NotTold};
use super::waiting::Done;
use crate::device::DevNum;
use crate::device::table::{Heard, Reading};
use crate::export::probe::ProbeError;
use crate::helper_client::HelperError;
use crate::identity::{Serial, VolumeId};

impl Engine {
    /// Has one disk read; it comes back as [`Input::Looked`].
    pub(super) fn look(&mut self, devnum: DevNum, heard: Heard) {
        if let Some(reading) = self.world.looks.wish(devnum, heard) {
            self.read(devnum, reading);
        }
    }

    /// The same once more, for what happened while it was read.
    pub(super) fn look_again(&mut self, devnum: DevNum, reasons: Reasons) {
        let reading = self.world.looks.begin(devnum, reasons);
        self.read(devnum, reading);
    }

    fn read(&self, devnum: DevNum, reading: Reading) {
        let (step, disks) = (self.tools.disks.read(devnum), Arc::clone(&self.tools.disks));
        self.outside("step.look", step, move |found| {
            // What it is, is not known; that it is gone, neither.
            let found = found.unwrap_or_else(|died| disks.read_unanswered(devnum, &died.to_string()));
            Input::Looked { devnum, reading, found }
        });
    }

    /// Has all disks read; they come back as [`Input::Scanned`]. `done` is told when each volume was held against them.
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.world.looks.next();
        let round = self.waiting.begin(done);
        self.outside("step.scan", self.tools.disks.read_all(), move |all| {
            let all = all.unwrap_or_else(|died| Err(died.into()));
            Input::Scanned { reading, all, reason, round }
        });
    }

    /// Has the folders of exports listed. `done` is told when they have been compared.
    pub(super) fn list_exports(&mut self, done: Option<Done>) {
        let Some(waiting) = self.world.exported.upkeep.wish(done) else { return };
        let round = self.waiting.begin(waiting);
        let (backend, known) = (self.tools.backend.clone(), self.known());
        let step = self.work(move || backend.list(&known));
        self.outside("step.exports", step, move |result| {
            let contents = result.map_err(io::Error::from).flatten().flatten();
            Input::Exports { contents, round }
        });
    }

    pub(super) fn known(&self) -> BTreeSet<VolumeId> {
        self.world.volume_ids().collect()
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
        let step = self.tools.claims.restore(wanted, under_way);
        self.outside("step.claims", step, move |result| {
            let result = result.map_err(io::Error::from).flatten();
            Input::Claims { result, round }
        });
    }

    /// Has udev look at the disk of this serial again.
    pub(super) fn ask_for_retrigger(&self, serial: Serial, asked: Asked) {
        let step = self.tools.helper.retrigger(serial);
        self.outside("step.retrigger", step, move |answer| Input::Helper { asked, answer: unless_died(answer) });
    }

    /// Has udev take the mark off a disk that nobody wants any more.
    pub(super) fn unmark(&mut self, serial: Serial) {
        if let Some(asked) = self.world.errands.unmark(serial) {
            self.ask_for_retrigger(serial, asked);
        }
    }

    /// Gives back the nodes of disks that were withdrawn and, for a crash in between, never un-marked.
    pub(super) fn unmark_unwanted(&mut self) {
        let serials: BTreeSet<_> = self.world.table.all().filter_map(|disk| self.world.marked_in_vain(disk)).collect();
        for serial in serials {
            self.unmark(serial);
        }
    }

    /// Has the disks this host lives on written down. Until then, what is mounted or swapped to is refused anyway.
    pub(super) fn ask_for_host_disks(&self) {
        self.outside("step.host-disks", self.tools.helper.host_disks(), |answer| Input::Helper {
            asked: Asked::HostDisks,
            answer: unless_died(answer),
        });
    }

    /// Has an export prepared, unless it is, or that is under way or to be tried later. Says whether it is.
    pub(super) fn prepare(&mut self, id: VolumeId) -> bool {
        let needed = self.tools.backend.prepares();
        let Some(volume) = self.world.volume_mut(id) else { return false };
        let closed = volume.departure.leaving.is_closed();
        let wish = volume.preparation.wish(volume.judged, closed, needed);
        self.prepare_if(id, wish);
        wish == Wish::Done
    }

    /// Somebody has touched what was prepared, or a caller wants it tried now.
    pub(super) fn prepare_again(&mut self, id: VolumeId) {
        let needed = self.tools.backend.prepares();
        let Some(volume) = self.world.volume_mut(id) else { return };
        let closed = volume.departure.leaving.is_closed();
        let wish = volume.preparation.touched(volume.judged, closed, needed);
        self.prepare_if(id, wish);
    }

    fn prepare_if(&self, id: VolumeId, wish: Wish) {
        if wish == Wish::Begin {
            self.begin_to_prepare(id);
        }
    }

    pub(super) fn begin_to_prepare(&self, id: VolumeId) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let backend = self.tools.backend.clone();
        let step = self.work(move || backend.prepare(id));
        self.outside("step.prepare", step, move |result| {
            let result = result.map_err(io::Error::from).flatten().flatten();
            Input::Prepared { ticket, result }
        });
    }

    /// Takes note of a change to a volume's files that the server must be told of.
    pub(super) fn changed(&mut self, id: VolumeId) {
        if !self.tools.backend.must_be_told() {
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
        if !self.world.telling.begin() {
            return;
        }
        let last = self.world.telling.last();
        let backend = self.tools.backend.clone();
        let check = self.work(move || backend.check());
        let step = telling::tell(check, self.tools.helper.clone());
        self.outside("step.tell", step, move |result| {
            let result = result.unwrap_or_else(|died| Err(NotTold::Helper(HelperError::Died(died.to_string()))));
            Input::Told { last, result }
        });
    }

    /// Asks the server whether it answers at all. At most one question is under way.
    pub(super) fn greet_server(&mut self) {
        let Some(life) = self.world.handshakes.begin(self.tools.clock.now()) else { return };
        let step = self.tools.server.greet();
        self.outside("step.greet", step, move |greeted| {
            let greeted = greeted.unwrap_or_else(|died| Err((ProbeError::Died(died.to_string()), String::new())));
            Input::Greeted { life, greeted }
        });
    }
}
