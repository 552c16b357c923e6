//! A guest that is deployed from a template: its root disk is not the one of the guest that the template was made
//! from.

use lab::Volume;

use crate::disk::MIB;
use crate::guest::Guest;
use crate::image::ROOT_SERIAL;
use crate::machine::Machine;

#[test]
fn a_guest_deployed_from_a_template_boots_and_puts_its_own_root_disk_on_record() {
    let guest = Guest::off("a_guest_deployed_from_a_template_boots_and_puts_its_own_root_disk_on_record", Machine::Pc);
    let own = Volume::of("0123abcd-0123-abcd-0123-000000000000");
    let mut root = guest.root();
    root.serial.clone_from(&own.serial);
    // The disk is not on record, so udev probes it no more than a customer's until the root file system is mounted.
    guest.start(&[&root]);
    guest.run(&format!("cd /etc/attachd/host-disks && test -e {} && test -e {ROOT_SERIAL}", own.serial));
    assert_eq!(guest.intend_in_vain(&own)["code"], "IN_USE_BY_HOST");
    // The next initramfs will know the disk.
    let hook = "DESTDIR=/run/next /usr/share/initramfs-tools/hooks/attachd && ls /run/next/etc/attachd/host-disks";
    assert_eq!(guest.run(hook), format!("{}\n{ROOT_SERIAL}\n", own.serial));

    let volume = Volume::random();
    let disk = guest.disk(&volume, 2 * MIB);
    guest.intend(&volume);
    guest.plug(&disk);
    guest.wait(&volume, "ready");
    guest.export_equals(&volume, &disk);
}
