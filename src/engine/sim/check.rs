//! Checks what must hold after each step, and what state is reached when nothing fails for a while.

use super::moves;
use super::play::Play;
use crate::clock::{Clock, Steady};
use crate::device::DevNum;
use crate::engine::leaving::{Leaving, Seal};
use crate::engine::world::Volume;
use crate::export::server::Server;
use crate::identity::VolumeId;
use crate::volume::{By, Record, State};

/// How long nothing fails, in microseconds. The longest pause between two attempts is half a minute.
const CALM: u64 = 600_000_000;

/// The number of turns within which everything must come to rest.
const TURNS: u32 = 20_000;

impl Play {
    /// Returns the first violation.
    pub(super) fn check(&self) -> Option<String> {
        self.check_world().or_else(|| self.check_volumes())
    }

    /// Checks what holds whether the daemon runs or not.
    fn check_world(&self) -> Option<String> {
        let model = self.tool.model();
        for id in model.nbd.exports.keys() {
            if let Some((devnum, disk)) = model.nbd.opens(&model.host, *id)
                && disk.serial != id.serial()
            {
                return Some(format!("a client of {id} gets the disk {devnum} with the serial {}", disk.serial));
            }
            let sealed = model.store.records.get(id).and_then(|record| record.sealed);
            let excused = model.nbd.touched.contains(id) || model.nbd.stuck.contains(id);
            if let (Some(by @ By::Operation(_)), false) = (sealed, excused) {
                return Some(format!("{id} is sealed by {by:?} on record, and its export is there"));
            }
        }
        None
    }

    fn check_volumes(&self) -> Option<String> {
        let world = &self.daemon.as_ref()?.engine.world;
        world.volumes().find_map(|volume| {
            let why = self.check_volume(volume)?;
            Some(format!("{}, {}: {why}", volume.intent.volume, volume.state))
        })
    }

    fn check_volume(&self, volume: &Volume) -> Option<String> {
        let world = &self.daemon.as_ref()?.engine.world;
        let model = self.tool.model();
        let id = volume.intent.volume;
        let export = model.nbd.exports.get(&id);
        let touched = model.nbd.touched.contains(&id);
        let stuck = model.nbd.stuck.contains(&id);
        if volume.published != export.is_some() && !touched && !stuck {
            return Some(format!("it counts as published: {}, and is: {}", volume.published, export.is_some()));
        }
        let leaving = &volume.departure.leaving;
        let insisting = matches!(leaving, Leaving::Sealed(_, Seal::Insisting { .. }));
        if leaving.is_closed() && !insisting && export.is_some() && !touched && !stuck {
            return Some(format!("it is on its way out ({leaving:?}), and its export is there"));
        }
        let record = model.store.records.get(&id);
        if record.is_none() && !matches!(leaving, Leaving::Going { .. } | Leaving::Gone { .. }) {
            return Some("it is known and on no record".to_owned());
        }
        if !volume.busy && record.is_some_and(|record| record.mapping != volume.mapping) {
            return Some("another mapping is on record".to_owned());
        }
        if volume.published && !stuck && !touched && !insisting {
            let present: Vec<_> = world.table.with_serial(id.serial()).collect();
            let held = world.unread(volume, &present).is_some();
            let wrong = match (&present[..], &volume.mapping) {
                (_, None) => Some("no mapping"),
                ([], Some(_)) if !held => Some("no disk"),
                ([], _) => None,
                ([disk], Some(mapping)) => {
                    let used = disk.facts.identity.as_ref().is_ok_and(|identity| !identity.uses.is_empty());
                    let other = (disk.facts.devnum, disk.facts.diskseq) != (mapping.devnum, mapping.diskseq);
                    used.then_some("a disk that the host uses").or(other.then_some("another disk"))
                }
                _ => Some("several disks"),
            };
            if let Some(wrong) = wrong {
                return Some(format!("it is published, and the engine knows of {wrong}"));
            }
        }
        (volume.state == State::Ready).then(|| unproven(&model, world.server.as_ref(), volume)).flatten()
    }

    /// Checks, after the kernel's event of this number was handled, that no absent disk of it is served.
    pub(super) fn check_exchanged(&self, devnum: DevNum) {
        let Some(daemon) = &self.daemon else { return };
        let mut model = self.tool.model();
        if model.host.unreadable {
            return;
        }
        let now = model.host.disks.get(&devnum).map(|disk| disk.diskseq);
        for volume in daemon.engine.world.volumes() {
            let Some(mapping) = volume.mapping.as_ref().filter(|mapping| mapping.devnum == devnum) else { continue };
            let id = volume.intent.volume;
            let excused = model.nbd.stuck.contains(&id) || model.nbd.touched.contains(&id);
            if Some(mapping.diskseq) != now && model.nbd.exports.contains_key(&id) && !excused {
                model.violated(format!("{id} is served still after the event of its disk's going ({devnum})"));
            }
        }
    }

    /// Stops all failures and lets time pass. Everything must then reach its expected state.
    pub(super) fn calm(&mut self) {
        self.tell("calm");
        let keeps_held = self.chance(50);
        {
            let mut model = self.tool.model();
            model.calm = true;
            if !model.host.udevd.alive {
                model.host.udevd.alive = true;
            }
            model.host.udevd.held_up_at = None;
            model.host.unreadable = false;
            let model = &mut *model;
            for (devnum, disk) in &mut model.host.disks {
                disk.readable = super::host::Readable::Yes;
                // Exclusive use is not noticed while the disk is served, or is about to be.
                let served = model.nbd.exports.keys().any(|id| id.serial() == disk.serial);
                disk.held &= keeps_held && !served && !model.free.contains(&(*devnum, disk.diskseq));
            }
            model.nbd.broken = false;
            model.nbd.silent = false;
            model.no_threads = false;
            model.claims_broken = false;
            model.helper_is_away = false;
            model.store.set_failure(None);
            model.nbd.clients.clear();
            if !model.nbd.up {
                model.nbd.start();
            }
        }
        if self.daemon.is_none() && !self.start() {
            self.tool.model().violated("the daemon does not start although nothing is wrong".to_owned());
        } else if let Some(why) = self.come_to_rest().or_else(|| self.check_rest()) {
            self.tool.model().violated(why);
        }
        let mut model = self.tool.model();
        model.calm = false;
        let served = model.nbd.exports.keys().copied().filter(|id| model.nbd.opens(&model.host, *id).is_some());
        model.quiet = served.collect();
        model.nbd.touched.clear();
        model.nbd.stuck.clear();
        model.nbd.forget_old_proofs();
        drop(model);
        self.count("calm".to_owned());
    }

    /// Runs until nothing is left to do. Returns what never ends, if anything.
    fn come_to_rest(&mut self) -> Option<String> {
        let end = self.tool.micros() + CALM;
        for _ in 0..TURNS {
            if self.bring_forward() {
                continue;
            }
            match self.next_moment() {
                Some(next) if next <= end => self.pass(next),
                _ => return None,
            }
        }
        let world = &self.daemon.as_ref()?.engine.world;
        let volumes = world.volumes().map(|v| {
            format!("{} {} {:?} {:?}", v.intent.volume, v.state, v.intent.deadline, v.reason.as_ref().map(|r| r.code))
        });
        Some(format!("no rest after {TURNS} turns: {:?}", volumes.collect::<Vec<_>>()))
    }

    /// Does what can be done now. Returns false if there is nothing.
    fn bring_forward(&mut self) -> bool {
        if self.turn() || self.open(0) {
            return true;
        }
        let (store, heard) = {
            let model = self.tool.model();
            let store = !model.store.queue.is_empty() || !model.store.posted.is_empty();
            let queues = model.host.kernel.len() + model.host.udev.len() + model.host.udevd.queue.len();
            let folders = model.nbd.folders != crate::folder_watch::FolderChanges::default();
            (store, queues > 0 || folders || !model.host.use_changed.is_empty() || !model.hanging.is_empty())
        };
        if store {
            moves::commit(self);
            return true;
        }
        if heard {
            moves::kernel(self);
            moves::udevd(self);
            moves::udev(self);
            moves::folders(self);
            moves::uses(self);
            moves::late_answer(self);
            return true;
        }
        self.tell_of_server()
    }

    /// Checks the states after everything has come to rest.
    fn check_rest(&mut self) -> Option<String> {
        self.go_on();
        self.hear();
        if !self.calls.is_empty() {
            return Some("a caller is left without an answer".to_owned());
        }
        if !self.tasks.is_empty() {
            return Some("a step never ends".to_owned());
        }
        let engine = &self.daemon.as_ref()?.engine;
        if !engine.world.admissions.is_idle() || !engine.world.looks.is_idle() || !engine.world.errands.is_empty() {
            return Some("something is under way and never ends".to_owned());
        }
        let model = self.tool.model();
        let now = self.tool.steady();
        for (id, record) in &model.store.records {
            let Some(volume) = engine.world.volume(*id) else {
                return Some(format!("{id} is on record and not known"));
            };
            let expected = expected(&model.host, record, now);
            let code = volume.reason.as_ref().map(|reason| reason.code);
            if volume.state != expected {
                return Some(format!("{id} is {} ({code:?}) and should be {expected}", volume.state));
            }
            if (record.state, &record.reason) != (volume.state, &volume.reason) {
                return Some(format!("{id} is {} and on record {}", volume.state, record.state));
            }
            if record.sealed == Some(By::Withdrawal) {
                return Some(format!("{id} lingers although nobody is connected"));
            }
            let opens = model.nbd.opens(&model.host, *id).is_some();
            if (expected == State::Ready) != opens {
                return Some(format!("{id} should be {expected}, and a client gets it: {opens}"));
            }
            if !model.claims.contains(&id.serial()) {
                return Some(format!("{id} is not claimed"));
            }
        }
        let wanted = |id: &&VolumeId| !model.store.records.contains_key(id);
        if let Some(id) = model.nbd.exports.keys().chain(&model.nbd.sections).find(wanted) {
            return Some(format!("{id} is exported or prepared, and on no record"));
        }
        let serials: Vec<_> = model.store.records.keys().map(VolumeId::serial).collect();
        if let Some(serial) = model.claims.iter().find(|serial| !serials.contains(serial)) {
            return Some(format!("{serial} is claimed, and nobody wants it"));
        }
        for (devnum, disk) in &model.host.disks {
            if disk.group == super::host::NBD && !serials.contains(&disk.serial) {
                return Some(format!("{devnum} with {} is marked, and nobody wants it", disk.serial));
            }
        }
        let held = model.host.disks.values().any(|disk| disk.held && serials.contains(&disk.serial));
        let pending = engine.world.next_wake().map(|wake| self.tool.micros_at(wake));
        let deadline =
            |at: u64| {
                model.store.records.values().any(|record| {
                    record.intent.deadline.is_some_and(|deadline| deadline.as_micros().cast_unsigned() == at)
                })
            };
        if let Some(at) = pending.filter(|at| !held && !deadline(*at)) {
            return Some(format!("a timer is left that is no deadline: {at}, and it is {}", self.tool.micros()));
        }
        None
    }
}

/// Checks that each volume in the state `ready` was proven for its present link, in this or a later life of the
/// server.
fn unproven(model: &super::model::Model, server: Option<&Server>, volume: &Volume) -> Option<String> {
    let id = volume.intent.volume;
    let leaving = &volume.departure.leaving;
    let leaves = leaving.is_closed() && !matches!(leaving, Leaving::Sealed(_, Seal::Insisting { .. }));
    if !volume.published || !volume.proven || leaves {
        return Some("it is not published, not proven, or on its way out".to_owned());
    }
    let Some(Server::Up { pid: Some(life) }) = server else { return Some("no server is known to be up".to_owned()) };
    let Some(mapping) = &volume.mapping else { return Some("it has no mapping".to_owned()) };
    let export = match model.nbd.exports.get(&id) {
        _ if model.nbd.touched.contains(&id) || model.nbd.remade.contains(&id) => return None,
        Some(export) => export,
        None => return Some("it has no export".to_owned()),
    };
    let shows = |proof: &&super::server::Proof| {
        proof.made == export.made
            && proof.life >= u64::from(life.unsigned_abs())
            && (proof.diskseq, proof.size) == (mapping.diskseq, mapping.size_bytes)
    };
    let proofs = model.nbd.proofs.get(&id);
    if proofs.into_iter().flatten().any(|proof| shows(&proof)) {
        return None;
    }
    Some(format!("no handshake has shown it for its link {} in the server's life {life}: {proofs:?}", export.made))
}

/// Returns the expected state of a volume when nothing fails any more.
fn expected(host: &super::host::Host, record: &Record, now: Steady) -> State {
    if record.sealed.is_some() {
        return State::Detaching;
    }
    let disks: Vec<_> = host.with_serial(record.intent.serial()).map(|(_, disk)| disk).collect();
    match disks[..] {
        [] if record.mapping.is_some() => State::Lost,
        [] if record.intent.deadline.is_some_and(|deadline| deadline <= now) => State::Expired,
        [] => State::waiting_for(record.intent.origin),
        [disk] if disk.mounted || disk.held || record.intent.size_bytes.is_some_and(|size| disk.size < size) => {
            State::Refused
        }
        [_] => State::Ready,
        _ => State::Refused,
    }
}
