//! The host of the simulation: disks, the kernel's events, udevd with its links and marks, and what the host itself
//! uses.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;

use crate::device::DevNum;
use crate::device::event::{DiskEvent, Origin};
use crate::device::facts::{Facts, Identity, LinkTarget, NoIdentity, Use};
use crate::device::found::Found;
use crate::identity::{Serial, VolumeId};

/// The NBD servers' group, and the group that a node has at first.
pub(super) const NBD: u32 = 990;
pub(super) const ROOT: u32 = 6;

/// The device numbers of the simulation.
pub(super) const SLOTS: [DevNum; 6] = [slot(0), slot(1), slot(2), slot(3), slot(4), slot(5)];

const fn slot(n: u32) -> DevNum {
    DevNum { major: 254, minor: 16 * n }
}

/// Which parts of a disk can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readable {
    Yes,
    /// Nothing can be read.
    Not,
    /// Everything but the serial can be read.
    NoSerial,
    /// Everything but the serial can be read, because the disk does not answer in time.
    Hangs,
}

#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) serial: Serial,
    pub(super) diskseq: u64,
    pub(super) size: u64,
    /// The group of the disk's node.
    pub(super) group: u32,
    /// Whether the host uses the disk, as its tables show.
    pub(super) mounted: bool,
    /// Whether the host uses the disk in a way that only the kernel knows.
    pub(super) held: bool,
    pub(super) readable: Readable,
}

/// An event that nobody has received yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uevent {
    pub(super) action: &'static str,
    pub(super) devnum: DevNum,
    pub(super) seqnum: u64,
    pub(super) diskseq: u64,
}

#[derive(Default)]
pub(super) struct Udevd {
    pub(super) alive: bool,
    pub(super) held_up_at: Option<DevNum>,
    pub(super) queue: VecDeque<Uevent>,
    /// The serial that udevd found under each number.
    pub(super) known: BTreeMap<DevNum, Serial>,
}

#[derive(Default)]
pub(super) struct Host {
    pub(super) disks: BTreeMap<DevNum, Disk>,
    /// The by-id links.
    pub(super) links: BTreeMap<Serial, DevNum>,
    pub(super) udevd: Udevd,
    /// The events on the way to the monitor, on each of its sockets.
    pub(super) kernel: VecDeque<Uevent>,
    pub(super) udev: VecDeque<Uevent>,
    /// Whether the monitor listens.
    pub(super) heard: bool,
    /// Disks that the host has begun or ceased to use, and of which the engine is not notified yet.
    pub(super) use_changed: Vec<DevNum>,
    /// Whether nothing can be read because descriptors or memory are short.
    pub(super) unreadable: bool,
    pub(super) diskseq: u64,
    seqnum: u64,
}

/// Returns the link of a device, in virtio's scheme.
pub(super) fn link(serial: Serial) -> String {
    format!("/dev/disk/by-id/virtio-{serial}")
}

impl Host {
    /// Sends an event of the kernel.
    pub(super) fn uevent(&mut self, action: &'static str, devnum: DevNum, diskseq: u64) {
        self.seqnum += 1;
        let event = Uevent { action, devnum, seqnum: self.seqnum, diskseq };
        if self.udevd.alive {
            self.udevd.queue.push_back(event);
        }
        if self.heard {
            self.kernel.push_back(event);
        }
    }

    /// Returns the sequence number of the last event.
    pub(super) fn seqnum(&self) -> u64 {
        self.seqnum
    }

    pub(super) fn plug(&mut self, devnum: DevNum, volume: VolumeId, size: u64) {
        self.diskseq += 1;
        let diskseq = self.diskseq;
        self.uevent("add", devnum, diskseq);
        let disk = Disk {
            serial: volume.serial(),
            diskseq,
            size,
            group: ROOT,
            mounted: false,
            held: false,
            readable: Readable::Yes,
        };
        self.disks.insert(devnum, disk);
    }

    pub(super) fn pull(&mut self, devnum: DevNum) {
        if let Some(disk) = self.disks.remove(&devnum) {
            self.uevent("remove", devnum, disk.diskseq);
        }
    }

    /// Lets udevd handle its next event, and returns the event.
    pub(super) fn udevd_works(&mut self, claimed: impl Fn(Serial) -> bool) -> Option<Uevent> {
        let held_up = self.udevd.held_up_at;
        let next = self.udevd.queue.iter().position(|event| Some(event.devnum) != held_up)?;
        let event = self.udevd.queue.remove(next)?;
        let devnum = event.devnum;
        if event.action == "remove" {
            self.unlink(devnum);
        } else if let Some(disk) = self.disks.get_mut(&devnum).filter(|disk| disk.diskseq == event.diskseq) {
            let serial = disk.serial;
            if claimed(serial) {
                disk.group = NBD;
            } else if event.action == "add" {
                disk.group = ROOT;
            }
            if self.udevd.known.get(&devnum).is_some_and(|known| *known != serial) {
                self.unlink(devnum);
            }
            self.udevd.known.insert(devnum, serial);
            self.links.insert(serial, devnum);
        }
        if self.heard {
            self.udev.push_back(event);
        }
        Some(event)
    }

    fn unlink(&mut self, devnum: DevNum) {
        let Some(serial) = self.udevd.known.remove(&devnum) else { return };
        if self.links.get(&serial) != Some(&devnum) {
            return;
        }
        match self.udevd.known.iter().find(|(_, known)| **known == serial) {
            Some((other, _)) => drop(self.links.insert(serial, *other)),
            None => drop(self.links.remove(&serial)),
        }
    }

    pub(super) fn resolve(&self, serial: Serial) -> LinkTarget {
        let devnum = self.links.get(&serial);
        devnum
            .and_then(|devnum| Some((devnum, self.disks.get(devnum)?)))
            .map_or(LinkTarget::Missing, |(devnum, disk)| LinkTarget::Device(*devnum, disk.group))
    }

    pub(super) fn with_serial(&self, serial: Serial) -> impl Iterator<Item = (DevNum, &Disk)> {
        self.disks.iter().filter(move |(_, disk)| disk.serial == serial).map(|(devnum, disk)| (*devnum, disk))
    }

    pub(super) fn read(&self, devnum: DevNum) -> Found<Facts> {
        let Some(disk) = self.disks.get(&devnum) else { return Found::Gone };
        match disk.readable {
            _ if self.unreadable => Found::Unknown("no descriptors".into()),
            Readable::Yes => Found::Here(facts(devnum, disk, Ok(self.identity(disk)))),
            Readable::Not => Found::Unknown("an error".into()),
            Readable::NoSerial | Readable::Hangs => self.read_unanswered(devnum, "no serial"),
        }
    }

    pub(super) fn read_unanswered(&self, devnum: DevNum, why: &str) -> Found<Facts> {
        match self.disks.get(&devnum) {
            None => Found::Gone,
            Some(_) if self.unreadable => Found::Unknown("no descriptors".into()),
            Some(disk) => Found::Here(facts(devnum, disk, Err(NoIdentity::Unreadable(why.to_owned())))),
        }
    }

    fn identity(&self, disk: &Disk) -> Identity {
        let uses = if disk.mounted { vec![Use::Mounted("/srv".into())] } else { Vec::new() };
        Identity {
            scheme: "virtio",
            instead: None,
            serial: disk.serial,
            link: link(disk.serial),
            link_target: self.resolve(disk.serial),
            node_group: Some(disk.group),
            uses,
        }
    }

    pub(super) fn still(&self, devnum: DevNum, diskseq: u64) -> Found<()> {
        match self.disks.get(&devnum) {
            Some(_) if self.unreadable => Found::Unknown("no descriptors".into()),
            Some(disk) if disk.diskseq == diskseq => Found::Here(()),
            _ => Found::Gone,
        }
    }
}

impl Uevent {
    /// Converts the event to the monitor's form.
    pub(super) fn received(self, origin: Origin, at: Timestamp) -> DiskEvent {
        DiskEvent {
            origin,
            action: self.action.to_owned(),
            devnum: self.devnum,
            seqnum: self.seqnum,
            diskseq: Some(self.diskseq),
            at,
        }
    }
}

fn facts(devnum: DevNum, disk: &Disk, identity: Result<Identity, NoIdentity>) -> Facts {
    Facts {
        devnum,
        name: format!("vd{}", (b'a' + u8::try_from(devnum.minor / 16).unwrap_or(25)) as char),
        diskseq: disk.diskseq,
        diskseq_after: disk.diskseq,
        size_bytes: disk.size,
        read_only: false,
        identity,
    }
}
