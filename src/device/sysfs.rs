//! Reads what is there: one disk, or all of them. Needs no privilege and opens no device node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DevNum;
use super::attributes::{Attribute, Attributes};
use super::facts::{Facts, Identity, LinkTarget, NoIdentity, Use};
use super::host::{HostUse, HostWatch};
use super::loops;
use super::scheme::{self, Scheme};
use crate::identity::Serial;

/// sysfs' unit of `size`, whatever the disk's own sector size is.
const SECTOR: u64 = 512;

/// Where to read, and which schemes to read by. Cheap to clone: readings run side by side.
#[derive(Clone)]
pub struct Sysfs {
    inner: Arc<Inner>,
}

struct Inner {
    sys: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
    host: HostWatch,
    host_disks: PathBuf,
    schemes: Vec<&'static dyn Scheme>,
}

impl Sysfs {
    /// Reads the running kernel.
    pub fn new(schemes: Vec<&'static dyn Scheme>, host_disks: PathBuf) -> Self {
        Self::below(Path::new("/"), schemes, host_disks)
    }

    /// Reads `sys`, `proc` and `dev` below another root: recorded trees in tests.
    pub fn below(root: &Path, schemes: Vec<&'static dyn Scheme>, host_disks: PathBuf) -> Self {
        let (sys, proc, dev) = (root.join("sys"), root.join("proc"), root.join("dev"));
        let host = HostWatch::new(proc.clone());
        Self { inner: Arc::new(Inner { sys, proc, dev, host, host_disks, schemes }) }
    }

    /// The facts of one disk, `None` when there is no such whole disk (any more). May block on the disk's serial.
    pub fn read(&self, devnum: DevNum) -> Option<Facts> {
        self.read_as(devnum, |disk| self.identity(disk))
    }

    /// The facts of one disk whose serial did not answer. Never blocks.
    pub fn read_unanswered(&self, devnum: DevNum, why: &str) -> Option<Facts> {
        self.read_as(devnum, |_| Err(NoIdentity::Unreadable(why.to_owned())))
    }

    /// The numbers of all block devices, partitions included: [`Sysfs::read`] tells them apart. Never blocks.
    pub fn list(&self) -> io::Result<Vec<DevNum>> {
        let entries = fs::read_dir(self.inner.sys.join("dev/block"))?;
        let number = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).transpose()
        };
        entries.filter_map(number).collect()
    }

    /// Whether the disk of this number is still the one with this disk sequence number: the kernel never gives a
    /// sequence number twice in one boot. Never blocks.
    pub fn still(&self, devnum: DevNum, diskseq: u64) -> bool {
        Attributes::open(&self.folder(devnum)).is_ok_and(|disk| disk.number("diskseq") == Some(diskseq))
    }

    /// What a by-id path resolves to now. Never blocks.
    pub fn resolve(&self, link: &str) -> LinkTarget {
        let path = self.inner.dev.join(link.strip_prefix("/dev/").unwrap_or(link));
        match rustix::fs::stat(&path) {
            Err(_) => LinkTarget::Missing,
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device() => {
                LinkTarget::Device(DevNum::from_raw(stat.st_rdev), stat.st_gid)
            }
            Ok(_) => LinkTarget::Other,
        }
    }

    /// This boot's id: disk sequence numbers mean nothing outside of it.
    pub fn boot_id(&self) -> io::Result<String> {
        Ok(fs::read_to_string(self.inner.proc.join("sys/kernel/random/boot_id"))?.trim().to_owned())
    }

    fn folder(&self, devnum: DevNum) -> PathBuf {
        self.inner.sys.join("dev/block").join(devnum.to_string())
    }

    fn read_as(&self, devnum: DevNum, identify: impl FnOnce(&Disk) -> Result<Identity, NoIdentity>) -> Option<Facts> {
        let disk = Disk::open(devnum, &self.folder(devnum))?;
        let seq = Attribute::open(&disk.attributes, "diskseq").ok()?;
        let diskseq = seq.number()?;
        let identity = identify(&disk);
        let size_bytes = disk.attributes.number("size").unwrap_or(0) * SECTOR;
        let read_only = disk.attributes.number("ro") == Some(1);
        // Read last: when it moved, the readings above may be of two disks.
        let diskseq_after = seq.number()?;
        Some(Facts { devnum, name: disk.name, diskseq, diskseq_after, size_bytes, read_only, identity })
    }

    fn identity(&self, disk: &Disk) -> Result<Identity, NoIdentity> {
        let mut schemes = self.inner.schemes.iter().chain(scheme::BUSES);
        let of_disk = |scheme: &&&'static dyn Scheme| scheme.accepts(&disk.name, &disk.attributes);
        let scheme = schemes.find(of_disk).ok_or(NoIdentity::OtherBus)?;
        let text = scheme.serial(&disk.attributes).map_err(|error| NoIdentity::Unreadable(error.to_string()))?;
        let text = text.ok_or(NoIdentity::NoSerial)?;
        let serial: Serial = text.parse().map_err(|_| NoIdentity::OddSerial(text))?;
        let is_on = self.inner.schemes.iter().any(|on| on.name() == scheme.name());
        let instead = (!is_on).then(|| self.inner.schemes.iter().map(|on| on.link(serial)).collect());
        let link = scheme.link(serial);
        let link_target = self.resolve(&link);
        // Without knowing what the host uses, no disk can be told from the host's own.
        let unknown = |error| NoIdentity::Unreadable(format!("what this host uses is unknown: {error}"));
        let uses = self.inner.host.now().and_then(|host| self.uses(disk, serial, &host)).map_err(unknown)?;
        Ok(Identity { scheme: scheme.name(), instead, serial, link, link_target, uses })
    }

    /// Every use of the disk and of its partitions.
    fn uses(&self, disk: &Disk, serial: Serial, host: &HostUse) -> io::Result<Vec<Use>> {
        let mut uses: Vec<Use> = host.of(disk.devnum).to_vec();
        let loops = loops::uses(&self.inner.sys)?;
        let under_loop = |number| loops.iter().filter(move |(below, _)| *below == number).map(|(_, used)| used.clone());
        uses.extend(under_loop(disk.devnum));
        uses.extend(holders(&disk.attributes));
        for part in disk.partitions() {
            let number = part.text("dev").ok().and_then(|text| text.parse().ok());
            uses.extend(number.iter().flat_map(|number| host.of(*number).iter().cloned()));
            uses.extend(number.into_iter().flat_map(under_loop));
            uses.extend(holders(&part));
        }
        if self.inner.host_disks.join(serial.as_str()).exists() {
            uses.push(Use::HostDisk);
        }
        Ok(uses)
    }
}

/// A whole disk's folder.
struct Disk {
    devnum: DevNum,
    /// The kernel's name.
    name: String,
    attributes: Attributes,
    /// What is in the folder.
    entries: Vec<String>,
}

impl Disk {
    /// Opens it; `None` when there is none (any more), or when it is a partition.
    fn open(devnum: DevNum, link: &Path) -> Option<Self> {
        let target = fs::read_link(link).ok()?;
        let attributes = Attributes::open(&link.parent()?.join(&target)).ok()?;
        let entries = attributes.names();
        let whole = !entries.iter().any(|entry| entry == "partition");
        let name = target.file_name()?.to_str()?.to_owned();
        whole.then_some(Self { devnum, name, attributes, entries })
    }

    /// The folders of its partitions: they stand in the disk's own and begin with its name.
    fn partitions(&self) -> impl Iterator<Item = Attributes> {
        let named_so = self.entries.iter().filter(|entry| entry.starts_with(&self.name));
        named_so.filter_map(|entry| self.attributes.below(entry).ok()).filter(|part| part.has("partition"))
    }
}

fn holders(device: &Attributes) -> impl Iterator<Item = Use> + use<> {
    device.names_below("holders").into_iter().map(Use::Holder)
}
