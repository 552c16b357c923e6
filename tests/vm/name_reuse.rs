//! A disk goes, and the next one gets its device name.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

/// Makes a served volume, and a disk that is not announced.
fn scene(guest: &Guest) -> (Volume, Disk, Volume, Disk) {
    let (a, b) = (Volume::random(), Volume::random());
    let (disk_a, disk_b) = (guest.disk(&a, 4 * MIB), guest.disk(&b, 4 * MIB));
    guest.intend(&a);
    guest.plug(&disk_a);
    assert_eq!(guest.wait(&a, "ready")["device_node"], "/dev/vdb");
    (a, disk_a, b, disk_b)
}

/// Returns the serial of /dev/vdb as the hypervisor gives it.
fn vdb(guest: &Guest) -> String {
    guest.run("cat /sys/block/vdb/serial")
}

#[test]
fn a_disk_that_gets_the_name_of_a_pulled_one_is_never_served_in_its_place() {
    let guest = Guest::up("a_disk_that_gets_the_name_of_a_pulled_one_is_never_served_in_its_place", Machine::Q35);
    let (a, disk_a, b, disk_b) = scene(&guest);
    guest.hammer(std::slice::from_ref(&a));
    guest.hammer_reads();

    guest.unplug(&disk_a);
    assert_eq!(guest.wait(&a, "lost")["reason"]["code"], "DEVICE_GONE");
    guest.plug(&disk_b);
    guest.run(&format!("udevadm wait --settle --timeout=60 /dev/disk/by-id/virtio-{}", b.serial));
    assert_eq!(vdb(&guest), b.serial, "the control: the name is used again");
    let counts = guest.hammered();
    assert!(counts.right > 100 && counts.refused > 100 && counts.wrong == 0, "{counts:?}");
    assert!(!guest.is_served(&a));

    // The first disk comes back, beside the other.
    guest.plug(&disk_a);
    assert_ne!(guest.wait(&a, "ready")["device_node"], "/dev/vdb");
    guest.export_equals(&a, &disk_a);
    guest.intend(&b);
    guest.wait(&b, "ready");
    guest.export_equals(&b, &disk_b);
}

#[test]
fn a_connected_client_never_sees_the_disk_that_comes_next() {
    let guest = Guest::up("a_connected_client_never_sees_the_disk_that_comes_next", Machine::Q35);
    let (a, disk_a, b, disk_b) = scene(&guest);
    guest.hold(std::slice::from_ref(&a));
    guest.hammer_reads();
    guest.unplug(&disk_a);
    guest.wait(&a, "lost");
    guest.plug(&disk_b);
    guest.run(&format!("udevadm wait --settle --timeout=60 /dev/disk/by-id/virtio-{}", b.serial));
    println!("the next disk is {}", guest.run(&format!("readlink -f /dev/disk/by-id/virtio-{}", b.serial)).trim());
    assert!(!guest.is_served(&a));
    let counts = guest.hammered();
    assert!(counts.right > 100 && counts.refused > 100 && counts.wrong == 0, "{counts:?}");
}

#[test]
fn a_swap_while_udevd_is_stopped_is_seen_and_put_right_when_it_is_back() {
    let guest = Guest::up("a_swap_while_udevd_is_stopped_is_seen_and_put_right_when_it_is_back", Machine::Q35);
    let (a, disk_a, b, disk_b) = scene(&guest);
    guest.intend(&b);
    guest.hammer(std::slice::from_ref(&a));
    guest.hammer_reads();
    guest.run("systemctl stop systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd.service");

    guest.unplug(&disk_a);
    guest.wait(&a, "lost");
    guest.plug(&disk_b);
    guest.eventually("grep -q . /sys/block/vdb/serial");
    assert_eq!(vdb(&guest), b.serial);
    let stale = guest.run(&format!("readlink -f /dev/disk/by-id/virtio-{}", a.serial));
    assert_eq!(stale.trim(), "/dev/vdb", "the control: udev's link leads to the wrong disk");
    let counts = guest.hammered();
    assert!(counts.right > 100 && counts.refused > 100 && counts.wrong == 0, "{counts:?}");
    assert_ne!(guest.show(&b)["state"], "ready", "udev has not finished with it");

    guest.run("systemctl start systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd.service");
    // udevd does not process what it missed: attachd has it process the disk, by itself.
    guest.wait(&b, "ready");
    guest.export_equals(&b, &disk_b);
    guest.plug(&disk_a);
    guest.wait(&a, "ready");
    guest.export_equals(&a, &disk_a);
}
