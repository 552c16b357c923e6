//! Customers' disks contain volume groups, arrays and file systems of any name. The guest must not probe them.

use lab::Volume;

use crate::disk::{Disk, MIB};
use crate::guest::Guest;
use crate::image::{ROOT_LABEL, ROOT_UUID};
use crate::machine::Machine;

const SIZE: u64 = 48 * MIB;

/// The contents of a disk, and how they show when the guest has probed the disk.
struct Contents {
    /// Part of the name of its volume group, array or file system.
    kind: &'static str,
    /// Writes the contents onto `$DISK` with the name `$NAME`, and closes it.
    make: &'static str,
    /// Succeeds if the contents are active.
    active: &'static str,
    /// Deactivates the contents.
    release: &'static str,
}

const KINDS: [Contents; 4] = [
    Contents {
        kind: "whole",
        make: "vgcreate -qq $NAME $DISK && lvcreate -qq -n data -l 1 $NAME && vgchange -qq -an $NAME",
        active: "[ -e /sys/class/block/$DISK/holders/dm-* ]",
        release: "vgchange -qq -an $NAME",
    },
    Contents {
        kind: "part",
        make: "echo ',,V' | sfdisk -q --label gpt $DISK && udevadm settle && vgcreate -qq $NAME ${DISK}1 \
               && lvcreate -qq -n data -l 1 $NAME && vgchange -qq -an $NAME",
        active: "[ -e /sys/class/block/$DISK/${DISK}1/holders/dm-* ]",
        release: "vgchange -qq -an $NAME",
    },
    Contents {
        kind: "array",
        make: "mdadm --quiet --create /dev/md/$NAME --name=$NAME --homehost=any --level=1 --raid-devices=1 --force --run $DISK \
               && mdadm --quiet --stop /dev/md/$NAME",
        active: "[ -e /sys/class/block/$DISK/holders/md* ]",
        release: "mdadm --quiet --stop /dev/md/$NAME",
    },
    Contents {
        kind: "files",
        make: "mkfs.ext4 -q -L $NAME $DISK",
        active: "[ \"$(readlink -f /dev/disk/by-label/$NAME)\" = /dev/$DISK ]",
        release: "true",
    },
];

/// One disk with one kind of contents.
struct Carrier {
    contents: &'static Contents,
    name: String,
    volume: Volume,
    disk: Disk,
}

impl Carrier {
    fn new(guest: &Guest, contents: &'static Contents, whose: &str) -> Self {
        let volume = Volume::random();
        let disk = guest.blank(&volume.serial, SIZE);
        Self { contents, name: format!("{whose}_{}", contents.kind), volume, disk }
    }

    /// Returns a script with `$DISK` and `$NAME` of this disk. `$DISK` is the bare name, for `/sys`.
    fn script(&self, text: &str, folder: &str) -> String {
        format!(
            "NAME={}; DISK={folder}$(basename $(readlink -f $(grep -l {} /sys/block/vd*/serial | head -1 | xargs dirname))); {text}",
            self.name, self.volume.serial
        )
    }

    fn is_active(&self, guest: &Guest) -> bool {
        guest.output(&self.script(self.contents.active, "")).code == 0
    }
}

fn set(guest: &Guest, whose: &str) -> Vec<Carrier> {
    KINDS.iter().map(|contents| Carrier::new(guest, contents, whose)).collect()
}

/// Fills the disks of a guest before any of them is announced.
fn fill(guest: &Guest, carriers: &[Carrier]) {
    for carrier in carriers {
        guest.plug(&carrier.disk);
        guest.eventually(&format!("grep -q {} /sys/block/vd*/serial && udevadm settle", carrier.volume.serial));
        guest.run(&carrier.script(carrier.contents.make, "/dev/"));
        guest.run("udevadm settle");
        guest.run(&carrier.script(&format!("{} || true", carrier.contents.release), "/dev/"));
        guest.unplug(&carrier.disk);
    }
}

/// Waits until the guest has probed the twins, which shows that it would probe any disk.
fn the_twins_are_active(guest: &Guest, twins: &[Carrier]) {
    for twin in twins {
        guest.eventually(&twin.script(twin.contents.active, ""));
        println!("the control: {} is active", twin.name);
    }
}

fn nothing_has_looked_into(guest: &Guest, claimed: &[Carrier]) {
    for carrier in claimed {
        assert!(!carrier.is_active(guest), "{}", carrier.name);
        // There is no holder, no link but by-id and by-path, nothing known of the contents, and no open file.
        let holders =
            guest.run(&carrier.script(
                "ls /sys/block/$DISK/holders /sys/block/$DISK/$DISK*/holders 2>/dev/null | grep -v : || true",
                "",
            ));
        assert_eq!(holders.trim(), "", "{}", carrier.name);
        let known = guest.run(
            &carrier.script("udevadm info --query=property --name=$DISK | grep -E '^(ID_FS|LVM|MD_)' | grep -vx ID_FS_TYPE=none || true", "/dev/"),
        );
        assert_eq!(known, "", "{}", carrier.name);
        let links = guest.run(&carrier.script("udevadm info --query=symlink --name=$DISK", "/dev/"));
        assert!(!links.contains("by-uuid") && !links.contains("by-label"), "{links}");
        // (attachd's last read may still be running.)
        guest.eventually(&carrier.script("! ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q \" $DISK\\$\"", "/dev/"));
        // (udisksd may still be handling the previous disk with this name.)
        guest.eventually(&carrier.script("udisksctl info -b $DISK | grep -w HintIgnore | grep -q true", "/dev/"));
    }
    let root = guest.run(&format!(
        "readlink -f /dev/disk/by-uuid/{ROOT_UUID} /dev/disk/by-label/{ROOT_LABEL}; findmnt -no MAJ:MIN /"
    ));
    let node = guest.run("readlink -f /dev/block/$(findmnt -no MAJ:MIN /)");
    assert_eq!(
        root.lines().take(2).collect::<Vec<_>>(),
        [node.trim(); 2],
        "the links of the root file system lead to it"
    );
}

/// Returns whether the NBD server's user can open a disk.
fn the_nbd_server_opens(guest: &Guest, carrier: &Carrier) -> bool {
    let open =
        "setpriv --reuid=attachd-nbd --regid=attachd-nbd --clear-groups dd if=$DISK of=/dev/null count=1 status=none";
    guest.output(&carrier.script(open, "/dev/")).code == 0
}

#[test]
fn no_program_probes_a_claimed_disk_whatever_it_contains_neither_live_nor_at_boot() {
    let name = "no_program_probes_a_claimed_disk_whatever_it_contains_neither_live_nor_at_boot";
    let guest = Guest::up(name, Machine::Q35);
    let (mut claimed, twins) = (set(&guest, "claimed"), set(&guest, "twin"));
    fill(&guest, &claimed);
    fill(&guest, &twins);
    let baits = baits(&guest);
    fill(&guest, &baits);
    // A copy of the host's own root file system, with the same UUID and label.
    claimed.push(root_copy(&guest));

    // In the running guest.
    for carrier in &claimed {
        guest.intend(&carrier.volume);
    }
    for carrier in claimed.iter().chain(&twins) {
        guest.plug(&carrier.disk);
    }
    for carrier in &claimed {
        guest.wait(&carrier.volume, "ready");
    }
    the_twins_are_active(&guest, &twins);
    nothing_has_looked_into(&guest, &claimed);
    for carrier in &claimed {
        assert!(the_nbd_server_opens(&guest, carrier), "the control: {}", carrier.name);
        guest.export_equals(&carrier.volume, &carrier.disk);
    }
    for twin in &twins {
        assert!(!the_nbd_server_opens(&guest, twin), "{}", twin.name);
    }
    the_copy_would_take_the_roots_place_if_it_were_not_claimed(&guest);

    // At boot, with the claimed disks first.
    guest.shut_down();
    let root = guest.root();
    let all = claimed.iter().chain(&twins).chain(&baits);
    let disks: Vec<_> = all.map(|carrier| &carrier.disk).chain([&root]).collect();
    guest.start(&disks);
    for carrier in &claimed {
        guest.wait(&carrier.volume, "ready");
    }
    the_twins_are_active(&guest, &twins);
    nothing_has_looked_into(&guest, &claimed);
    only_the_bait_was_activated_in_the_initramfs(&guest);
    for carrier in &claimed {
        guest.export_equals(&carrier.volume, &carrier.disk);
    }

    // A disk that was probed before its late announcement; disks that the guest uses are refused.
    let [whole, part, array, files] = &twins[..] else { unreachable!() };
    for held in [whole, part, array] {
        let answer = guest.intend_in_vain(&held.volume);
        assert_eq!(answer["code"], "IN_USE_BY_HOST", "{}: {answer}", held.name);
    }
    guest.intend(&files.volume);
    guest.wait(&files.volume, "ready");
    guest.export_equals(&files.volume, &files.disk);
    nothing_has_looked_into(&guest, std::slice::from_ref(files));
    guest.run(&whole.script(whole.contents.release, "/dev/"));
    guest.intend(&whole.volume);
    guest.wait(&whole.volume, "ready");
    nothing_has_looked_into(&guest, std::slice::from_ref(whole));

    // No client uses them, so each is withdrawn at once.
    for carrier in claimed.iter().chain([files, whole]) {
        guest.withdraw(&carrier.volume);
        guest.unplug(&carrier.disk);
    }
}

/// Makes a customer's disk with a file system that has the root's UUID and label.
fn root_copy(guest: &Guest) -> Carrier {
    static FILES: Contents = Contents { kind: "root", make: "", active: "false", release: "true" };
    let carrier = Carrier::new(guest, &FILES, "claimed");
    make_root_copy(&carrier.disk);
    carrier
}

fn make_root_copy(disk: &Disk) {
    let made = std::process::Command::new("mkfs.ext4")
        .args(["-q", "-F", "-U", ROOT_UUID, "-L", ROOT_LABEL])
        .arg(&disk.file)
        .status();
    assert!(made.unwrap().success());
}

fn the_copy_would_take_the_roots_place_if_it_were_not_claimed(guest: &Guest) {
    let volume = Volume::random();
    let copy = guest.blank(&volume.serial, SIZE);
    make_root_copy(&copy);
    let root = guest.run(&format!("readlink -f /dev/disk/by-uuid/{ROOT_UUID}"));
    guest.plug(&copy);
    guest.eventually(&format!("[ $(readlink -f /dev/disk/by-uuid/{ROOT_UUID}) != {} ]", root.trim()));
    println!("the control: a copy of the root that nobody claims takes its link");
    guest.unplug(&copy);
    guest.eventually(&format!("[ $(readlink -f /dev/disk/by-uuid/{ROOT_UUID}) = {} ]", root.trim()));
}

/// Makes disks whose serials belong to no volume; udev probes them in the initramfs too.
fn baits(guest: &Guest) -> Vec<Carrier> {
    let bait = |contents: &'static Contents| {
        let mut bait = Carrier::new(guest, contents, "bait");
        bait.volume.serial = format!("bait-{}", contents.kind);
        bait.disk.serial.clone_from(&bait.volume.serial);
        bait
    };
    [&KINDS[0], &KINDS[2]].map(bait).into()
}

/// Checks which arrays were started before the root file system was mounted.
fn only_the_bait_was_activated_in_the_initramfs(guest: &Guest) {
    let log = guest.run("dmesg | grep -E 'md/raid1:|EXT4-fs .* mounted|device-mapper: |systemd 2[0-9]+.* running in'");
    println!("{log}");
    let (before, after) = log.split_once("EXT4-fs").expect("the root is mounted");
    assert_eq!(before.matches("active with 1 out of 1").count(), 1, "the bait's array, and no other");
    assert!(after.contains("active with 1 out of 1"), "the control: the twin's array, later");
}

/// bcache-tools probes every disk that udev's own probing has not recognised.
#[test]
fn the_probe_of_bcache_does_not_read_a_claimed_disk() {
    let guest = Guest::up("the_probe_of_bcache_does_not_read_a_claimed_disk", Machine::Q35);
    guest.run(
        "cd /lib/udev && mv probe-bcache probe-bcache.real && printf '#!/bin/sh\\necho \"$@\" >>/run/probed\\nexec \
         /lib/udev/probe-bcache.real \"$@\"\\n' >probe-bcache && chmod 755 probe-bcache",
    );
    let (claimed, other) = (Volume::random(), Volume::random());
    guest.intend(&claimed);
    for volume in [&claimed, &other] {
        guest.plug(&guest.disk(volume, 2 * MIB));
        guest.run(&format!("udevadm wait --settle --timeout=60 /dev/disk/by-id/virtio-{}", volume.serial));
    }
    guest.wait(&claimed, "ready");
    let node = |volume: &Volume| guest.run(&format!("readlink -f /dev/disk/by-id/virtio-{}", volume.serial));
    let probed = guest.run("cat /run/probed");
    assert!(probed.contains(node(&other).trim()), "the control: {probed}");
    assert!(!probed.contains(node(&claimed).trim()), "{probed}");
}
