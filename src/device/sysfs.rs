//! Reads what is there: one disk, or all of them. Needs no privilege and opens no device node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DevNum;
use super::attribute;
use super::facts::{Facts, Identity, LinkTarget, NoIdentity, Use};
use super::host::HostUse;
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
        let inner =
            Inner { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev"), host_disks, schemes };
        Self { inner: Arc::new(inner) }
    }

    /// The facts of one disk, `None` when there is no such whole disk (any more). May block on the disk's serial.
    pub fn read(&self, devnum: DevNum) -> Option<Facts> {
        self.read_with(devnum, &HostUse::read(&self.inner.proc))
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
        attribute::number(&self.folder(devnum).join("diskseq")) == Some(diskseq)
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
        Ok(attribute::text(&self.inner.proc.join("sys/kernel/random/boot_id"))?.trim().to_owned())
    }

    fn folder(&self, devnum: DevNum) -> PathBuf {
        self.inner.sys.join("dev/block").join(devnum.to_string())
    }

    fn read_with(&self, devnum: DevNum, host: &io::Result<HostUse>) -> Option<Facts> {
        self.read_as(devnum, |disk| match host {
            Ok(host) => self.identity(disk, devnum, host),
            // Without knowing what the host uses, no disk can be told from the host's own.
            Err(error) => Err(NoIdentity::Unreadable(format!("the host's mounts are unknown: {error}"))),
        })
    }

    fn read_as(&self, devnum: DevNum, identify: impl FnOnce(&Path) -> Result<Identity, NoIdentity>) -> Option<Facts> {
        let link = self.folder(devnum);
        let disk = link.parent()?.join(fs::read_link(&link).ok()?);
        let diskseq = attribute::number(&disk.join("diskseq"))?;
        if disk.join("partition").exists() {
            return None;
        }
        let identity = identify(&disk);
        let size_bytes = attribute::number(&disk.join("size")).unwrap_or(0) * SECTOR;
        let read_only = attribute::number(&disk.join("ro")) == Some(1);
        // Read last: when it moved, the readings above may be of two disks.
        let diskseq_after = attribute::number(&disk.join("diskseq"))?;
        let name = disk.file_name()?.to_string_lossy().into_owned();
        Some(Facts { devnum, name, diskseq, diskseq_after, size_bytes, read_only, identity })
    }

    fn identity(&self, disk: &Path, devnum: DevNum, host: &HostUse) -> Result<Identity, NoIdentity> {
        let mut schemes = self.inner.schemes.iter().chain(scheme::BUSES);
        let scheme = schemes.find(|scheme| scheme.accepts(disk)).ok_or(NoIdentity::OtherBus)?;
        let text = scheme.serial(disk).map_err(|error| NoIdentity::Unreadable(error.to_string()))?;
        let text = text.ok_or(NoIdentity::NoSerial)?;
        let serial: Serial = text.parse().map_err(|_| NoIdentity::OddSerial(text))?;
        let link_of = |scheme: &dyn Scheme| format!("/dev/disk/by-id/{}", scheme.link_name(serial));
        let is_on = self.inner.schemes.iter().any(|on| on.name() == scheme.name());
        let instead = (!is_on).then(|| self.inner.schemes.iter().map(|on| link_of(*on)).collect());
        let link = link_of(*scheme);
        let link_target = self.resolve(&link);
        let uses = self.uses(disk, devnum, serial, host);
        Ok(Identity { scheme: scheme.name(), instead, serial, link, link_target, uses })
    }

    /// Every use of the disk and of its partitions.
    fn uses(&self, disk: &Path, devnum: DevNum, serial: Serial, host: &HostUse) -> Vec<Use> {
        let mut uses: Vec<Use> = host.of(devnum).to_vec();
        uses.extend(holders(disk));
        for part in partitions(disk) {
            let part_devnum = attribute::text(&part.join("dev")).ok().and_then(|text| text.parse().ok());
            uses.extend(part_devnum.iter().flat_map(|devnum| host.of(*devnum).iter().cloned()));
            uses.extend(holders(&part));
        }
        if self.inner.host_disks.join(serial.as_str()).exists() {
            uses.push(Use::HostDisk);
        }
        uses
    }
}

/// The folders of a disk's partitions: they stand in the disk's own and begin with its name.
fn partitions(disk: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let name = disk.file_name().unwrap_or_default().to_owned();
    let named_so = move |path: &PathBuf| {
        let own = path.file_name().unwrap_or_default();
        own.as_encoded_bytes().starts_with(name.as_encoded_bytes())
    };
    entries(disk).filter(named_so).filter(|path| path.join("partition").exists())
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

fn holders(device: &Path) -> impl Iterator<Item = Use> + use<> {
    entries(&device.join("holders"))
        .filter_map(|path| path.file_name().map(|name| Use::Holder(name.to_string_lossy().into_owned())))
}
