//! How a guest comes to have the package, and its own disks known: in the initramfs, too.

use std::time::Duration;

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::image::{ROOT_SERIAL, ROOT_VOLUME};
use crate::machine::Machine;

/// Making an initramfs takes minutes under software emulation.
const LONG: Duration = Duration::from_mins(10);

const RULE_IS_OVER: &str = "attachd: the root device is missing";

/// Whether the initramfs of this boot had to look into every disk.
fn had_to_look_into_every_disk(guest: &Guest) -> bool {
    guest.console_of_this_boot().contains(RULE_IS_OVER)
}

fn a_volume_is_served(guest: &Guest) {
    let volume = Volume::random();
    let disk = guest.disk(&volume, 2 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &disk);
}

/// The initramfs was made where the root disk was another one: the boot takes longer, and it is a boot.
#[test]
fn a_guest_deployed_from_a_template_boots_and_knows_its_root_when_the_initramfs_is_made_anew() {
    let name = "a_guest_deployed_from_a_template_boots_and_knows_its_root_when_the_initramfs_is_made_anew";
    let guest = Guest::off(name, Machine::Q35);
    let mut root = guest.root();
    let volume = Volume::of("0123abcd-0123-abcd-0123-000000000000");
    root.serial.clone_from(&volume.serial);
    guest.start(&[&root]);
    assert!(had_to_look_into_every_disk(&guest));
    // The daemon has put the new serial on record, beside the template's.
    assert_eq!(guest.intend_in_vain(&volume)["code"], "IN_USE_BY_HOST");
    guest.run(&format!(
        "test -e /etc/attachd/host-disks/{} && test -e /etc/attachd/host-disks/{ROOT_SERIAL}",
        volume.serial
    ));
    a_volume_is_served(&guest);

    let made = guest.output_within("update-initramfs -u", LONG);
    assert!(made.code == 0, "{made:?}");
    guest.shut_down();
    guest.take_initrd();
    guest.start(&[&root]);
    assert!(!had_to_look_into_every_disk(&guest));
    a_volume_is_served(&guest);
}

/// The control of the rule in the image's initramfs: its root was on record.
#[test]
fn a_guest_whose_root_disk_is_on_record_boots_without_looking_into_other_disks() {
    let name = "a_guest_whose_root_disk_is_on_record_boots_without_looking_into_other_disks";
    let guest = Guest::up(name, Machine::Pc);
    assert!(!had_to_look_into_every_disk(&guest));
    assert_eq!(guest.intend_in_vain(&Volume::of(ROOT_VOLUME))["code"], "IN_USE_BY_HOST");
}
