//! What the package puts into the initramfs, with loop devices in place of virtio disks and a folder in place of the
//! image.

use std::fs;
use std::path::Path;

use lab::Disk;
use lab::systemd_box::rules_for_loops;

use crate::host::{Host, MIB};

const IMAGE: &str = "/run/lab/initramfs";
const RULE: &str = "lib/udev/rules.d/59-attachd-initramfs.rules";

/// Returns what udev has found on the disk.
fn found_on(host: &Host, disk: &Disk) -> String {
    let node = disk.node();
    host.run("udevadm", &["trigger", "--action=add", "--settle", node.to_str().unwrap()]);
    let properties = host.run("udevadm", &["info", "--query=property", node.to_str().unwrap()]);
    properties.lines().find_map(|line| line.strip_prefix("ID_FS_TYPE=")).unwrap_or_default().to_owned()
}

fn with_file_system(host: &Host) -> Disk {
    let serial = host.lab().volume().serial;
    let mut disk =
        host.lab().disk_with(&serial, 8 * MIB, lab::DiskOptions { blank: true, ..Default::default() }).unwrap();
    host.lab().attach_settled(&mut disk).unwrap();
    host.run("mkfs.ext4", &["-q", disk.node().to_str().unwrap()]);
    disk
}

#[test]
fn in_the_initramfs_only_the_hosts_own_disks_are_probed_unless_it_would_not_boot() {
    let host = Host::installed();
    let (own, volume) = (with_file_system(&host), with_file_system(&host));
    assert_eq!((found_on(&host, &own).as_str(), found_on(&host, &volume).as_str()), ("ext4", "ext4"), "the control");
    host.lab().host_disk(own.serial()).unwrap();

    let hook = "/usr/share/initramfs-tools/hooks/attachd";
    assert_eq!(host.run(hook, &["prereqs"]).trim(), "udev");
    host.run("env", &[&format!("DESTDIR={IMAGE}"), hook]);
    let copied = fs::read_dir(format!("{IMAGE}/etc/attachd/host-disks")).unwrap();
    let copied: Vec<_> = copied.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(copied, [own.serial()]);

    // The path that the rule has in the image.
    let rule = Path::new("/").join(RULE);
    let shipped = fs::read_to_string(Path::new(IMAGE).join(RULE)).unwrap();
    fs::write(&rule, rules_for_loops(&shipped)).unwrap();
    host.run("udevadm", &["control", "--reload"]);
    assert_eq!(found_on(&host, &own), "ext4");
    assert_eq!(found_on(&host, &volume), "none", "nothing that LVM or MD could act on");

    // The root device does not appear.
    host.run("/usr/share/initramfs-tools/scripts/local-block/attachd", &[]);
    assert!(!rule.exists());
    assert_eq!(found_on(&host, &volume), "ext4");
}

/// udevd ignores a line that it does not understand, and logs it.
#[test]
fn udevd_understands_every_line_of_the_shipped_rules() {
    let host = Host::installed();
    fs::copy("/usr/share/attachd/59-attachd-initramfs.rules", "/usr/lib/udev/rules.d/59-attachd-initramfs.rules")
        .unwrap();
    fs::remove_file("/run/udev/rules.d/59-attachd.rules").unwrap();
    host.run("systemctl", &["restart", "systemd-udevd"]);
    host.run("udevadm", &["control", "--ping"]);
    // A disk is attached, so that the rules are used too.
    let _disk = with_file_system(&host);
    let story = host.story();
    let said: Vec<_> = story.lines().filter(|line| line.contains("attachd") && line.contains(".rules:")).collect();
    // The box's own file names the group before the package makes it.
    let said: Vec<_> = said.into_iter().filter(|line| !line.contains("/run/udev/rules.d/")).collect();
    assert!(said.is_empty(), "{said:#?}");
}
