//! The host's own disks: refused by name, and unchanged whatever asks for them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use lab::{Disk, Swap, Volume};
use serde_json::{Value, json};

use crate::host::{Host, MIB, SOON, id_of};

/// Returns owner, group and mode of the disk's node.
fn node_of(disk: &Disk) -> (u32, u32, u32) {
    let node = fs::metadata(disk.node()).unwrap();
    (node.uid(), node.gid(), node.mode() & 0o7777)
}

fn disk_of(host: &Host, volume: &Volume) -> Disk {
    host.lab().disk(&volume.serial, 8 * MIB).unwrap()
}

/// A disk that is mounted in the box until this is dropped.
struct Mounted<'host> {
    host: &'host Host,
    place: &'static str,
}

impl<'host> Mounted<'host> {
    fn at(place: &'static str, host: &'host Host, disk: &Disk) -> Self {
        let node = disk.node();
        host.run("mkfs.ext4", &["-q", "-F", node.to_str().unwrap()]);
        host.run("mkdir", &["-p", place]);
        host.run("mount", &[node.to_str().unwrap(), place]);
        Self { host, place }
    }

    fn is_mounted(&self) -> bool {
        self.host.inside.output("mountpoint", &["-q", self.place]).unwrap().status.success()
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = self.host.inside.output("umount", &[self.place]);
    }
}

fn swap<'disk>(host: &Host, disk: &'disk Disk) -> Swap<'disk> {
    Swap::on(disk, |program, args| drop(host.run(program, args)))
}

/// Checks that the intent is refused, with these words about the use.
fn refused(host: &Host, volume: &Volume, words: &str) {
    let reply = host.api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap();
    println!("{} {}", reply.status, reply.text);
    assert_eq!((reply.status, reply.json["code"].as_str()), (409, Some("IN_USE_BY_HOST")), "{}", reply.text);
    assert!(reply.json["error"].as_str().unwrap().contains(words), "{}", reply.text);
    assert_eq!(host.api.get(&format!("/api/v1/intents/{}", volume.id)).unwrap().status, 404);
}

/// Checks that the accepted intent is not served: the disk is refused, with these words about the use.
fn stays_refused(host: &Host, volume: &Volume, words: &str) -> Value {
    host.api.post("/api/v1/resync", &json!({})).unwrap().expect(200).unwrap();
    let shown = host.wait(volume, "refused");
    println!("{}", shown["reason"]);
    assert_eq!(shown["reason"]["code"], "IN_USE_BY_HOST", "{shown:#}");
    assert!(shown["reason"]["message"].as_str().unwrap().contains(words), "{shown:#}");
    assert!(!host.lab().nbd_connects(&volume.export()));
    shown
}

/// Checks that the helper refuses too, when it is asked directly with a forged claim.
fn helper_refuses(host: &Host, volume: &Volume) {
    let claim = format!("/var/lib/attachd/claims/{}", volume.serial);
    let forged = !fs::exists(&claim).unwrap();
    if forged {
        // The daemon would remove a claim that it did not make at once.
        host.run("systemctl", &["kill", "--signal=SIGSTOP", "attachd.service"]);
        fs::write(&claim, "").unwrap();
        let attachd = id_of("/etc/passwd", "attachd");
        std::os::unix::fs::chown(&claim, Some(attachd), Some(attachd)).unwrap();
    }
    let answer = host.ask_helper(&format!("retrigger {}\n", volume.serial));
    println!("{answer}");
    assert_eq!(answer["code"], "IN_USE_BY_HOST", "{answer}");
    if forged {
        fs::remove_file(&claim).unwrap();
        host.run("systemctl", &["kill", "--signal=SIGCONT", "attachd.service"]);
    }
}

#[test]
fn a_disk_the_host_swaps_to_or_has_mounted_when_the_intent_comes_is_refused_and_left_alone() {
    let host = Host::installed();
    let [swapped, mounted] = [(); 2].map(|()| host.lab().volume());
    let [mut swap_disk, mut mount_disk] = [&swapped, &mounted].map(|volume| disk_of(&host, volume));
    for disk in [&mut swap_disk, &mut mount_disk] {
        host.lab().attach_settled(disk).unwrap();
        host.api.wait_disk(disk, SOON).unwrap();
    }
    let area = swap(&host, &swap_disk);
    let mount = Mounted::at("/srv/data", &host, &mount_disk);
    let before = [&swap_disk, &mount_disk].map(node_of);

    refused(&host, &swapped, "used as swap");
    refused(&host, &mounted, "mounted at /srv/data");
    helper_refuses(&host, &swapped);
    helper_refuses(&host, &mounted);

    assert!(area.is_on() && mount.is_mounted());
    assert_eq!([&swap_disk, &mount_disk].map(node_of), before);
    // The control: only the use was in the way.
    drop(mount);
    host.intend(&mounted);
    host.wait(&mounted, "ready");
}

/// The disks come after their intents, and the host uses them before udev can mark them.
#[test]
fn a_disk_the_host_swaps_to_or_has_mounted_after_the_intent_is_refused_also_at_a_retrigger() {
    let host = Host::installed();
    let [swapped, mounted] = [(); 2].map(|()| host.lab().volume());
    host.intend(&swapped);
    host.intend(&mounted);
    let udevd = ["systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"];
    host.run("systemctl", &[&["stop"][..], &udevd].concat());
    let [mut swap_disk, mut mount_disk] = [&swapped, &mounted].map(|volume| disk_of(&host, volume));
    for disk in [&mut swap_disk, &mut mount_disk] {
        disk.attach().unwrap();
    }
    let area = swap(&host, &swap_disk);
    let mount = Mounted::at("/srv/data", &host, &mount_disk);
    let before = [&swap_disk, &mount_disk].map(node_of);
    host.run("systemctl", &[&["start"][..], &udevd].concat());

    stays_refused(&host, &swapped, "used as swap");
    stays_refused(&host, &mounted, "mounted at /srv/data");
    helper_refuses(&host, &swapped);
    helper_refuses(&host, &mounted);

    assert!(area.is_on() && mount.is_mounted());
    assert_eq!([&swap_disk, &mount_disk].map(node_of), before);
    // The control: these two needed only a retrigger to be served.
    drop(mount);
    drop(area);
    // A host disk stays on the list until somebody removes it.
    fs::remove_file(format!("/etc/attachd/host-disks/{}", swapped.serial)).unwrap();
    for volume in [&swapped, &mounted] {
        host.api.post("/api/v1/resync", &json!({})).unwrap().expect(200).unwrap();
        host.wait(volume, "ready");
    }
}

/// A disk to which the host has swapped once is on its list, so even udev's own `add` does not mark it for an earlier
/// intent.
#[test]
fn a_swap_disk_that_comes_back_after_its_intent_is_neither_marked_nor_served() {
    let host = Host::installed();
    let volume = host.lab().volume();
    let mut disk = disk_of(&host, &volume);
    host.lab().attach_settled(&mut disk).unwrap();
    let before = node_of(&disk);
    let area = swap(&host, &disk);
    let answer = host.ask_helper("host-disks\n");
    assert_eq!(answer["serials"], json!([volume.serial]), "{answer}");
    drop(area);
    host.lab().detach_settled(&mut disk).unwrap();

    host.intend(&volume);
    host.lab().attach_settled(&mut disk).unwrap();
    stays_refused(&host, &volume, "listed as a host disk");
    let area = swap(&host, &disk);
    stays_refused(&host, &volume, "used as swap");
    helper_refuses(&host, &volume);
    host.run("udevadm", &["trigger", "--action=add", "--settle", disk.node().to_str().unwrap()]);
    stays_refused(&host, &volume, "used as swap");
    assert!(area.is_on());
    assert_eq!(node_of(&disk), before);
}

#[test]
fn the_root_volume_is_refused_and_left_alone() {
    let volume = Volume::random();
    let (disk, host) = Host::installed_on(&volume);
    let mounts = host.run("cat", &["/proc/self/mountinfo"]);
    let (major, minor) = disk.devnum();
    let root = mounts.lines().find(|line| line.contains(&format!(" {major}:{minor} / / "))).expect(&mounts);
    println!("{root}");
    let before = node_of(&disk);

    let answer = host.ask_helper("host-disks\n");
    assert_eq!(answer["serials"], json!([volume.serial]), "{answer}");
    refused(&host, &volume, "mounted at /, listed as a host disk");
    helper_refuses(&host, &volume);
    // Even udev's own `add` with a forged claim does not mark it, because it is on the list.
    let claim = format!("/var/lib/attachd/claims/{}", volume.serial);
    fs::write(&claim, "").unwrap();
    host.run("udevadm", &["trigger", "--action=add", "--settle", disk.node().to_str().unwrap()]);
    assert_eq!(node_of(&disk), before);
    host.run("mountpoint", &["-q", "/"]);

    // The control: another disk of this host is served.
    host.served();
}
