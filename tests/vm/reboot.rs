//! A boot with the disks under other names.

use lab::Volume;
use serde_json::Value;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

#[test]
fn after_a_boot_with_other_device_names_every_export_is_proven_before_it_is_served() {
    let name = "after_a_boot_with_other_device_names_every_export_is_proven_before_it_is_served";
    let guest = Guest::off(name, Machine::Q35);
    let volumes: Vec<_> = (0..5).map(|_| Volume::random()).collect();
    let disks: Vec<_> = volumes.iter().map(|volume| guest.disk(volume, 4 * MIB)).collect();
    let root = &guest.root();
    let first: Vec<_> = [root].into_iter().chain(&disks).collect();
    // The root disk is among the others.
    let second: Vec<_> = [&disks[4], &disks[2], root, &disks[0], &disks[3], &disks[1]].into();

    guest.start(&first);
    guest.intend_all(&volumes);
    let before: Vec<_> = volumes.iter().map(|volume| guest.wait(volume, "ready")).collect();
    guest.hammer_from_boot(&volumes);
    guest.shut_down();

    guest.start(&second);
    let after: Vec<_> = volumes.iter().map(|volume| guest.wait(volume, "ready")).collect();
    for ((old, new), (volume, disk)) in before.iter().zip(&after).zip(volumes.iter().zip(&disks)) {
        println!("{}: {} -> {}", volume.serial, node(old), node(new));
        assert_ne!(old["evidence"]["boot_id"], new["evidence"]["boot_id"]);
        guest.export_equals(volume, disk);
    }
    let moved = before.iter().zip(&after).filter(|(old, new)| node(old) != node(new)).count();
    assert!(moved >= 4, "the control: {moved} of 5 disks have another name");
    let counts = guest.hammered();
    assert!(counts.right > 100 && counts.refused > 100, "the control: {counts:?}");
    assert_eq!(counts.wrong, 0);
    served_again_without_a_client_seeing_another_disk(&guest, &volumes, &disks);
}

/// The same with a reboot of the guest, with the devices in the same slots.
fn served_again_without_a_client_seeing_another_disk(guest: &Guest, volumes: &[Volume], disks: &[Disk]) {
    guest.reboot();
    for (volume, disk) in volumes.iter().zip(disks) {
        guest.wait(volume, "ready");
        guest.export_equals(volume, disk);
    }
    let counts = guest.hammered();
    assert!(counts.right > 100 && counts.refused > 100, "the control: {counts:?}");
    assert_eq!(counts.wrong, 0);
}

fn node(volume: &Value) -> &str {
    volume["device_node"].as_str().unwrap()
}
