//! Permissions of each part.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lab::Heard;
use lab::watch::{FolderWatch, readable};

use crate::host::{Host, MIB, SOON, bring, id_of};
use crate::package;

/// Debian's number of the group that may open every disk.
const GROUP_DISK: u32 = 6;

#[test]
fn daemon_and_nbd_server_have_no_special_privileges() {
    let host = Host::installed();
    for (unit, user) in [("attachd.service", "attachd"), ("attachd-nbdkit.service", "attachd-nbd")] {
        let id = id_of("/etc/passwd", user);
        assert!(id != 0);
        assert_eq!(host.process(unit, "Uid"), format!("{id} {id} {id} {id}"), "{unit}");
        let group = id_of("/etc/group", user);
        assert_eq!(host.process(unit, "Gid"), format!("{group} {group} {group} {group}"), "{unit}");
        assert_eq!(host.process(unit, "Groups"), group.to_string(), "{unit}: no further group, disk least of all");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(host.process(unit, set), "0000000000000000", "{unit} {set}");
        }
        assert_eq!(host.process(unit, "NoNewPrivs"), "1", "{unit}");
        assert_eq!(host.process(unit, "Seccomp"), "2", "{unit}");
    }
}

#[test]
fn the_nbd_server_opens_claimed_disks_and_no_others() {
    let host = Host::installed();
    let (volume, disk) = host.served();
    let group = id_of("/etc/group", "attachd-nbd");
    let of = |disk: &lab::Disk| fs::metadata(disk.node()).unwrap();
    assert_eq!((of(&disk).gid(), of(&disk).mode() & 0o7777), (group, 0o660));
    assert!(host.lab().nbd_connects(&volume.export()), "the control");

    let stranger = host.lab().volume();
    let unclaimed = host.lab().settled_disk(&stranger.serial, MIB).unwrap();
    assert_eq!(of(&unclaimed).gid(), GROUP_DISK);
    // Even with a link in the folder, which only attachd and root can make.
    host.lab().publish("by-hand", &unclaimed.node()).unwrap();
    assert!(!host.lab().nbd_connects("by-hand"));
    fs::remove_file("/run/attachd/exports/by-hand").unwrap();
}

/// The device class is the second protection: a node of another class is not opened even if its mode allows it.
#[test]
fn the_nbd_server_opens_no_device_that_is_no_disk() {
    let host = Host::installed();
    let (volume, _disk) = host.served();
    host.run("mknod", &["-m", "666", "/dev/lab-loop-control", "c", "10", "237"]);
    host.lab().publish("no-disk", "/dev/lab-loop-control".as_ref()).unwrap();
    assert!(!host.lab().nbd_connects("no-disk"));
    assert!(host.lab().nbd_connects(&volume.export()), "the control");
}

/// The helper's second protection is the class too: without the line for loop devices, which stand for disks here, it
/// opens none.
#[test]
fn the_helper_opens_no_device_that_is_no_disk() {
    let host = Host::installed();
    let (volume, disk) = host.served();
    let (major, minor) = disk.devnum();
    let line = format!("exclusive {major}:{minor} {}\n", volume.serial);
    assert_eq!(host.ask_helper(&line)["ok"], true, "the control");
    host.inside.drop_in("attachd-helper.service", "").unwrap();
    host.run("systemctl", &["stop", "attachd-helper.service"]);
    let refused = host.ask_helper(&line);
    assert!(refused["error"].as_str().unwrap().contains("Operation not permitted"), "{refused}");
    let next = host.lab().volume();
    let mut disk = host.lab().disk(&next.serial, MIB).unwrap();
    host.intend(&next);
    disk.attach().unwrap();
    host.wait(&next, "exporting");
    let begun = std::time::Instant::now();
    while host.shown(&next)["reason"]["code"] != "USE_UNKNOWN" {
        assert!(begun.elapsed() < SOON, "{:#}", host.shown(&next));
    }
    host.inside.drop_in("attachd-helper.service", "[Service]\nDeviceAllow=block-loop r\n").unwrap();
    host.run("systemctl", &["stop", "attachd-helper.service"]);
    host.wait(&next, "ready");
}

#[test]
fn eleven_late_intents_at_once_are_all_marked_and_served_and_given_back() {
    let host = Host::installed();
    let mut disks = Vec::new();
    for _ in 0..11 {
        let volume = host.lab().volume();
        let disk = host.lab().settled_disk(&volume.serial, MIB).unwrap();
        disks.push((volume, disk));
    }
    for (volume, _) in &disks {
        host.intend(volume);
    }
    let group = id_of("/etc/group", "attachd-nbd");
    for (volume, disk) in &disks {
        host.wait(volume, "ready");
        assert_eq!(fs::metadata(disk.node()).unwrap().gid(), group);
    }
    let ear = host.lab().bare_listener().unwrap();
    for (volume, _) in &disks {
        host.withdraw(volume);
    }
    // udev is asked for that after the answer. Its events for the marking may come until then.
    let mut marked: Vec<_> = disks.iter().map(|(_, disk)| disk.node()).collect();
    while !marked.is_empty() {
        let heard = ear.wait_for(SOON, Heard::unclaims).unwrap();
        marked.retain(|node| node != Path::new(heard.get("DEVNAME")));
    }
    for (_, disk) in &disks {
        assert_eq!(fs::metadata(disk.node()).unwrap().gid(), GROUP_DISK);
    }
}

/// Between the unpacking of the package and the creation of its users, any event of a disk may make udev read the
/// rules. udev does not read unchanged files again.
#[test]
fn disks_are_marked_also_when_udev_has_read_the_rules_before_their_group_existed() {
    let host = Host::empty();
    host.run("dpkg", &["--unpack", bring(&package::deb())]);
    host.run("udevadm", &["control", "--reload"]);
    host.run("dpkg", &["--configure", "attachd"]);
    let (_volume, disk) = host.served();
    assert_eq!(fs::metadata(disk.node()).unwrap().gid(), id_of("/etc/group", "attachd-nbd"));
}

/// A trap of sandboxes: `ProtectHome=yes` would unmount it in the daemon's view, and the disk would look unused.
#[test]
fn a_disk_mounted_anywhere_on_the_host_is_refused_before_and_after_the_start() {
    let host = Host::installed();
    host.run("mount", &["-t", "tmpfs", "tmpfs", "/home"]);
    host.run("mount", &["-t", "tmpfs", "tmpfs", "/tmp"]);
    let mounted = |place: &str| {
        let volume = host.lab().volume();
        let disk = host.lab().settled_disk(&volume.serial, 8 * MIB).unwrap();
        host.api.wait_disk(&disk, SOON).unwrap();
        let node = disk.node();
        host.run("mkfs.ext4", &["-q", "-F", node.to_str().unwrap()]);
        host.run("mkdir", &[place]);
        host.run("mount", &[node.to_str().unwrap(), place]);
        (volume, disk)
    };
    let places = ["/home/before", "/tmp/before", "/home/after", "/tmp/after", "/run/after"];
    let mut all: Vec<_> = places[..2].iter().map(|place| (*place, mounted(place))).collect();
    host.run("systemctl", &["restart", "attachd"]);
    all.extend(places[2..].iter().map(|place| (*place, mounted(place))));
    for (place, (volume, disk)) in &all {
        let body = serde_json::json!({ "volume_id": volume.id });
        let refused = host.api.post("/api/v1/intents", &body).unwrap();
        assert_eq!(
            (refused.status, refused.json["code"].as_str()),
            (409, Some("IN_USE_BY_HOST")),
            "{place}: {}",
            refused.text
        );
        assert!(refused.text.contains(place), "{}", refused.text);
        assert_eq!(fs::metadata(disk.node()).unwrap().gid(), GROUP_DISK);
        host.run("mountpoint", &["-q", place]);
    }
    for place in places {
        host.run("umount", &[place]);
    }
}

#[test]
fn a_removed_folder_of_host_disks_is_made_again() {
    let host = Host::installed();
    host.run("systemctl", &["stop", "attachd-helper.service"]);
    fs::remove_dir_all("/etc/attachd/host-disks").unwrap();
    let watch = FolderWatch::new("/etc/attachd".as_ref()).unwrap();
    // At its start the daemon has the host's disks recorded.
    host.run("systemctl", &["restart", "attachd"]);
    while !watch.take().iter().any(|(name, _)| name == "host-disks") {
        assert!(readable(&[watch.fd()], SOON).unwrap(), "{}", host.story());
    }
    let folder = fs::metadata("/etc/attachd/host-disks").unwrap();
    assert_eq!((folder.uid(), folder.mode() & 0o7777), (0, 0o755));
}

#[test]
fn the_api_is_for_the_group_and_the_helper_for_the_daemon() {
    let host = Host::installed();
    let as_user = |group: &str, program: &[&str]| {
        let who = ["--reuid=nobody", &format!("--regid={group}"), "--clear-groups", "--"];
        host.inside.output("setpriv", &[&who, program].concat()).unwrap().status.success()
    };
    assert!(as_user("attachd", &["attachctl", "list"]), "a member of the group");
    assert!(!as_user("nogroup", &["attachctl", "list"]), "anybody else");
    let writable = |group, path| as_user(group, &["test", "-w", path]);
    assert!(writable("attachd", "/run/attachd/attachd.sock"), "the control");
    assert!(!writable("attachd", "/run/attachd/helper.sock"));
    assert!(!writable("nogroup", "/run/attachd/attachd.sock"));
    for path in ["/var/lib/attachd/claims", "/run/attachd/exports", "/etc/attachd/host-disks"] {
        assert!(!writable("attachd", path), "{path}");
    }
    assert!(!as_user("attachd", &["test", "-r", "/var/lib/attachd/attachd.db"]));
}
