//! The main use case: eleven volumes of one virtual machine, all at once.

use lab::Volume;

use crate::attachd::moment;
use crate::disk::MIB;
use crate::guest::Guest;
use crate::image::Suite;
use crate::machine::Machine;

fn eleven_volumes_at_once_are_served(suite: Suite, name: &str, machine: Machine) {
    let guest = Guest::up_of(suite, name, machine);
    let volumes: Vec<_> = (0..11).map(|_| Volume::random()).collect();
    let disks: Vec<_> = volumes.iter().map(|volume| guest.disk(volume, 4 * MIB)).collect();
    for volume in &volumes {
        guest.intend(volume);
    }
    for disk in &disks {
        guest.plug(disk);
    }
    println!(
        "{suite:?}, {}: in the order of plugging; from udev's event to served, and after the first event",
        machine.name()
    );
    let ready: Vec<_> = volumes.iter().map(|volume| guest.wait(volume, "ready")).collect();
    let first = ready.iter().map(|volume| moment(volume, "heard")).fold(f64::INFINITY, f64::min);
    for volume in &ready {
        let (heard, served) = (moment(volume, "heard"), moment(volume, "ready"));
        let node = volume["device_node"].as_str().unwrap();
        println!("  {node:9} {:7.1} ms {:7.1} ms", served - heard, served - first);
    }
    for (volume, disk) in volumes.iter().zip(&disks) {
        guest.export_equals(volume, disk);
    }
}

#[test]
fn eleven_volumes_at_once_are_served_on_pc() {
    eleven_volumes_at_once_are_served(Suite::usual(), "eleven_volumes_at_once_are_served_on_pc", Machine::Pc);
}

#[test]
fn eleven_volumes_at_once_are_served_on_q35() {
    eleven_volumes_at_once_are_served(Suite::usual(), "eleven_volumes_at_once_are_served_on_q35", Machine::Q35);
}

#[test]
fn eleven_volumes_at_once_are_served_by_debian_13_with_pc() {
    let name = "eleven_volumes_at_once_are_served_by_debian_13_with_pc";
    eleven_volumes_at_once_are_served(Suite::Trixie, name, Machine::Pc);
}

#[test]
fn eleven_volumes_at_once_are_served_by_debian_13_with_q35() {
    let name = "eleven_volumes_at_once_are_served_by_debian_13_with_q35";
    eleven_volumes_at_once_are_served(Suite::Trixie, name, Machine::Q35);
}
