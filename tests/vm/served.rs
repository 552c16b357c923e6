//! The main job.

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::image::Suite;
use crate::machine::Machine;

fn a_volume_is_served_from_intent_to_withdrawal(suite: Suite, name: &str, machine: Machine) {
    let guest = Guest::up_of(suite, name, machine);
    let volume = Volume::random();
    let disk = guest.disk(&volume, 8 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    let ready = guest.wait(&volume, "ready");
    println!("{ready:#}");
    guest.export_equals(&volume, &disk);

    guest.withdraw(&volume);
    assert!(!guest.is_served(&volume));
    guest.unplug(&disk);
}

#[test]
fn a_volume_is_served_on_pc() {
    a_volume_is_served_from_intent_to_withdrawal(Suite::usual(), "a_volume_is_served_on_pc", Machine::Pc);
}

#[test]
fn a_volume_is_served_on_q35() {
    a_volume_is_served_from_intent_to_withdrawal(Suite::usual(), "a_volume_is_served_on_q35", Machine::Q35);
}

#[test]
fn a_volume_is_served_by_debian_13() {
    a_volume_is_served_from_intent_to_withdrawal(Suite::Trixie, "a_volume_is_served_by_debian_13", Machine::Q35);
}
