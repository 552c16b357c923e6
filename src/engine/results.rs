//! Handles the results of steps that ran outside. Each result is an input.

use std::io;

use super::answers::Clients;
use super::core::Engine;
use super::decide::unread;
use super::departure::Removed;
use super::errands::{Asked, Unmarked, mark_again};
use super::input::Input;
use super::leaving::Outcome;
use super::telling::{FileChange, NotTold};
use super::tools::{AllDisks, Greeted};
use super::volume::Ticket;
use super::waiting::Round;
use crate::claims::Restored;
use crate::device::evidence::Evidence;
use crate::device::facts::Facts;
use crate::device::found::Found;
use crate::device::table::{Heard, Reading};
use crate::device::{DevNum, monitor};
use crate::export::probe::{ProbeError, Served};
use crate::export::server::Server;
use crate::helper_client::{Exclusive, HelperError};
use crate::identity::{Serial, VolumeId};
use crate::reason::{Case, Code, StoryStep};
use crate::volume::{Reason, State};

/// How long until the list of disks is read again after a failure.
const LIST_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

impl Engine {
    /// Continues after one disk was read.
    pub(super) fn looked(&mut self, devnum: DevNum, reading: Reading, found: Found<Facts>) {
        let ended = self.world.looks.ended(devnum, &found, self.steps.tools.clock.now());
        let concerned = if ended.turned { self.world.mapped_to(devnum) } else { Vec::new() };
        let in_vain = |engine: &Self| engine.world.table.of(devnum).and_then(|disk| engine.world.marked_in_vain(disk));
        let before = in_vain(self);
        let touched = self.world.table.update(devnum, found, reading, ended.heard);
        if let Some(reasons) = ended.more {
            self.look_again(devnum, reasons);
        }
        // udev had read the claim before a withdrawal removed it. udev is asked once, because rules of another
        // program may set the same mark.
        if let Some(serial) = in_vain(self).filter(|serial| before != Some(*serial)) {
            self.unmark(serial);
        }
        let serial = self.world.table.of(devnum).and_then(|disk| disk.facts.serial());
        if serial.and_then(|serial| self.world.volume_of(serial)).is_none() {
            // A loop device, LVM, MD or crypt may be on one of attachd's disks.
            self.steps.tools.stacks.notify_one();
        }
        self.settle_serials(touched);
        self.settle_some(concerned, None);
    }

    /// Continues after every disk was read, or after the list could not be read.
    pub(super) fn scanned(
        &mut self,
        reading: Reading,
        all: std::io::Result<AllDisks>,
        reason: &'static str,
        round: Round,
    ) {
        match all {
            Ok(all) => {
                let disks = all.iter().filter(|(_, found)| found.is_here()).count();
                tracing::info!(reason, disks, "read all disks");
                let now = self.steps.tools.clock.now();
                for (devnum, found) in &all {
                    self.world.looks.learn(*devnum, found, &[Heard::Look], now);
                }
                let at_work = || self.steps.tools.disks.udevd_is_at_work();
                self.world.ear.look_for_missed(at_work);
                let ear = &self.world.ear;
                self.world.table.replace(all, reading, |devnum| ear.is_held_up_at(devnum));
                self.unmark_unwanted();
                self.world.resyncs.count += 1;
                self.world.resyncs.last_reason = reason;
                self.world.resyncs.last_at = Some(self.steps.tools.clock.wall());
                let ids = self.world.ids();
                self.settle_some(ids, Some(round));
            }
            Err(error) => {
                tracing::error!(%error, reason, "cannot read the list of disks; trying again shortly");
                self.waiting.end(round, &Err(error.to_string()));
                // Lost events are still lost, so a timer runs until this succeeds.
                self.steps.later(LIST_AGAIN, monitor::Notice::Lost("the list of disks could not be read").into());
            }
        }
    }

    /// Continues after the claims were restored, or after that failed.
    pub(super) fn claims_restored(&mut self, result: &io::Result<Restored>, round: Round) {
        self.world.claimed.learn(result, self.steps.tools.clock.now());
        self.world.claimed.upkeep.ended();
        if result.as_ref().is_ok_and(|restored| !restored.removed.is_empty()) {
            // udev has read these claims until now.
            self.unmark_unwanted();
        }
        self.waiting.end(round, &Ok(()));
        if self.world.claimed.upkeep.again() {
            self.restore_claims(None);
        }
    }

    /// Continues after an export was prepared, or after that failed.
    pub(super) fn prepared(&mut self, ticket: Ticket, result: &io::Result<bool>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let now = self.steps.tools.clock.now();
        let Some(volume) = self.world.volume_mut(id) else { return };
        let outcome = volume.preparation.ended(result, volume.judged, now);
        if let Some(error) = outcome.told {
            tracing::warn!(VOLUME_ID = %id, error, "the export cannot be prepared");
        }
        if let Ok(new) = result {
            if volume.trouble.as_ref().is_some_and(|trouble| trouble.reason.code == Code::ExportFolder) {
                volume.trouble = None;
            }
            if *new {
                self.changed(id);
            }
        }
        if outcome.again {
            self.steps.prepare(ticket);
        }
        self.settle(id);
    }

    /// Continues after the server was notified, or after that failed.
    pub(super) fn told(&mut self, last: Option<FileChange>, result: &Result<(), NotTold>) {
        let told = self.world.telling.told(last, result);
        if let Some(wait) = told.later {
            self.steps.later(wait, Input::TellAgain);
        }
        if told.again {
            self.tell_server();
        }
        if let Err(why) = result {
            for id in &told.waiting {
                self.world.trouble(*id, why.reason(self.steps.tools.server_unit));
            }
        }
        self.settle_some(told.waiting.into_iter().collect(), None);
    }

    /// Notifies the server again when the timer ends.
    pub(super) fn tell_again(&mut self) {
        let up = self.server_is_up();
        if self.world.telling.is_due(up) {
            self.tell_server();
        }
    }

    /// Continues after the helper answered or failed.
    pub(super) fn helper_answered(&mut self, asked: Asked, answer: &Result<(), HelperError>) {
        if let Err(error) = &answer {
            tracing::warn!(?asked, "{error}");
        }
        match asked {
            Asked::Mark(ticket) => self.marked(ticket, answer.is_ok()),
            Asked::Unmark(serial, attempts) => match self.world.errands.unmarked(serial, attempts, answer) {
                Unmarked::Ask(asked) => self.steps.retrigger(serial, asked),
                Unmarked::Wait(wait, attempts) => self.steps.later(wait, Input::UnmarkAgain(serial, attempts)),
                Unmarked::Over => {}
            },
            Asked::HostDisks => {}
        }
    }

    fn marked(&mut self, ticket: Ticket, answered: bool) {
        let owes = self.world.udevd_owes(ticket.volume.serial());
        let now = self.steps.tools.clock.now();
        if self.world.holds(ticket)
            && let Some(volume) = self.world.volume_mut(ticket.volume)
        {
            let attempts = volume.helper_again.map_or(0, |(_, attempts)| attempts) + 1;
            let refused = volume.state == State::Refused;
            if answered && !refused {
                // If the disk is refused later for a reason that udev can repair, udev is asked again.
                volume.retriggered = None;
            }
            let wait = mark_again(answered, attempts, refused, owes);
            volume.helper_again = wait.map(|wait| (now + wait, attempts));
            self.story.rest(&mut self.world, ticket.volume);
        }
    }

    /// Checks whether a mark is removed.
    pub(super) fn unmark_again(&mut self, serial: Serial, attempts: u32) {
        let world = &mut self.world;
        let marked = world.table.with_serial(serial).any(|disk| world.marked_in_vain(disk).is_some());
        let owes = world.udevd_owes(serial);
        if let Some(asked) = world.errands.due(serial, attempts, marked, owes) {
            self.steps.retrigger(serial, asked);
        }
    }

    /// Continues after the server answered or failed to answer.
    pub(super) fn greeted(&mut self, life: u64, greeted: Greeted) {
        if !self.world.handshakes.greeted(life, greeted, self.steps.tools.clock.now()) {
            return;
        }
        if let Some(wait) = self.world.handshakes.postpone() {
            self.steps.later(wait, Input::GreetAgain { life });
        }
        self.judge_server();
        self.world.handshakes.tell();
    }

    /// Asks a silent server again.
    pub(super) fn greet_again(&mut self, life: u64) {
        if self.world.handshakes.is_due(life) {
            self.greet_server();
        }
    }

    /// Acts on a change of the server's state.
    pub(super) fn judge_server(&mut self) {
        let server = self.world.handshakes.judged();
        if self.world.server == server {
            return;
        }
        match &server {
            Some(Server::Up { pid }) => tracing::info!(pid, "the NBD server is up"),
            Some(Server::Silent { pid, why }) => tracing::warn!(pid, why, "the NBD server runs, but does not answer"),
            Some(Server::Down { why }) => tracing::warn!(why, "the NBD server is down"),
            None => {}
        }
        // At the start everything has just been read.
        let up_again = self.world.server.is_some() && matches!(server, Some(Server::Up { .. }));
        self.world.server = server;
        if self.server_is_up() && self.steps.tools.backend.must_be_told() {
            self.world.telling.forget();
            self.tell_server();
        }
        // All volumes are changed in one turn, so that an earlier server's proof is never taken for this one's.
        let (epoch, last) = (self.next_epoch(), self.world.looks.last());
        for volume in self.world.volumes_mut() {
            volume.disprove(epoch);
            if up_again && volume.published {
                volume.look_after = last;
            }
        }
        self.settle_some(self.world.ids(), None);
    }

    /// Continues after a mapping became durable, or after that failed.
    pub(super) fn recorded(&mut self, ticket: Ticket, evidence: Evidence, result: Result<(), Reason>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.busy = false;
        match result {
            Ok(()) => {
                volume.mapping = Some(evidence);
                volume.trouble = None;
                self.story.note(&mut self.world, id, StoryStep::Recorded, String::new());
            }
            Err(error) => {
                self.world.trouble(id, error);
            }
        }
        self.settle(id);
    }

    /// Continues when it is known whether a process has the disk open exclusively.
    pub(super) fn tried(&mut self, ticket: Ticket, evidence: &Evidence, answer: Result<Exclusive, HelperError>) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
        let disk = (evidence.devnum, evidence.diskseq);
        let free = matches!(answer, Ok(Exclusive::Free { diskseq }) if diskseq == evidence.diskseq);
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = false;
            volume.free = free.then_some(disk);
            // Another failure, for example of the folder of exports, is not over with that.
            volume.trouble = volume.trouble.take().filter(|trouble| !free || trouble.disk.is_none());
        }
        if let Some(reason) = why_not(evidence, answer).filter(|_| !free) {
            self.world.trouble_with(id, reason, disk);
        }
        self.settle(id);
        // In any case the next export needs another answer.
        if let Some(volume) = self.world.volume_mut(id) {
            volume.free = None;
        }
    }

    /// Continues after a handshake has ended.
    pub(super) fn probed(
        &mut self,
        ticket: Ticket,
        epoch: u64,
        evidence: &Evidence,
        result: Result<Served, ProbeError>,
    ) {
        let id = ticket.volume;
        if result.is_ok() {
            self.world.handshakes.heard(self.steps.tools.clock.now());
        }
        if !self.world.holds(ticket) {
            return;
        }
        let unit = self.steps.tools.server_unit;
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.busy = false;
        if volume.epoch == epoch && volume.published {
            match result {
                Ok(served) if served.size == evidence.size_bytes => {
                    volume.proven = true;
                    volume.trouble = None;
                }
                Ok(served) => {
                    let message =
                        format!("the NBD server serves {} bytes, the disk has {}", served.size, evidence.size_bytes);
                    self.not_this(id, Reason::about(Code::SizeDiffers, unit, message));
                }
                Err(error @ ProbeError::Exchanged(_)) => {
                    self.not_this(id, Reason::new(Code::DiskExchanged, error.to_string()));
                }
                // The handshake is repeated when the disk can be read.
                Err(ProbeError::Unread(_, why)) => {
                    self.world.trouble(id, unread(&format!("device {}", evidence.devnum), &why));
                }
                Err(error) if error.is_server() => {
                    self.world.trouble(id, Reason::about(Code::BackendDown, unit, error.to_string()));
                    self.greet_server();
                }
                Err(error) => {
                    // The server may never have noticed the new file: a file that disappears while it reads the
                    // folder stops the reading.
                    self.changed(id);
                    self.world.trouble(id, Reason::about(Code::ExportRefused, unit, error.to_string()));
                }
            }
        }
        self.settle(id);
    }

    /// Revokes an export whose served disk is not the recorded one. The export is retried later.
    fn not_this(&mut self, id: VolumeId, reason: Reason) {
        if self.revoke(id, Some(&reason)) {
            self.world.trouble(id, reason);
        }
    }

    /// Continues when the clients are known.
    pub(super) fn clients_known(&mut self, ticket: Ticket, epoch: u64, clients: Clients) {
        let Some(volume) = self.world.volume(ticket.volume) else { return };
        let current = !volume.published && volume.epoch == epoch;
        self.gone_on(ticket, Outcome::Clients { clients, current });
    }

    /// Passes the result of a step to a volume that leaves, if the ticket is of its present life.
    pub(super) fn gone_on(&mut self, ticket: Ticket, outcome: Outcome) {
        if self.world.holds(ticket) && self.go_on(ticket.volume, outcome) {
            self.settle(ticket.volume);
        }
    }

    /// Lets the volume go even if something could not be removed. What remains belongs to no volume, and is removed
    /// as such.
    pub(super) fn unclaimed(&mut self, ticket: Ticket, removed: &Removed) {
        let id = ticket.volume;
        let section_came = self.world.volume(id).is_some_and(|volume| volume.departure.section_came);
        self.gone_on(ticket, Outcome::Unclaimed);
        if section_came {
            self.world.exported.upkeep.strangers(self.steps.tools.clock.now());
        }
        if let Err(error) = &removed.prepared {
            tracing::error!(VOLUME_ID = %id, %error, "what was prepared for the export could not be removed; it is tried again by itself");
            self.list_exports(None);
        }
        if let Err(error) = &removed.claim {
            tracing::error!(VOLUME_ID = %id, %error, "the claim could not be removed; it is tried again by itself");
            self.restore_claims(None);
        }
    }
}

/// Returns why the disk is not published if it was not shown to be free.
fn why_not(evidence: &Evidence, answer: Result<Exclusive, HelperError>) -> Option<Reason> {
    let devnum = evidence.devnum;
    let unknown = |why: String| {
        let message = format!("whether this host uses the disk {devnum} could not be found out: {why}");
        Reason::new(Code::UseUnknown, message)
    };
    match answer {
        Ok(Exclusive::Free { diskseq }) if diskseq == evidence.diskseq => None,
        Ok(Exclusive::Free { .. }) => Some(unknown("another disk has its number now".to_owned())),
        Ok(Exclusive::Used(who)) => Some(Reason::of_case_about(Case::UsedUnseen, &devnum.to_string(), who)),
        Err(error @ HelperError::Silent(..)) => {
            let message = format!("whether this host uses the disk {devnum} is not known: {error}");
            Some(Reason::new(Code::HelperSilent, message))
        }
        Err(HelperError::Refused { message, code }) => Some(unknown(format!("{message} ({code})"))),
        Err(HelperError::Died(why)) => Some(unknown(why)),
    }
}
