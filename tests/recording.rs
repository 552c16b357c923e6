//! Events and disks recorded in a real guest, and sysfs trees built from the recording.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;

use attachd::device::DevNum;
use attachd::device::event::{DiskEvent, Origin};
use attachd::device::evidence::{Ground, check};
use attachd::device::facts::{Facts, LinkTarget, NoIdentity, Use};
use attachd::device::found::Found;
use attachd::device::scheme;
use attachd::device::sysfs::Sysfs;
use attachd::device::table::{Heard, Table};
use attachd::identity::Serial;
use jiff::Timestamp;
use proptest::prelude::*;

const RECORDING: &str = include_str!("data/virtio-hotplug-recording.txt");
const VDA: DevNum = DevNum { major: 254, minor: 0 };
const VDB: DevNum = DevNum { major: 254, minor: 16 };
const NBD_GID: u32 = 4242;

/// Returns the property blocks of `udevadm monitor`.
fn blocks() -> Vec<HashMap<&'static str, &'static str>> {
    let starts = RECORDING.split("\nUDEV  [").skip(1);
    starts
        .map(|block| {
            block.lines().skip(1).take_while(|line| !line.is_empty()).filter_map(|line| line.split_once('=')).collect()
        })
        .collect()
}

fn event(origin: Origin, properties: &HashMap<&str, &str>) -> Option<DiskEvent> {
    DiskEvent::from_properties(origin, |key| properties.get(key).map(|value| (*value).to_owned()))
}

#[test]
fn events_of_whole_disks_are_read_and_those_of_partitions_are_not() {
    let all = blocks();
    assert_eq!(all.len(), 14);
    let disks: Vec<_> = all.iter().filter_map(|block| event(Origin::Udev, block)).collect();
    let heard: Vec<_> = disks.iter().map(|event| (event.action.as_str(), event.devnum, event.diskseq)).collect();
    let expected = [
        ("add", VDA, Some(1)),
        ("add", VDB, Some(2)),
        ("change", VDB, Some(2)),
        ("change", VDA, Some(1)),
        ("change", VDB, Some(2)),
        ("remove", VDA, Some(1)),
    ];
    assert_eq!(heard, expected, "`blockdev --rereadpt` and the partitions' events are no attach and no detach");
}

/// A sysfs tree with virtio disks, and real device nodes in its `dev`.
struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["sys/dev/block", "sys/bus/virtio", "proc/self", "dev/disk/by-id", "host-disks"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let tree = Self { root };
        tree.write("proc/self/mountinfo", "28 1 253:1 / / rw - ext4 /dev/vdz1 rw\n");
        tree.write("proc/swaps", "Filename Type Size Used Priority\n");
        tree
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.root.path().join(path), text).unwrap();
    }

    fn disk(&self, name: &str, devnum: DevNum, diskseq: u64, serial: Option<&str>) -> String {
        let folder = format!("sys/devices/pci0000:00/{name}-virtio/block/{name}");
        fs::create_dir_all(self.root.path().join(&folder).join("holders")).unwrap();
        fs::create_dir_all(self.root.path().join(&folder).join("device")).unwrap();
        let _ =
            symlink(self.root.path().join("sys/bus/virtio"), self.root.path().join(&folder).join("device/subsystem"));
        self.write(&format!("{folder}/diskseq"), &format!("{diskseq}\n"));
        self.write(&format!("{folder}/size"), "131072\n");
        self.write(&format!("{folder}/ro"), "0\n");
        self.write(&format!("{folder}/serial"), serial.unwrap_or_default());
        let _ = symlink(self.root.path().join(&folder), self.root.path().join(format!("sys/dev/block/{devnum}")));
        let node = self.root.path().join("dev").join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o660);
        let device = rustix::fs::makedev(devnum.major, devnum.minor);
        let _ = rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::BlockDevice, mode, device);
        std::os::unix::fs::chown(&node, None, Some(NBD_GID)).unwrap();
        folder
    }

    fn link(&self, serial: &str, name: &str) {
        symlink(format!("../../{name}"), self.root.path().join(format!("dev/disk/by-id/virtio-{serial}"))).unwrap();
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::below(self.root.path(), vec![scheme::by_name("virtio").unwrap()], self.root.path().join("host-disks"))
    }

    fn read(&self, devnum: DevNum) -> Facts {
        self.sysfs().read(devnum).here().unwrap()
    }
}

const C: &str = "cccccccccccccccccccc";
const FIVE: &str = "55555555555555555555";

fn judge(facts: Facts) -> Result<(), &'static str> {
    let mut table = Table::default();
    let serial = facts.serial().unwrap();
    table.update(facts.devnum, Found::Here(facts), 1, Heard::Look);
    let present: Vec<_> = table.with_serial(serial).collect();
    let ground = Ground { boot_id: "boot".into(), nbd_gid: NBD_GID };
    check(&ground, &present, None, Timestamp::UNIX_EPOCH).unwrap().map(drop).map_err(|refusal| refusal.code().name())
}

#[test]
fn a_virtio_disk_is_read_with_its_serial_size_and_link() {
    let tree = Tree::new();
    tree.disk("vda", VDA, 1, Some("b3bb93101b594f6297e8"));
    tree.link("b3bb93101b594f6297e8", "vda");
    let facts = tree.read(VDA);
    let identity = facts.identity.clone().unwrap();
    assert_eq!((facts.name.as_str(), facts.diskseq, facts.size_bytes, facts.read_only), ("vda", 1, 64 << 20, false));
    assert_eq!(identity.link, "/dev/disk/by-id/virtio-b3bb93101b594f6297e8");
    assert_eq!(identity.link_target, LinkTarget::Device(VDA, NBD_GID));
    assert_eq!(judge(facts), Ok(()));
    let still = |devnum, diskseq| tree.sysfs().still(devnum, diskseq);
    assert!(still(VDA, 1).is_here() && still(VDA, 2).is_gone() && still(VDB, 1).is_gone());
}

/// The worst moment of the recording: udevd was dead while cccc's disk was pulled and 5555's disk got its name.
#[test]
fn the_stale_link_of_the_recording_matches_the_disk_to_neither_volume() {
    let tree = Tree::new();
    tree.disk("vdb", VDB, 5, Some(FIVE));
    tree.link(C, "vdb");
    let facts = tree.read(VDB);
    assert_eq!(facts.serial(), Some(FIVE.parse().unwrap()), "the disk itself is asked, not the link that leads to it");
    assert_eq!(judge(facts), Err("LINK_MISSING"));
}

#[test]
fn disks_without_a_usable_serial_are_told_apart() {
    let tree = Tree::new();
    tree.disk("vda", VDA, 4, Some("we ird/../x-$%1"));
    tree.disk("vdb", VDB, 5, None);
    assert_eq!(tree.read(VDA).identity, Err(NoIdentity::OddSerial("we ird/../x-$%1".into())));
    assert_eq!(tree.read(VDB).identity, Err(NoIdentity::NoSerial));
    let upper = "B3BB93101B594F6297E8";
    tree.disk("vda", VDA, 4, Some(upper));
    assert_eq!(tree.read(VDA).identity, Err(NoIdentity::OddSerial(upper.into())));
    std::fs::remove_file(tree.root.path().join("sys/dev/block").join(VDA.to_string()).join("device/subsystem"))
        .unwrap();
    assert_eq!(tree.read(VDA).identity, Err(NoIdentity::OtherBus));
}

#[test]
fn a_disk_whose_scheme_is_off_names_the_links_that_would_be_accepted() {
    let tree = Tree::new();
    tree.disk("vdb", VDB, 5, Some(FIVE));
    let scsi = Sysfs::below(tree.root.path(), vec![scheme::by_name("scsi").unwrap()], "/nonexistent".into());
    let identity = scsi.read(VDB).here().unwrap().identity.unwrap();
    assert_eq!(identity.instead, Some(vec![format!("/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_{FIVE}")]));
    assert_eq!(tree.read(VDB).identity.unwrap().instead, None, "the control");
}

#[test]
fn every_use_by_the_host_is_found_on_the_disk_and_on_its_partitions() {
    let tree = Tree::new();
    let folder = tree.disk("vdb", VDB, 2, Some(C));
    tree.link(C, "vdb");
    assert_eq!(tree.read(VDB).identity.unwrap().uses, []);
    let part = format!("{folder}/vdb1");
    fs::create_dir_all(tree.root.path().join(&part).join("holders/dm-0")).unwrap();
    tree.write(&format!("{part}/partition"), "1\n");
    tree.write(&format!("{part}/dev"), "254:17\n");
    symlink(tree.root.path().join(&part), tree.root.path().join("sys/dev/block/254:17")).unwrap();
    tree.write("proc/self/mountinfo", "9 1 254:17 / /srv rw - ext4 /dev/vdb1 rw\n");
    tree.write(&format!("host-disks/{C}"), "");
    let uses = tree.read(VDB).identity.unwrap().uses;
    assert_eq!(uses, [Use::Mounted("/srv".into()), Use::Holder("dm-0".into()), Use::HostDisk]);
    assert_eq!(judge(tree.read(VDB)), Err("IN_USE_BY_HOST"));
    assert!(tree.sysfs().read(DevNum { major: 254, minor: 17 }).is_gone(), "a partition is no disk");
    assert_eq!(all(&tree.sysfs()).iter().filter(|(_, found)| found.is_here()).count(), 1);
}

#[test]
fn unreadable_host_tables_make_every_disk_unusable() {
    let tree = Tree::new();
    tree.disk("vdb", VDB, 2, Some(C));
    fs::remove_file(tree.root.path().join("proc/self/mountinfo")).unwrap();
    assert!(matches!(tree.read(VDB).identity, Err(NoIdentity::Unreadable(_))));
}

/// Reads every disk of the tree.
fn all(sysfs: &Sysfs) -> Vec<(DevNum, Found<Facts>)> {
    sysfs.list().unwrap().into_iter().map(|devnum| (devnum, sysfs.read(devnum))).collect()
}

/// Returns the disk events of the whole recording in order: sender, disk, sequence number.
fn stream() -> Vec<(Origin, DevNum, u64)> {
    let devnum = |name: &str| match name {
        "/dev/vda" => Some(VDA),
        "/dev/vdb" => Some(VDB),
        _ => None,
    };
    let line = |line: &'static str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [who, _, _, node, "disk", _, diskseq, ..] = fields[..] else { return None };
        let origin = if who == "K" { Origin::Kernel } else { Origin::Udev };
        Some((origin, devnum(node)?, diskseq.strip_prefix("diskseq=")?.parse().ok()?))
    };
    RECORDING.lines().filter(|text| text.starts_with("K ") || text.starts_with("U ")).filter_map(line).collect()
}

/// Builds the state at the end of the recording, with a usable serial: one disk, and the stale link of one that is
/// gone.
fn truth(tree: &Tree) {
    tree.disk("vda", VDA, 4, Some("aaaaaaaaaaaaaaaaaaaa"));
    tree.link("aaaaaaaaaaaaaaaaaaaa", "vda");
    tree.link(C, "vdb");
}

#[test]
fn the_recording_has_enough_events_to_replay() {
    let events = stream();
    let count = |origin| events.iter().filter(|(who, ..)| *who == origin).count();
    println!("{} disk events of the kernel, {} of udev", count(Origin::Kernel), count(Origin::Udev));
    assert!(count(Origin::Kernel) > 10 && count(Origin::Udev) > 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Invariant 3: in any order, with any event missing or repeated, events only make the daemon read. It sees what
    /// is there, and after one resync it has seen everything.
    #[test]
    fn any_replay_of_the_recording_ends_with_the_real_disks(
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..80)
    ) {
        let tree = Tree::new();
        truth(&tree);
        let (sysfs, events) = (tree.sysfs(), stream());
        let a: Serial = "aaaaaaaaaaaaaaaaaaaa".parse().unwrap();
        let mut table = Table::default();
        let mut reading = 0;
        for index in order {
            let (origin, devnum, diskseq) = *index.get(&events);
            reading += 1;
            let heard = Heard::Event(origin, Some(diskseq), Timestamp::UNIX_EPOCH);
            table.update(devnum, sysfs.read(devnum), reading, heard);
            prop_assert_eq!(table.with_serial(C.parse().unwrap()).count(), 0, "no event brings back a disk that is gone");
            prop_assert!(table.with_serial(a).all(|device| device.facts.devnum == VDA && device.facts.diskseq == 4));
        }
        table.replace(all(&sysfs), reading + 1, |_| false);
        prop_assert_eq!(table.all().count(), 1);
        prop_assert!(table.with_serial(a).all(|device| device.settled));
    }
}

#[test]
fn a_link_to_something_other_than_a_block_device_is_recognised() {
    let tree = Tree::new();
    assert_eq!(tree.sysfs().resolve("/dev/disk/by-id/virtio-none").unwrap(), LinkTarget::Missing);
    fs::write(tree.root.path().join("dev/disk/by-id/virtio-file"), "").unwrap();
    assert_eq!(tree.sysfs().resolve("/dev/disk/by-id/virtio-file").unwrap(), LinkTarget::Other);
}
