//! Disks that are unusual, or that change while they are attached.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

fn served(guest: &Guest) -> (Volume, Disk) {
    let volume = Volume::random();
    let disk = guest.disk(&volume, 8 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    (volume, disk)
}

/// Returns the steps of a volume's story.
fn steps(guest: &Guest, volume: &Volume) -> Vec<String> {
    let shown = guest.show(volume);
    shown["timeline"].as_array().unwrap().iter().map(|entry| entry["event"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn partitions_and_a_reread_partition_table_do_not_disturb_an_export() {
    let guest = Guest::up("partitions_and_a_reread_partition_table_do_not_disturb_an_export", Machine::Q35);
    let volume = Volume::random();
    let disk = guest.disk(&volume, 8 * MIB);
    let table = std::process::Command::new("sfdisk")
        .args(["--quiet", "--wipe=never"])
        .arg(&disk.file)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut sfdisk| {
            use std::io::Write;
            sfdisk.stdin.take().unwrap().write_all(b"label: gpt\n,2M\n,2M\n")?;
            sfdisk.wait()
        });
    assert!(table.unwrap().success());
    guest.intend(&volume);
    guest.plug(&disk);
    let node = guest.wait(&volume, "ready")["device_node"].as_str().unwrap().to_owned();
    guest.export_equals(&volume, &disk);
    let parts = guest.run(&format!("stat -c '%n %G' {node}1 {node}2"));
    assert_eq!(parts, format!("{node}1 disk\n{node}2 disk\n"), "the partitions' nodes are nobody's");

    let before = steps(&guest, &volume);
    guest.run(
        "systemd-run --quiet --unit=monitor --property=StandardOutput=file:/run/monitor udevadm monitor --udev --subsystem-match=block",
    );
    guest.eventually("grep -q 'UDEV - the event' /run/monitor");
    guest.run(&format!("blockdev --rereadpt {node} && udevadm settle"));
    // The monitor has printed the last event, so attachd has received it too.
    guest.eventually("[ $(grep -c 'remove.*partition\\|remove .*vd[a-z][12]' /run/monitor) -ge 2 ] && [ $(grep -c 'add .*vd[a-z][12]' /run/monitor) -ge 2 ]");
    guest.resync();
    assert_eq!(guest.show(&volume)["state"], "ready");
    assert_eq!(steps(&guest, &volume), before, "the control has seen two partitions go and come");
    guest.export_equals(&volume, &disk);
}

#[test]
fn a_disk_that_grows_is_proven_and_served_with_its_new_size() {
    let guest = Guest::up("a_disk_that_grows_is_proven_and_served_with_its_new_size", Machine::Q35);
    let (volume, disk) = served(&guest);
    guest.resize(&disk, 12 * MIB);
    let size = 12 * MIB;
    guest.eventually(&format!("attachctl --json show {} | grep -q '\"size_bytes\": *{size}'", volume.id));
    guest.wait(&volume, "ready");
    let told = guest.run(&format!("nbdinfo --size nbd://127.0.0.1/{}", volume.export()));
    assert_eq!(told.trim(), size.to_string());
    guest.export_equals(&volume, &disk);
    println!("{:?}", steps(&guest, &volume));
}

#[test]
fn a_disk_without_a_usable_serial_matches_no_volume() {
    let guest = Guest::up("a_disk_without_a_usable_serial_matches_no_volume", Machine::Q35);
    let volume = Volume::of("abcdefab-cdef-abcd-efab-000000000000");
    guest.intend(&volume);
    let odd = [
        "",
        "ghijklmnopqrstuvwxyz",
        "ABCDEFABCDEFABCDEFAB",
        "abcdefabcdefabcdefa",
        "we ird/../x-$%1",
        "../../../../etc/pass",
    ];
    let disks: Vec<_> = odd.iter().map(|serial| guest.blank(serial, MIB)).collect();
    guest.plug_all(&disks);
    let all = disks.len() + 1;
    guest.eventually(&format!("[ $(ls -d /sys/block/vd* | wc -l) = {all} ] && udevadm settle"));
    guest.resync();
    let devices = guest.run("attachctl devices");
    println!("{devices}");
    assert_eq!(guest.show(&volume)["state"], "waiting", "none of these is its disk");
    let groups = guest.run("stat -c %G /dev/vd[b-z]");
    assert_eq!(groups, "disk\n".repeat(disks.len()));
    assert_eq!(guest.run("ls /run/attachd/exports | wc -l").trim(), "0");

    let right = guest.disk(&volume, MIB);
    guest.plug(&right);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &right);
}

#[test]
fn two_disks_with_one_serial_are_refused_by_name_whenever_the_second_comes() {
    let guest = Guest::up("two_disks_with_one_serial_are_refused_by_name_whenever_the_second_comes", Machine::Q35);
    let volume = Volume::random();
    let (disk, twin) = (guest.disk(&volume, 4 * MIB), guest.disk(&volume, 4 * MIB));
    // Before the first is served: both disks are there when it is announced.
    guest.plug(&disk);
    guest.plug(&twin);
    guest.eventually(&format!("[ $(grep -l {} /sys/block/vd*/serial | wc -l) = 2 ] && udevadm settle", volume.serial));
    guest.intend(&volume);
    let refused = guest.wait(&volume, "refused");
    println!("{}", refused["reason"]);
    assert_eq!(refused["reason"]["code"], "DUPLICATE_SERIAL");
    let message = refused["reason"]["message"].as_str().unwrap();
    assert!(message.contains("/dev/vdb") && message.contains("/dev/vdc"), "{message}");
    assert!(!guest.is_served(&volume));
    guest.unplug(&twin);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &disk);

    // After the first is served.
    guest.plug(&twin);
    assert_eq!(guest.wait(&volume, "refused")["reason"]["code"], "DUPLICATE_SERIAL");
    assert!(!guest.is_served(&volume));
    guest.unplug(&disk);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &twin);
}

#[test]
fn a_read_only_disk_is_offered_as_such_and_cannot_be_written() {
    let guest = Guest::up("a_read_only_disk_is_offered_as_such_and_cannot_be_written", Machine::Q35);
    let volume = Volume::random();
    let disk = guest.disk(&volume, 4 * MIB).read_only();
    guest.intend(&volume);
    guest.plug(&disk);
    let ready = guest.wait(&volume, "ready");
    assert_eq!(ready["evidence"]["read_only"], true);
    guest.export_equals(&volume, &disk);
    let uri = format!("nbd://127.0.0.1/{}", volume.export());
    let is_read_only = |uri: &str| guest.output(&format!("nbdinfo --is read-only '{uri}'")).code == 0;
    assert!(is_read_only(&uri), "{}", guest.run(&format!("nbdinfo '{uri}'")));
    let write = |uri: &str| guest.output(&format!("head -c 1048576 /dev/zero | nbdcopy --flush - '{uri}'"));
    assert_ne!(write(&uri).code, 0);
    guest.export_equals(&volume, &disk);

    let (other, other_disk) = served(&guest);
    let before = other_disk.sha256();
    let uri = format!("nbd://127.0.0.1/{}", other.export());
    assert!(!is_read_only(&uri), "the control");
    assert_eq!(write(&uri).code, 0, "the control");
    assert_ne!(other_disk.sha256(), before);
}
