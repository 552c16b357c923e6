//! Doing what was decided.

use jiff::{SignedDuration, Timestamp};

use super::decide::{Desired, Observed, Step, decide};
use super::input::{Asked, Done, Event, Input, Ticket};
use super::udevd::Udevd;
use super::world::{Projected, Trouble};
use super::{Engine, Look};
use crate::device::evidence::Evidence;
use crate::device::facts::{Facts, LinkTarget};
use crate::device::table::{Device, Heard, Reading};
use crate::device::{DevNum, monitor};
use crate::export::probe::{self, Endpoint, Goodbye, ProbeError, Served};
use crate::export::server::Server;
use crate::helper_client::HelperError;
use crate::identity::{Serial, VolumeId};
use crate::store::{Change, Projection, StoreError};
use crate::volume::{Entry, Reason, State};

/// First and longest wait before a failed step is tried again; it doubles in between.
const RETRY: (SignedDuration, SignedDuration) = (SignedDuration::from_millis(200), SignedDuration::from_secs(30));

/// How long until the list of disks is read again after that failed.
const LIST_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Volumes settled in one go when many wait.
const AT_ONCE: usize = 64;

/// The whole handshake, on a new connection.
async fn ask(server: &Endpoint, name: &str) -> Result<(Served, Goodbye), ProbeError> {
    probe::probe(probe::greet(server).await?, name).await
}

/// How long to wait after so many failed attempts.
fn pause(attempts: u32) -> SignedDuration {
    (RETRY.0 * (1 << attempts.min(10) >> 1)).min(RETRY.1)
}

/// Which disk: numbers are used again, sequence numbers are not.
pub(super) fn disk(device: &Device) -> (DevNum, u64) {
    (device.facts.devnum, device.facts.diskseq)
}

/// One entry for each step. Written with the store's copy: formatting on the way to `ready` would be felt.
pub(super) fn log(id: VolumeId, state: State, disk: Option<&Facts>, notes: &[Entry]) {
    for note in notes {
        tracing::info!(
            EVENT = &*note.event,
            VOLUME_ID = %id,
            SERIAL = %id.serial(),
            EXPORT = id.export_name(),
            STATE = %state,
            DEVNAME = disk.map(|disk| format!("/dev/{}", disk.name)),
            DISKSEQ = disk.map(|disk| disk.diskseq),
            AT = %note.at,
            "{} {}", note.event, note.detail
        );
    }
}

impl Engine {
    /// Brings one volume as far as it gets without waiting.
    pub(super) async fn settle(&mut self, id: VolumeId) {
        let now = Timestamp::now();
        let mut published = None;
        loop {
            let Some(volume) = self.world.volume(id) else { return };
            let present: Vec<&Device> = self.world.table.with_serial(volume.intent.serial()).collect();
            let retriggered = present.first().is_some_and(|device| volume.retriggered == Some(disk(device)));
            let helper_waits = volume.helper_again.is_none_or(|(at, _)| at > now);
            let decision = decide(
                &Desired { intent: &volume.intent, mapping: volume.mapping.as_ref() },
                &Observed {
                    now,
                    ground: &self.world.ground,
                    present: &present,
                    fresh: present.iter().all(|device| device.reading > volume.look_after),
                    published: volume.published,
                    retriggered: retriggered && helper_waits,
                    proven: volume.proven,
                    udevd_silent: matches!(self.world.ear.udevd_is(), Udevd::Silent(_)),
                    server: self.world.server.as_ref(),
                    trouble: volume.trouble.as_ref().map(|trouble| (&trouble.reason, trouble.again_at > now)),
                    standing: (volume.state, volume.reason.as_ref()),
                },
            );
            let (busy, leaving) = (volume.busy, volume.leaving);
            let heard = present.first().and_then(|device| device.heard_at);
            let this_disk = present.first().copied().map(disk);
            let several = present.len() > 1;
            if several {
                // Which of them the link leads to changes without a word about the one that is left.
                self.distrust(id);
            }
            if decision.revoke && !self.revoke(id, decision.reason.as_ref()) {
                let stuck = self.world.volume(id).and_then(|volume| volume.trouble.as_ref());
                let stuck = stuck.map(|trouble| trouble.reason.clone());
                if !leaving {
                    self.stand(id, decision.state, stuck);
                }
                break;
            }
            if leaving {
                return self.go_on_leaving(id);
            }
            if busy {
                // The step under way comes back as an input and settles again; only what is known to be wrong shows now.
                if decision.revoke {
                    self.stand(id, decision.state, decision.reason);
                }
                return;
            }
            self.stand(id, decision.state, decision.reason);
            match decision.step {
                None => break,
                Some(Step::Look(devnum)) => {
                    let after = self.world.volume(id).map_or(0, |volume| volume.look_after);
                    if self.looks.get(&devnum).is_none_or(|look| look.reading <= after) {
                        self.look(devnum, Heard::Asked);
                    }
                    break;
                }
                Some(Step::Retrigger(serial)) => {
                    self.retrigger(id, serial, this_disk);
                    break;
                }
                // First begun, then told: what is slow is not to wait for words.
                Some(Step::Record(evidence)) => {
                    self.record(id, evidence.clone()).await;
                    if let Some(at) = heard {
                        self.note_at(id, at, "heard", String::new());
                    }
                    let detail =
                        format!("{} diskseq {} size {}", evidence.devnum, evidence.diskseq, evidence.size_bytes);
                    self.note_at(id, evidence.at, "proven", detail);
                    return;
                }
                Some(Step::Publish(evidence)) => published = self.publish(id, &evidence).or(published),
                Some(Step::Probe(evidence)) => {
                    self.probe(id, evidence);
                    return self.note_published(id, published);
                }
            }
        }
        self.note_published(id, published);
        self.rest(id).await;
    }

    /// Tells the store what happened and sets the clock, once a volume waits for nothing but events.
    pub(super) async fn rest(&mut self, id: VolumeId) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let deadline = volume.intent.deadline().filter(|_| volume.state == State::Waiting);
        let now = Timestamp::now();
        let again = volume.trouble.as_ref().map(|trouble| trouble.again_at).filter(|at| *at > now);
        let helper = volume.helper_again.map(|(at, _)| at).filter(|at| *at > now);
        let wake = [again, helper, deadline].into_iter().flatten().min();
        let mut changes = Vec::new();
        if std::mem::take(&mut volume.unwritten) {
            changes.push(Change::Stand(id, volume.state, volume.reason.clone()));
        }
        let status = match volume.state {
            State::Ready => Some("active"),
            State::Exporting => Some("pending"),
            _ => None,
        };
        if volume.projected != Projected::As(status) {
            volume.projected = Projected::As(status);
            let mapping = volume.mapping.as_ref().filter(|_| status.is_some());
            changes.push(Change::Project(Projection {
                volume: id,
                vm_id: volume.intent.vm_id.clone(),
                at: now,
                mapping: mapping.map(|mapping| (mapping.link.clone(), mapping.size_bytes)),
                export_status: status,
            }));
        }
        self.world.set_wake(id, wake);
        self.post(id, changes).await;
    }

    /// Hands changes and the unwritten notes to the store; nobody waits for them.
    pub(super) async fn post(&mut self, id: VolumeId, mut changes: Vec<Change>) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let notes = std::mem::take(&mut volume.notes);
        let state = volume.state;
        let disk = self.world.table.with_serial(id.serial()).next().map(|device| &device.facts);
        log(id, state, disk, &notes);
        changes.extend(notes.into_iter().map(|entry| Change::Note(id, entry)));
        if !changes.is_empty() && self.tools.store.post(changes).await.is_err() {
            tracing::error!(VOLUME_ID = %id, "the store has ended; the volume's story is not kept");
        }
    }

    /// Notes where a volume stands, and tells everybody when that has changed.
    pub(super) fn stand(&mut self, id: VolumeId, state: State, reason: Option<Reason>) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        if volume.state == state && volume.reason == reason {
            return;
        }
        let late = state == State::Matched
            && volume.mapping.is_none()
            && volume.intent.deadline().is_some_and(|deadline| deadline <= Timestamp::now());
        let silent = volume.state != state && matches!(state, State::Matched | State::Exporting) && reason.is_none();
        volume.reason = reason;
        volume.since = Timestamp::now();
        volume.unwritten = true;
        let detail = volume.reason.as_ref().map(|reason| format!("{}: {}", reason.code, reason.message));
        self.world.set_state(id, state);
        if late {
            self.note(id, "late", "the disk came after the deadline".to_owned());
        }
        // The steps between say the same with more to it: proven, recorded, published.
        if !silent {
            self.note(id, state.as_str(), detail.unwrap_or_default());
        }
    }

    pub(super) fn note(&mut self, id: VolumeId, event: &'static str, detail: String) {
        self.note_at(id, Timestamp::now(), event, detail);
    }

    fn note_at(&mut self, id: VolumeId, at: Timestamp, event: &'static str, detail: String) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let serial = volume.intent.serial();
        let (state, reason) = (volume.state, volume.reason.clone());
        volume.notes.push(Entry { at, event: event.into(), detail: detail.clone() });
        self.tell(Event { id: 0, at, volume_id: id, serial, event: event.into(), detail, state, reason });
    }

    pub(super) fn tell(&mut self, mut event: Event) {
        self.event_id += 1;
        event.id = self.event_id;
        // Nobody listening is fine.
        if let Some(events) = &self.events {
            let _ = events.send(event.into());
        }
    }

    /// A step failed: say why, and try again later.
    fn trouble(&mut self, id: VolumeId, reason: Reason) {
        let Some(volume) = self.world.volume_mut(id) else { return };
        let attempts = volume.trouble.as_ref().map_or(0, |trouble| trouble.attempts) + 1;
        let wait = pause(attempts);
        tracing::warn!(VOLUME_ID = %id, CODE = %reason.code, attempts, "{}", reason.message);
        volume.trouble = Some(Trouble { reason, attempts, again_at: Timestamp::now() + wait });
    }

    // ---- reading disks

    /// Reads one disk outside; it comes back as [`Input::Looked`].
    pub(super) fn look(&mut self, devnum: DevNum, heard: Heard) {
        if let Some(look) = self.looks.get_mut(&devnum) {
            // udev's word counts for more than the kernel's, which counts for more than none.
            look.again = look.again.max(Some(heard));
            return;
        }
        let reading = self.next_reading();
        self.looks.insert(devnum, Look { reading, again: None });
        let (reader, back) = (self.reader.clone(), self.back.clone());
        tokio::spawn(async move {
            let facts = reader.read(devnum).await;
            let _ = back.send(Input::Looked { devnum, heard, reading, facts }).await;
        });
    }

    /// The disk that was known under this number is not there any more: what it served goes at once, whatever the disk
    /// that may have its number now says of itself, and however long it takes to say it.
    pub(super) async fn drop_exchanged(&mut self, devnum: DevNum) {
        let known = self.world.table.diskseq(devnum);
        if known.is_some_and(|diskseq| !self.tools.sysfs.still(devnum, diskseq)) {
            let reading = self.next_reading();
            let touched = self.world.table.update(devnum, None, reading, Heard::Asked);
            self.settle_serials(touched).await;
        }
    }

    /// Reads all disks outside; they come back as [`Input::Scanned`].
    pub(super) fn scan(&mut self, reason: &'static str, done: Option<Done>) {
        let reading = self.next_reading();
        let (reader, back) = (self.reader.clone(), self.back.clone());
        tokio::spawn(async move {
            let facts = reader.read_all().await;
            let _ = back.send(Input::Scanned { reading, facts, reason, done }).await;
        });
    }

    pub(super) async fn scanned(
        &mut self,
        reading: Reading,
        facts: std::io::Result<Vec<Facts>>,
        reason: &'static str,
        done: Option<Done>,
    ) {
        match facts {
            Ok(facts) => {
                tracing::info!(reason, disks = facts.len(), "read all disks");
                self.world.table.replace(facts, reading);
                self.world.resyncs.count += 1;
                self.world.resyncs.last_reason = reason;
                self.world.resyncs.last_at = Some(Timestamp::now());
                let ids = self.world.ids();
                self.settle_some(ids, done).await;
            }
            Err(error) => {
                tracing::error!(%error, reason, "cannot read the list of disks; trying again shortly");
                done.map(|done| done.send(Err(error.to_string())));
                // What was lost is still lost: until this succeeds there is a timer.
                let back = self.back.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(LIST_AGAIN).await;
                    back.send(monitor::Heard::Lost("the list of disks could not be read").into()).await
                });
            }
        }
    }

    /// Settles the first of these, and the rest in turn with other inputs: ten thousand volumes whose disks are away must
    /// keep nobody waiting. Says `done` after the last.
    pub(super) async fn settle_some(&mut self, mut ids: Vec<VolumeId>, done: Option<Done>) {
        let here = |id: &VolumeId| self.world.table.with_serial(id.serial()).next().is_some();
        let first = ids.iter().take_while(|id| here(id)).count().max(AT_ONCE).min(ids.len());
        for id in ids.drain(..first) {
            self.settle(id).await;
        }
        if ids.is_empty() {
            done.map(|done| done.send(Ok(())));
            return;
        }
        let back = self.back.clone();
        tokio::spawn(async move { back.send(Input::Settle { ids, done }).await });
    }

    pub(super) fn next_reading(&mut self) -> Reading {
        self.readings += 1;
        self.readings
    }

    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epochs += 1;
        self.epochs
    }

    /// From now on only a new reading of this volume's disk counts.
    pub(super) fn distrust(&mut self, id: VolumeId) {
        let readings = self.readings;
        if let Some(volume) = self.world.volume_mut(id) {
            volume.look_after = readings;
        }
    }

    // ---- the steps

    /// What comes of it is an event of udev's.
    fn retrigger(&mut self, id: VolumeId, serial: Serial, disk: Option<(DevNum, u64)>) {
        if let (Some(ticket), Some(volume)) = (self.world.ticket(id), self.world.volume_mut(id)) {
            volume.retriggered = disk;
            self.ask_for_retrigger(serial, Asked::Mark(ticket));
        }
    }

    /// Has udev look at the disk of this serial again, outside.
    pub(super) fn ask_for_retrigger(&self, serial: Serial, asked: Asked) {
        let (helper, back) = (self.tools.helper.clone(), self.back.clone());
        tokio::spawn(async move {
            let answer = helper.retrigger(serial).await;
            back.send(Input::Helper { asked, answer }).await
        });
    }

    /// Has the disks this host lives on written down, outside. Until then, what is mounted or swapped to is refused anyway.
    pub(super) fn ask_for_host_disks(&self) {
        let (helper, back) = (self.tools.helper.clone(), self.back.clone());
        tokio::spawn(async move {
            let answer = helper.host_disks().await;
            back.send(Input::Helper { asked: Asked::HostDisks, answer }).await
        });
    }

    pub(super) async fn helper_answered(&mut self, asked: Asked, answer: Result<(), HelperError>) {
        if let Err(error) = &answer {
            tracing::warn!(?asked, "{error}");
        }
        let marked = answer.is_ok();
        self.world.helper = Some(match answer {
            // A refusal is an answer.
            Ok(()) | Err(HelperError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
        let Asked::Mark(ticket) = asked else { return };
        if self.world.holds(ticket)
            && let Some(volume) = self.world.volume_mut(ticket.volume)
        {
            let attempts = volume.helper_again.map_or(0, |(_, attempts)| attempts) + 1;
            volume.helper_again = (!marked).then(|| (Timestamp::now() + pause(attempts), attempts));
            self.rest(ticket.volume).await;
        }
    }

    async fn record(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        if let Some(volume) = self.world.volume_mut(id) {
            volume.busy = true;
        }
        let back = self.back.clone();
        let begun = self.tools.store.begin(vec![Change::Map(id, evidence.clone())]).await;
        tokio::spawn(async move {
            let result = match begun {
                Ok(answer) => answer.await.unwrap_or(Err(StoreError::Closed)),
                Err(error) => Err(error),
            };
            let _ = back.send(Input::Recorded { ticket, evidence, result }).await;
        });
    }

    pub(super) async fn recorded(&mut self, ticket: Ticket, evidence: Evidence, result: Result<(), StoreError>) {
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
                // A projection of the mapping before says something else.
                volume.projected = Projected::Outdated;
                self.note(id, "recorded", String::new());
            }
            Err(error) => {
                let hint = "Free space or repair the file; the mapping is recorded as soon as that is possible.";
                self.trouble(id, Reason::new("STORE_FAILED", error.to_string(), hint));
            }
        }
        self.settle(id).await;
    }

    /// Makes the link. Says when, if it was made.
    fn publish(&mut self, id: VolumeId, evidence: &Evidence) -> Option<Timestamp> {
        // The commit took a moment: the last look before the link is made.
        let sysfs = &self.tools.sysfs;
        let leads_there = LinkTarget::Device(evidence.devnum, self.world.ground.nbd_gid);
        if !sysfs.still(evidence.devnum, evidence.diskseq) || sysfs.resolve(&evidence.link) != leads_there {
            self.distrust(id);
            return None;
        }
        match self.tools.folder.publish(id, &evidence.link) {
            Ok(()) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.published = true;
                    volume.proven = false;
                    volume.trouble = None;
                }
                Some(Timestamp::now())
            }
            Err(error) => {
                let message = format!("the export could not be made: {error}");
                let hint =
                    "Check that the folder of exports exists and belongs to attachd (systemd-tmpfiles --create).";
                self.trouble(id, Reason::new("EXPORT_FOLDER", message, hint));
                None
            }
        }
    }

    fn note_published(&mut self, id: VolumeId, at: Option<Timestamp>) {
        let mapping = self.world.volume(id).and_then(|volume| volume.mapping.as_ref());
        if let (Some(at), Some(link)) = (at, mapping.map(|mapping| mapping.link.clone())) {
            self.note_at(id, at, "published", link);
        }
    }

    /// Takes the export away. False when that failed; it is tried again.
    pub(super) fn revoke(&mut self, id: VolumeId, reason: Option<&Reason>) -> bool {
        let epoch = self.next_epoch();
        match self.tools.folder.revoke(id) {
            Ok(()) => {
                if let Some(volume) = self.world.volume_mut(id) {
                    volume.published = false;
                    volume.proven = false;
                    volume.epoch = epoch;
                    volume.trouble = None;
                }
                // Whatever made it go, what was read before counts no more.
                self.distrust(id);
                self.note(id, "revoked", reason.map(|reason| reason.message.clone()).unwrap_or_default());
                true
            }
            Err(error) => {
                let message = format!("the export could not be taken away: {error}");
                let hint = "Remove it by hand, or stop the NBD server: it may serve a disk that is not the volume's.";
                self.trouble(id, Reason::new("EXPORT_STUCK", message, hint));
                false
            }
        }
    }

    fn probe(&mut self, id: VolumeId, evidence: Evidence) {
        let Some(ticket) = self.world.ticket(id) else { return };
        let Some(volume) = self.world.volume_mut(id) else { return };
        volume.busy = true;
        let epoch = volume.epoch;
        let server = self.tools.server.clone();
        let (back, sysfs) = (self.back.clone(), self.tools.sysfs.clone());
        tokio::spawn(async move {
            let name = id.export_name();
            let (mut result, goodbye) = match ask(&server, &name).await {
                Ok((served, goodbye)) => (Ok(served), Some(goodbye)),
                Err(error) => (Err(error), None),
            };
            let there = |target| matches!(target, LinkTarget::Device(devnum, _) if devnum == evidence.devnum);
            if result.is_ok()
                && !(sysfs.still(evidence.devnum, evidence.diskseq) && there(sysfs.resolve(&evidence.link)))
            {
                result = Err(ProbeError::Exchanged(name));
            }
            let _ = back.send(Input::Probed { ticket, epoch, evidence, result }).await;
            // The engine first: closing the connection wakes the server's threads.
            tokio::task::yield_now().await;
            drop(goodbye);
        });
    }

    pub(super) async fn probed(
        &mut self,
        ticket: Ticket,
        epoch: u64,
        evidence: &Evidence,
        result: Result<Served, ProbeError>,
    ) {
        let id = ticket.volume;
        if !self.world.holds(ticket) {
            return;
        }
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
                    let hint = "It is tried again by itself; if it lasts, restart the NBD server.";
                    self.not_this(id, Reason::new("SIZE_DIFFERS", message, hint));
                }
                Err(error @ ProbeError::Exchanged(_)) => {
                    let hint = "The disk that is there now decides; if it lasts, run `attachctl resync`.";
                    self.not_this(id, Reason::new("DISK_EXCHANGED", error.to_string(), hint));
                }
                Err(error) => {
                    let code = if error.is_server() { "BACKEND_DOWN" } else { "EXPORT_REFUSED" };
                    let hint = if error.is_server() {
                        "Check the NBD server's unit and address; the export is proven again by itself."
                    } else {
                        "Check that the NBD server's user may open the disk (its node's group) and serves attachd's folder."
                    };
                    self.trouble(id, Reason::new(code, error.to_string(), hint));
                }
            }
        }
        self.settle(id).await;
    }

    /// What the server serves under this name is not the disk on record: it goes, and is tried again later.
    fn not_this(&mut self, id: VolumeId, reason: Reason) {
        if self.revoke(id, Some(&reason)) {
            self.trouble(id, reason);
        }
    }

    // ---- the server and its folder

    pub(super) async fn server_changed(&mut self, server: Server) {
        if self.world.server.as_ref() == Some(&server) {
            return;
        }
        match &server {
            Server::Up { pid } => tracing::info!(pid, "the NBD server is up"),
            Server::Down { why } => tracing::warn!(why, "the NBD server is down"),
        }
        // At the start everything has just been read.
        let up_again = self.world.server.is_some() && matches!(server, Server::Up { .. });
        self.world.server = Some(server);
        for id in self.world.ids() {
            let epoch = self.next_epoch();
            let Some(volume) = self.world.volume_mut(id) else { continue };
            volume.proven = false;
            volume.trouble = None;
            volume.epoch = epoch;
            if volume.published && up_again {
                self.distrust(id);
            }
            self.settle(id).await;
        }
    }

    /// Puts right what was added to the claims or taken from them by hand.
    pub(super) fn restore_claims(&mut self) {
        let leaving = |id: &VolumeId| self.world.volume(*id).is_some_and(|volume| volume.leaving);
        let (going, wanted): (Vec<VolumeId>, Vec<VolumeId>) = self.world.ids().into_iter().partition(leaving);
        // Nothing else can begin while this runs.
        let under_way = going.into_iter().chain(self.admissions.keys().copied());
        match self.tools.claims.restore(wanted.into_iter(), under_way) {
            Ok(repaired) => repaired.iter().for_each(|claim| tracing::warn!("the claim {claim}; repaired")),
            Err(error) => tracing::error!(%error, "the claims cannot be put right"),
        }
    }

    /// Compares the folder with what is known: unknown exports go, known ones count as published.
    pub(super) fn adopt_exports(&mut self) {
        let contents = match self.tools.folder.list() {
            Ok(contents) => contents,
            Err(error) => return tracing::error!(%error, "cannot read the folder of exports"),
        };
        for name in &contents.foreign {
            tracing::warn!(name, "the folder of exports holds something attachd did not make; the server offers it");
        }
        self.world.foreign_exports = contents.foreign;
        for id in self.world.ids() {
            let Some(volume) = self.world.volume_mut(id) else { continue };
            let link = contents.links.get(&id);
            volume.published =
                !volume.leaving && link.is_some() && link == volume.mapping.as_ref().map(|mapping| &mapping.link);
            volume.proven &= volume.published;
        }
        for id in contents.links.keys() {
            if !self.world.volume(*id).is_some_and(|volume| volume.published) {
                tracing::warn!(VOLUME_ID = %id, "an export that is on no record is taken away");
                if let Err(error) = self.tools.folder.revoke(*id) {
                    tracing::error!(VOLUME_ID = %id, %error, "cannot take the export away: remove it by hand");
                }
            }
        }
    }
}
