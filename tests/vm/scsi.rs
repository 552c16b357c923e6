//! SCSI, the other bus on which a volume can come.

use lab::Volume;

use crate::disk::{Bus, Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

fn link(volume: &Volume) -> String {
    format!("/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{}", volume.serial)
}

fn with_files(guest: &Guest, volume: &Volume) -> Disk {
    let disk = guest.blank(&volume.serial, 8 * MIB).on(Bus::Scsi);
    assert!(std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.file).status().unwrap().success());
    disk
}

/// Returns what udev has found on a disk.
fn found_on(guest: &Guest, volume: &Volume) -> String {
    guest
        .run(&format!("udevadm info --query=property --property=ID_FS_TYPE --value {}", link(volume)))
        .trim()
        .to_owned()
}

/// The value that attachd's rules set for a claimed disk in place of a file system type.
const NOT_LOOKED: &str = "none";

#[test]
fn a_volume_on_the_other_bus_is_refused_with_both_links_and_served_when_its_scheme_is_on() {
    let name = "a_volume_on_the_other_bus_is_refused_with_both_links_and_served_when_its_scheme_is_on";
    let guest = Guest::up(name, Machine::Q35);
    let (volume, late, stranger) = (Volume::random(), Volume::random(), Volume::random());
    let on_virtio = with_files(&guest, &volume).on(Bus::Virtio);
    guest.intend(&volume);
    guest.plug(&on_virtio);
    guest.wait(&volume, "ready");
    guest.unplug(&on_virtio);
    guest.wait(&volume, "lost");

    let on_scsi = on_virtio.clone().on(Bus::Scsi);
    guest.plug(&on_scsi);
    let refused = guest.wait(&volume, "refused");
    println!("{}", refused["reason"]);
    assert_eq!(refused["reason"]["code"], "SCHEME_OFF");
    let message = refused["reason"]["message"].as_str().unwrap();
    assert!(message.contains(&link(&volume)), "{message}");
    assert!(message.contains(&format!("/dev/disk/by-id/virtio-{}", volume.serial)), "{message}");
    assert!(!guest.is_served(&volume));

    guest.run(
        r#"printf '[device]\nschemes = ["virtio", "scsi"]\n' >/etc/attachd/attachd.toml && systemctl restart attachd"#,
    );
    let ready = guest.wait(&volume, "ready");
    assert_eq!(ready["device_path"], link(&volume));
    guest.export_equals(&volume, &on_scsi);
    assert_eq!(guest.run(&format!("stat -L -c '%G %a' {}", link(&volume))).trim(), "attachd-nbd 660");
    assert_eq!(found_on(&guest, &volume), NOT_LOOKED, "nobody looks into a claimed disk");

    // Two disks without an intent; one of them gets it late.
    let disks = [with_files(&guest, &stranger), with_files(&guest, &late)];
    guest.plug_all(&disks);
    for other in [&stranger, &late] {
        guest.run(&format!("udevadm wait --settle --timeout=60 {}", link(other)));
        assert_eq!(found_on(&guest, other), "ext4", "the control");
    }
    guest.intend(&late);
    guest.wait(&late, "ready");
    guest.export_equals(&late, &disks[1]);
    assert_eq!(found_on(&guest, &late), NOT_LOOKED);

    // Back on the first bus.
    guest.unplug(&on_scsi);
    guest.wait(&volume, "lost");
    guest.plug(&on_virtio);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &on_virtio);

    // After the claim is removed, the node is as before.
    guest.withdraw(&late);
    guest.eventually(&format!("[ \"$(stat -L -c '%G %a' {})\" = 'disk 660' ] && udevadm settle", link(&late)));
    assert_eq!(found_on(&guest, &late), "ext4");
}
