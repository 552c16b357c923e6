//! The failures: parts that fail and recover, events that are lost or forged, and other programs that change the
//! folders.

use jiff::Timestamp;

use super::host::{Readable, Uevent};
use super::moves::{Move, full, hand_on};
use super::play::Play;
use crate::clock::Clock;
use crate::device::event::Origin;
use crate::device::monitor::Notice;
use crate::store::StoreError;

/// The failures and their weights.
pub(super) const FAULTS: &[(usize, Move)] = &[
    (14, lose_events),
    (8, forge),
    (8, udevd_dies),
    (6, udevd_is_held_up),
    (12, server_dies),
    (30, server_restarts),
    (6, server_is_silent),
    (12, helper),
    (14, store),
    (14, disk_is_unreadable),
    (5, nothing_is_readable),
    (8, folder),
    (4, claims),
    (4, threads),
    (6, strangers),
    (4, |play| {
        let shift = i64::try_from(play.roll(200_000_000)).unwrap_or(0) - 100_000_000;
        play.tool.set_wall(shift);
    }),
    (8, Play::kill),
    (2, Play::reboot),
];

fn lose_events(play: &mut Play) {
    {
        let mut model = play.tool.model();
        if !model.host.heard {
            return;
        }
        model.host.kernel.clear();
        if model.rng.bool() {
            model.host.udev.clear();
        }
    }
    play.tell("events are lost");
    play.send(Notice::Lost("the socket").into());
}

fn forge(play: &mut Play) {
    let devnum = super::host::SLOTS[play.roll(super::host::SLOTS.len())];
    let near = |number: u64, roll: usize| (number + roll as u64).saturating_sub(3);
    let (seqnum, diskseq) = {
        let model = play.tool.model();
        (model.host.seqnum(), model.host.diskseq)
    };
    let action = ["add", "change", "remove"][play.roll(3)];
    let origin = if play.chance(50) { Origin::Kernel } else { Origin::Udev };
    let seqnum = match origin {
        Origin::Kernel => near(seqnum, play.roll(6)),
        // An event that falsely reports udevd's answer cannot be told from a true one.
        Origin::Udev => 0,
    };
    let event = Uevent { action, devnum, seqnum, diskseq: near(diskseq, play.roll(6)) };
    play.tell("forged");
    hand_on(play, event, origin, play.tool.wall());
}

/// Switches a failure on or off. Switching off is more likely than switching on.
fn toggle(play: &mut Play, what: &str, place: impl Fn(&mut super::model::Model) -> &mut bool) {
    let on = *place(&mut play.tool.model());
    if play.chance(if on { 70 } else { 40 }) {
        *place(&mut play.tool.model()) = !on;
        play.tell(format!("{what}: {}", !on));
    }
}

/// Marks that the exports cannot be known for a while. A start then revokes all of them.
fn unsure(play: &mut Play) {
    play.tool.model().quiet.clear();
}

pub(super) fn udevd_dies(play: &mut Play) {
    toggle(play, "udevd lives", |model| &mut model.host.udevd.alive);
    let mut model = play.tool.model();
    if !model.host.udevd.alive {
        model.host.udevd.queue.clear();
    }
}

fn udevd_is_held_up(play: &mut Play) {
    let slot = super::host::SLOTS[play.roll(super::host::SLOTS.len())];
    let held_up = if play.chance(35) { Some(slot) } else { None };
    play.tool.model().host.udevd.held_up_at = held_up;
    play.tell(format!("udevd is held up at {held_up:?}"));
}

pub(super) fn server_dies(play: &mut Play) {
    let mut model = play.tool.model();
    let up = model.nbd.up;
    if up {
        model.nbd.die();
    } else {
        model.nbd.start();
    }
    drop(model);
    play.tell(format!("the server is up: {}", !up));
}

/// Restarts the server so fast that nobody sees it down.
fn server_restarts(play: &mut Play) {
    let mut model = play.tool.model();
    if model.nbd.up {
        model.nbd.die();
        model.nbd.start();
    }
    drop(model);
    play.tell("the server is started anew");
}

fn server_is_silent(play: &mut Play) {
    toggle(play, "the server is silent", |model| &mut model.nbd.silent);
}

fn helper(play: &mut Play) {
    toggle(play, "the helper is away", |model| &mut model.helper_is_away);
}

fn store(play: &mut Play) {
    let mut model = play.tool.model();
    let failure = match (model.store.failure.is_some(), model.chance(50)) {
        (true, _) => None,
        (false, true) => Some(full()),
        (false, false) => Some(StoreError::Silent { path: "attachd.db".into(), since: Timestamp::UNIX_EPOCH }),
    };
    model.store.set_failure(failure);
    drop(model);
    play.tell("the store fails, or works");
}

fn disk_is_unreadable(play: &mut Play) {
    let Some(slot) = play.slot(true) else { return };
    let how = [Readable::Yes, Readable::Yes, Readable::Not, Readable::NoSerial, Readable::Hangs][play.roll(5)];
    play.tell(format!("readable {slot}: {how:?}"));
    if let Some(disk) = play.tool.model().host.disks.get_mut(&slot) {
        disk.readable = how;
    }
}

fn nothing_is_readable(play: &mut Play) {
    toggle(play, "nothing is readable", |model| &mut model.host.unreadable);
}

fn folder(play: &mut Play) {
    unsure(play);
    toggle(play, "the folder of exports is broken", |model| &mut model.nbd.broken);
}

fn claims(play: &mut Play) {
    toggle(play, "the folder of claims is broken", |model| &mut model.claims_broken);
}

fn threads(play: &mut Play) {
    unsure(play);
    toggle(play, "no threads", |model| &mut model.no_threads);
}

/// Removes or creates a file of attachd's, as another program could.
fn strangers(play: &mut Play) {
    unsure(play);
    let (id, roll) = (play.any_volume(), play.roll(4));
    play.tell(format!("a stranger: {roll} {id}"));
    let mut model = play.tool.model();
    match roll {
        0 => {
            if model.nbd.remove_link(id) {
                model.nbd.touched.insert(id);
            }
        }
        1 => {
            model.nbd.make_link(id, &super::host::link(id.serial()));
            model.nbd.touched.insert(id);
            model.nbd.remade.insert(id);
        }
        2 => {
            if model.claims.contains(&id.serial()) {
                model.set_claim(id.serial(), false);
                model.stolen.insert(id.serial());
            }
        }
        _ => model.set_claim(id.serial(), true),
    }
}
