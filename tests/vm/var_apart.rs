//! /var on a separate file system: while it is not mounted, no claim can be seen.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::machine::Machine;

/// A disk as CloudStack attaches one, but for the guest's own /var and not a customer's.
const VAR_SERIAL: &str = "0a70a70a70a70a70a70a";
const VAR_UUID: &str = "0a700000-0000-4000-8000-000000000001";

/// Moves the guest's /var to a separate disk, from the next boot on.
fn move_var(guest: &Guest) -> Disk {
    let var = guest.blank(VAR_SERIAL, 1024 * MIB);
    guest.plug(&var);
    let node = format!("/dev/disk/by-id/virtio-{VAR_SERIAL}");
    guest.run(&format!("udevadm wait --settle --timeout=60 {node}"));
    guest.run(&format!(
        "mkfs.ext4 -q -U {VAR_UUID} {node} && mount {node} /mnt && cp -a /var/. /mnt/ && umount /mnt \
         && echo 'UUID={VAR_UUID} /var ext4 defaults 0 2' >>/etc/fstab"
    ));
    var
}

/// Makes a disk with a volume group on it, as its owner has left it.
fn with_volume_group(guest: &Guest, volume: &Volume, name: &str) -> Disk {
    let disk = guest.blank(&volume.serial, 48 * MIB);
    guest.plug(&disk);
    let node = format!("/dev/disk/by-id/virtio-{}", volume.serial);
    guest.run(&format!("udevadm wait --settle --timeout=60 {node}"));
    guest.run(&format!(
        "vgcreate -qq {name} {node} && lvcreate -qq -Zn -Wn -n data -l 1 {name}; udevadm settle; vgchange -qq -an {name}"
    ));
    guest.unplug(&disk);
    disk
}

fn is_active(guest: &Guest, group: &str) -> bool {
    guest.output(&format!("test -e /dev/mapper/{group}-data")).code == 0
}

#[test]
fn while_var_is_not_mounted_every_disk_counts_as_claimed() {
    let guest = Guest::up("while_var_is_not_mounted_every_disk_counts_as_claimed", Machine::Q35);
    let (claimed, other) = (Volume::random(), Volume::random());
    let volume_disk = with_volume_group(&guest, &claimed, "customer");
    let other_disk = with_volume_group(&guest, &other, "twin");
    let var = move_var(&guest);
    guest.run(&format!("touch /etc/attachd/host-disks/{VAR_SERIAL}"));
    // The records are on the /var of the next boot. Below its mount point an empty folder of claims stays.
    guest.run(&format!("attachctl intent add {} && systemctl stop attachd.socket attachd", claimed.id));
    guest.run(&format!(
        "mount UUID={VAR_UUID} /mnt && rm -rf /mnt/lib/attachd && cp -a /var/lib/attachd /mnt/lib/ \
         && rm /var/lib/attachd/claims/* && umount /mnt"
    ));
    guest.shut_down();

    guest.start(&[&volume_disk, &other_disk, &var]);
    guest.run(&format!("findmnt -no SOURCE /var && test -e /var/lib/attachd/claims/{}", claimed.serial));
    guest.wait(&claimed, "ready");
    guest.export_equals(&claimed, &volume_disk);
    assert!(!is_active(&guest, "customer"), "{}", guest.run("dmsetup ls"));
    // The controls: disks came before the claims could be seen, and an unclaimed disk was probed later.
    let again = guest.run("journalctl -b --no-pager -o cat -u attachd-look-again.service");
    assert!(again.contains("Finished"), "{again}");
    guest.eventually("test -e /dev/mapper/twin-data");
    let journal = guest.run("journalctl -b --no-pager -o cat -u 'lvm-activate-*'");
    assert!(journal.contains("\"twin\"") && !journal.contains("\"customer\""), "{journal}");
    // Nothing waited for a timer.
    guest.run("test ! -e /run/attachd-look-into-all");
}

/// On a host deployed from a template the disk of /var is not the recorded one. The host boots all the same.
#[test]
fn a_var_whose_disk_is_not_on_record_is_found_all_the_same() {
    let guest = Guest::up("a_var_whose_disk_is_not_on_record_is_found_all_the_same", Machine::Q35);
    let var = move_var(&guest);
    guest.run("systemctl stop attachd.socket attachd && rm -rf /var/lib/attachd/claims");
    guest.shut_down();
    guest.start(&[&var]);
    guest.run("findmnt -no SOURCE /var");
    guest.run("test -e /run/attachd-look-into-all");
    // From now on it is on record.
    guest.eventually(&format!("test -e /etc/attachd/host-disks/{VAR_SERIAL}"));
    let volume = Volume::random();
    let disk = guest.disk(&volume, 2 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &disk);
}
