//! The world of the simulation: what is true, whatever the engine believes.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::host::{Host, link};
use super::server::Nbd;
use super::store::Durable;
use super::tasks::Gates;
use crate::device::DevNum;
use crate::device::evidence::Evidence;
use crate::device::facts::LinkTarget;
use crate::identity::{Serial, VolumeId};
use crate::store::Change;
use crate::volume::By;

/// The number of volumes. The last two have the same serial.
pub(super) const VOLUMES: u32 = 7;

pub(super) fn volume(n: u32) -> VolumeId {
    let n = if n + 1 == VOLUMES { (n - 1, 1) } else { (n, 0) };
    format!("{:08x}-1b59-4f62-97e8-cefffdfe380{}", n.0, n.1).parse().expect("an id")
}

#[allow(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub(super) struct Model {
    pub(super) rng: Rng,
    pub(super) gates: Gates,
    pub(super) host: Host,
    pub(super) store: Durable,
    pub(super) nbd: Nbd,
    pub(super) claims: BTreeSet<Serial>,
    /// Claims that were added or removed since a restoration began.
    pub(super) claims_touched: BTreeSet<Serial>,
    /// Whether claims cannot be added or removed.
    pub(super) claims_broken: bool,
    pub(super) helper_is_away: bool,
    /// Whether no thread can be started.
    pub(super) no_threads: bool,
    /// Disks that owe an answer.
    pub(super) hanging: BTreeSet<DevNum>,
    /// The number of boots.
    pub(super) boot: u32,
    /// Disks that the helper has last reported as free, and that were not published since.
    pub(super) free: BTreeSet<(DevNum, u64)>,
    /// Volumes whose withdrawal was forced.
    pub(super) forced: BTreeSet<VolumeId>,
    /// Serials whose claim another program has removed.
    pub(super) stolen: BTreeSet<Serial>,
    /// Volumes that are served and to which nothing has happened since. They stay served whatever cannot be read, is
    /// forged, dies or is killed.
    pub(super) quiet: BTreeSet<VolumeId>,
    /// Whether no failure happens now.
    pub(super) calm: bool,
    /// The violations found so far.
    pub(super) violations: Vec<String>,
}

impl Model {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let is_told = rng.bool();
        let mut model = Self {
            rng,
            gates: Gates::default(),
            host: Host::default(),
            store: Durable::default(),
            nbd: Nbd { is_told, ..Nbd::default() },
            claims: BTreeSet::new(),
            claims_touched: BTreeSet::new(),
            claims_broken: false,
            helper_is_away: false,
            no_threads: false,
            hanging: BTreeSet::new(),
            boot: 1,
            free: BTreeSet::new(),
            forced: BTreeSet::new(),
            stolen: BTreeSet::new(),
            quiet: BTreeSet::new(),
            calm: false,
            violations: Vec::new(),
        };
        model.host.udevd.alive = true;
        model.nbd.start();
        model
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        !self.calm && self.rng.u32(0..100) < percent
    }

    pub(super) fn boot_id(&self) -> std::sync::Arc<str> {
        format!("boot {}", self.boot).into()
    }

    /// Marks that something happens to disks with this serial.
    pub(super) fn disturb(&mut self, serial: Serial) {
        self.quiet.retain(|id| id.serial() != serial);
    }

    pub(super) fn plug(&mut self, devnum: DevNum, id: VolumeId, size: u64) {
        self.disturb(id.serial());
        self.host.plug(devnum, id, size);
    }

    pub(super) fn pull(&mut self, devnum: DevNum) {
        if let Some(serial) = self.host.disks.get(&devnum).map(|disk| disk.serial) {
            self.disturb(serial);
        }
        self.host.pull(devnum);
    }

    pub(super) fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Returns the clients that are connected to the disk of this mapping, or to a present disk of the volume.
    pub(super) fn clients_of(&self, volume: VolumeId, mapping: Option<&Evidence>) -> Vec<String> {
        let boot = self.boot_id();
        let present: Vec<u64> = self.host.with_serial(volume.serial()).map(|(_, disk)| disk.diskseq).collect();
        let mapped = mapping.filter(|mapping| mapping.boot_id == boot).map(|mapping| mapping.diskseq);
        let of = self.nbd.clients.iter().filter(|client| client.volume == volume);
        let of = of.filter(|client| present.contains(&client.diskseq) || mapped == Some(client.diskseq));
        of.map(|client| client.name.clone()).collect()
    }

    /// Commits changes. All of them are durable from here on.
    pub(super) fn commit(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.check_commit(&change);
            self.store.apply(change);
        }
    }

    /// Checks that no volume is withdrawn or sealed while a client is connected, unless that was forced.
    fn check_commit(&mut self, change: &Change) {
        let (id, what) = match change {
            Change::Withdraw(id) => (*id, "goes"),
            Change::Seal(id, Some(By::Operation(_))) => (*id, "is sealed"),
            _ => return,
        };
        let Some(record) = self.store.records.get(&id) else { return };
        let lingered = record.sealed == Some(By::Withdrawal);
        let clients = self.clients_of(id, record.mapping.as_ref());
        if !clients.is_empty() && (lingered || !self.forced.contains(&id)) && !self.nbd.touched.contains(&id) {
            self.violated(format!("{id} {what} while clients are connected: {clients:?}"));
        }
        if self.nbd.exports.contains_key(&id) && !self.nbd.touched.contains(&id) && !self.nbd.stuck.contains(&id) {
            self.violated(format!("{id} {what} while its export is there"));
        }
    }

    /// Checks that a volume that is published is recorded, proven and free at that moment.
    pub(super) fn check_published(&mut self, id: VolumeId, target: &str) {
        let boot = self.boot_id();
        let Some(record) = self.store.records.get(&id) else {
            return self.violated(format!("{id} is published and on no record"));
        };
        if let Some(by) = record.sealed {
            return self.violated(format!("{id} is published and sealed by {by:?}"));
        }
        let Some(mapping) = record.mapping.clone().filter(|mapping| mapping.boot_id == boot) else {
            return self.violated(format!("{id} is published and has no mapping on record"));
        };
        let disk = self.host.disks.get(&mapping.devnum).cloned();
        let Some(disk) = disk.filter(|disk| disk.diskseq == mapping.diskseq) else {
            return self.violated(format!("{id} is published and its disk is not there"));
        };
        if disk.serial != id.serial() || disk.size != mapping.size_bytes || target != link(id.serial()) {
            self.violated(format!("{id} is published as {target} and is not its disk: {disk:?}"));
        }
        let leads = self.host.resolve(id.serial());
        if leads != LinkTarget::Device(mapping.devnum, super::host::NBD) {
            self.violated(format!("{id} is published and its link leads to {leads:?}"));
        }
        if !self.free.remove(&(mapping.devnum, mapping.diskseq)) {
            self.violated(format!("{id} is published and nobody has shown that its disk is free"));
        }
    }
}
