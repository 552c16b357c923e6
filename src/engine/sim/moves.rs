//! The actions that may happen next, and their weights.

use jiff::Timestamp;

use super::callers::{Call, operation};
use super::faults::{self, FAULTS};
use super::host::{Readable, Uevent};
use super::model::{VOLUMES, volume};
use super::play::Play;
use crate::clock::{Clock, Steady};
use crate::device::event::Origin;
use crate::device::host_changes::UseChanged;
use crate::device::monitor::Notice;
use crate::engine::Input;
use crate::engine::leaving::Call as Leave;
use crate::identity::VolumeId;
use crate::store::StoreError;
use crate::volume::{By, Intent, IntentOrigin};

pub(super) type Move = fn(&mut Play);

/// Actions that advance the work.
const WORK: &[(usize, Move)] = &[
    (300, turn),
    (240, gate),
    (90, commit),
    (70, kernel),
    (60, udev),
    (60, udevd),
    (20, folders),
    (20, uses),
    (20, watch),
    (10, late_answer),
    (60, |play| wait(play, 50_000)),
    (30, wait_for_the_next),
    (12, |play| wait(play, 20_000_000)),
];

/// Actions of the world.
const WORLD: &[(usize, Move)] =
    &[(30, plug), (20, pull), (10, exchange), (6, twin), (8, mount), (5, hold), (35, connect), (25, disconnect)];

/// Actions of callers.
const CALLERS: &[(usize, Move)] =
    &[(50, intend), (20, withdraw), (20, seal), (14, unseal), (12, release), (4, Play::resync), (6, doubt)];

const VOLUME_SIZES: [u64; 2] = [1 << 30, 2 << 30];

fn one_of(play: &mut Play, moves: &[(usize, Move)]) {
    let mut roll = play.roll(moves.iter().map(|(weight, _)| weight).sum());
    for (weight, act) in moves {
        if roll < *weight {
            return act(play);
        }
        roll -= weight;
    }
}

/// Runs the next step.
pub(super) fn any(play: &mut Play, step: u64) {
    if play.daemon.is_none() && play.chance(30) {
        play.start();
        return;
    }
    match play.roll(1000) {
        _ if step.is_multiple_of(500) => play.calm(),
        0..60 => one_of(play, WORLD),
        60..110 => one_of(play, CALLERS),
        110..140 => one_of(play, FAULTS),
        _ => work(play),
    }
}

/// Runs a work action that has an effect, if one is found within a few attempts.
fn work(play: &mut Play) {
    let before = play.trace.lines;
    for _ in 0..5 {
        one_of(play, WORK);
        if play.trace.lines > before {
            return;
        }
    }
}

/// Runs an action that needs no daemon.
pub(super) fn world(play: &mut Play) {
    let act =
        if play.chance(70) { WORLD } else { &[(1, udevd as Move), (1, faults::server_dies), (1, faults::udevd_dies)] };
    one_of(play, act);
}

fn turn(play: &mut Play) {
    play.turn();
}

fn watch(play: &mut Play) {
    play.tell_of_server();
}

fn gate(play: &mut Play) {
    let waiting = play.tool.model().gates.len();
    if waiting > 0 {
        let place = play.roll(waiting);
        // A late answer stays late for a while.
        if !play.tool.model().gates.is_late(place) || play.chance(30) {
            play.open(place);
        }
    }
}

pub(super) fn full() -> StoreError {
    StoreError::Full { path: "attachd.db".into(), message: "no room".into() }
}

/// Lets the store write what is queued, or fail.
pub(super) fn commit(play: &mut Play) {
    let mut model = play.tool.model();
    if model.store.queue.is_empty() && model.store.posted.is_empty() {
        return;
    }
    match model.store.failure.clone() {
        Some(StoreError::Silent { .. }) => return,
        Some(why) => {
            let (told, writes) = model.store.take(usize::MAX, false);
            model.store.put_back(told);
            for (_, answer) in writes {
                let _ = answer.send(Err(why.clone()));
            }
        }
        None => {
            let queued = model.store.queue.len();
            let writes = if queued == 0 { 0 } else { model.rng.usize(1..=queued) };
            let all = queued == 0 || model.rng.bool();
            let (told, writes) = model.store.take(writes, all);
            if model.chance(3) {
                model.store.put_back(told);
                model.store.set_failure(Some(full()));
                for (_, answer) in writes {
                    let _ = answer.send(Err(full()));
                }
            } else {
                model.commit(told);
                for (changes, answer) in writes {
                    model.commit(changes);
                    let _ = answer.send(Ok(()));
                }
            }
        }
    }
    drop(model);
    play.tell("the store had its turn");
    play.go_on();
}

/// Passes the next event of one socket to the engine.
fn receive(play: &mut Play, origin: Origin) {
    let at = play.tool.wall();
    let event = {
        let mut model = play.tool.model();
        let (twice, swapped) = (model.chance(4), model.chance(3));
        let queue = match origin {
            Origin::Kernel => &mut model.host.kernel,
            Origin::Udev => &mut model.host.udev,
        };
        if swapped && queue.len() > 1 {
            queue.swap(0, 1);
        }
        if twice { queue.front().copied() } else { queue.pop_front() }
    };
    if let Some(event) = event {
        hand_on(play, event, origin, at);
    }
}

pub(super) fn hand_on(play: &mut Play, event: Uevent, origin: Origin, at: Timestamp) {
    play.send(Notice::Event(event.received(origin, at)).into());
}

pub(super) fn kernel(play: &mut Play) {
    receive(play, Origin::Kernel);
}

pub(super) fn udev(play: &mut Play) {
    receive(play, Origin::Udev);
}

pub(super) fn udevd(play: &mut Play) {
    let event = {
        let mut model = play.tool.model();
        if !model.host.udevd.alive {
            return;
        }
        let claims = model.claims.clone();
        model.host.udevd_works(|serial| claims.contains(&serial))
    };
    if let Some(event) = event {
        play.tell(format!("udevd: {event:?}"));
    }
}

pub(super) fn folders(play: &mut Play) {
    let changes = std::mem::take(&mut play.tool.model().nbd.folders);
    if changes != crate::folder_watch::FolderChanges::default() {
        play.send(changes.into());
    }
}

pub(super) fn uses(play: &mut Play) {
    let changed = std::mem::take(&mut play.tool.model().host.use_changed);
    if !changed.is_empty() {
        play.send(UseChanged(changed).into());
    }
}

pub(super) fn late_answer(play: &mut Play) {
    let answered = {
        let mut model = play.tool.model();
        let hangs = |devnum| model.host.disks.get(&devnum).is_some_and(|disk| disk.readable == Readable::Hangs);
        let answered = model.hanging.iter().copied().find(|devnum| !hangs(*devnum));
        if let Some(devnum) = answered {
            model.hanging.remove(&devnum);
        }
        answered
    };
    if let Some(devnum) = answered {
        play.send(Input::Answered(devnum));
    }
}

/// Lets time pass, but no further than to the next timer.
fn wait(play: &mut Play, most: usize) {
    let micros = play.roll(most) as u64;
    let to = play.tool.micros() + micros;
    let to = play.next_moment().map_or(to, |next| next.min(to));
    play.pass(to);
}

fn wait_for_the_next(play: &mut Play) {
    if let Some(next) = play.next_moment() {
        let limit = play.tool.micros() + 60_000_000;
        play.pass(next.min(limit));
    }
}

impl Play {
    /// Returns when the next timer ends.
    pub(super) fn next_moment(&self) -> Option<u64> {
        let timer = self.tool.model().gates.next_timer();
        let wake = self.daemon.as_ref().and_then(|daemon| daemon.engine.world.next_wake());
        timer.into_iter().chain(wake.map(|wake| self.tool.micros_at(wake))).min()
    }

    pub(super) fn pass(&mut self, to: u64) {
        if to > self.tool.micros() {
            self.tell(format!("until {to}"));
            self.tool.set(to);
            self.go_on();
        }
    }

    pub(super) fn any_volume(&self) -> VolumeId {
        volume(u32::try_from(self.roll(VOLUMES as usize)).unwrap_or(0))
    }

    /// Returns a recorded volume, if there is any.
    fn wanted_volume(&self) -> VolumeId {
        let ids: Vec<VolumeId> = self.tool.model().store.records.keys().copied().collect();
        if ids.is_empty() || self.chance(10) { self.any_volume() } else { ids[self.roll(ids.len())] }
    }

    fn size(&self) -> u64 {
        VOLUME_SIZES[self.roll(VOLUME_SIZES.len())]
    }
}

fn plug(play: &mut Play) {
    let (Some(slot), id, size) = (play.slot(false), play.wanted_volume(), play.size()) else { return };
    if play.tool.model().host.with_serial(id.serial()).next().is_some() {
        return;
    }
    play.tell(format!("plug {slot} {id} {size}"));
    play.tool.model().plug(slot, id, size);
}

fn pull(play: &mut Play) {
    let Some(slot) = play.slot(true) else { return };
    play.tell(format!("pull {slot}"));
    play.tool.model().pull(slot);
}

/// Replaces a disk by another one with the same number at once.
fn exchange(play: &mut Play) {
    let (Some(slot), id, size) = (play.slot(true), play.any_volume(), play.size()) else { return };
    play.tell(format!("exchange {slot} {id} {size}"));
    let mut model = play.tool.model();
    model.pull(slot);
    model.plug(slot, id, size);
}

/// Adds a second disk with the serial of a present one.
fn twin(play: &mut Play) {
    let (Some(slot), id, size) = (play.slot(false), play.wanted_volume(), play.size()) else { return };
    play.tell(format!("twin {slot} {id}"));
    play.tool.model().plug(slot, id, size);
}

fn mount(play: &mut Play) {
    let Some(slot) = play.slot(true) else { return };
    play.tell(format!("mount {slot}"));
    let mut model = play.tool.model();
    if let Some(disk) = model.host.disks.get_mut(&slot) {
        disk.mounted = !disk.mounted;
        let serial = disk.serial;
        model.host.use_changed.push(slot);
        model.disturb(serial);
    }
}

fn hold(play: &mut Play) {
    let Some(slot) = play.slot(true) else { return };
    play.tell(format!("hold {slot}"));
    if let Some(disk) = play.tool.model().host.disks.get_mut(&slot) {
        disk.held = !disk.held;
    }
}

fn connect(play: &mut Play) {
    // A volume that is leaving is the preferred choice.
    let leaving = play.calls.iter().find_map(|call| match call {
        Call::Leave(id, ..) => Some(*id),
        _ => None,
    });
    let id = leaving.filter(|_| play.chance(70)).unwrap_or_else(|| play.wanted_volume());
    let connected = {
        let mut model = play.tool.model();
        let model = &mut *model;
        model.nbd.connect(&model.host, id)
    };
    if let Some(name) = connected {
        play.tell(format!("client {name} opens {id}"));
        play.count("client".to_owned());
    }
}

fn disconnect(play: &mut Play) {
    let mut model = play.tool.model();
    if !model.nbd.clients.is_empty() {
        let n = model.nbd.clients.len();
        let n = model.rng.usize(0..n);
        model.nbd.clients.remove(n);
    }
}

fn intend(play: &mut Play) {
    let size_bytes = [None, None, Some(VOLUME_SIZES[0]), Some(VOLUME_SIZES[1])][play.roll(4)];
    let deadline_seconds = [None, None, Some(1), Some(30), Some(4000)][play.roll(5)];
    let origin =
        if play.chance(20) { IntentOrigin::Operation(operation(play.roll(3))) } else { IntentOrigin::Announced };
    let now: Steady = play.tool.steady();
    let intent = Intent {
        volume: play.any_volume(),
        vm_id: String::new(),
        size_bytes,
        deadline_seconds,
        deadline: Intent::deadline_from(now, deadline_seconds),
        created_at: play.tool.wall(),
        uid: Some(0),
        origin,
    };
    play.intend(intent);
}

fn withdraw(play: &mut Play) {
    let (id, force) = (play.wanted_volume(), play.chance(35));
    play.leave(id, Leave::Seal { by: By::Withdrawal, force });
}

fn seal(play: &mut Play) {
    let (id, force, n) = (play.wanted_volume(), play.chance(25), play.roll(3));
    play.leave(id, Leave::Seal { by: By::Operation(operation(n)), force });
}

/// Returns a volume and, mostly, the operation that has sealed it.
fn sealed(play: &Play) -> (VolumeId, crate::identity::OperationId) {
    let sealed = {
        let model = play.tool.model();
        let sealed = model.store.records.iter().filter_map(|(id, record)| match record.sealed {
            Some(By::Operation(operation)) => Some((*id, operation)),
            _ => None,
        });
        sealed.collect::<Vec<_>>()
    };
    if sealed.is_empty() || play.chance(10) {
        return (play.wanted_volume(), operation(play.roll(3)));
    }
    sealed[play.roll(sealed.len())]
}

fn unseal(play: &mut Play) {
    let (id, operation) = sealed(play);
    play.leave(id, Leave::Unseal(operation));
}

fn release(play: &mut Play) {
    let ((id, operation), force) = (sealed(play), play.chance(30));
    play.leave(id, Leave::Release { operation, force });
}

fn doubt(play: &mut Play) {
    let (id, server) = (play.wanted_volume(), play.chance(50));
    play.send(Input::Request(crate::engine::input::Request::Doubt { volumes: vec![id], server }));
}
