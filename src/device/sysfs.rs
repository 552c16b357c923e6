//! Reads one disk or all disks from sysfs. Needs no privilege and opens no device node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::DevNum;
use super::attributes::{Attribute, Attributes};
use super::facts::{Facts, Identity, LinkTarget, NoIdentity, Use};
use super::found::Found;
use super::host::{HostUse, HostWatch};
use super::loops::LoopUses;
use super::scheme::{self, Scheme};
use crate::identity::Serial;
use crate::procfs::unless_gone;

/// The unit of `size` in sysfs, in bytes, whatever the disk's own sector size.
const SECTOR: u64 = 512;

/// Where to read, and the enabled schemes. Cheap to clone, so that reads can run side by side.
#[derive(Clone)]
pub struct Sysfs {
    inner: Arc<Inner>,
}

struct Inner {
    sys: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
    host: HostWatch,
    loops: Arc<LoopUses>,
    host_disks: PathBuf,
    schemes: Vec<&'static dyn Scheme>,
}

/// A disk, identified among all disks of this boot.
pub struct Present {
    /// The disk's kernel name.
    pub name: String,
    /// The disk's sequence number.
    pub diskseq: u64,
}

impl Sysfs {
    /// Reads from the running kernel.
    pub fn new(schemes: Vec<&'static dyn Scheme>, host_disks: PathBuf) -> Self {
        Self::below(Path::new("/"), schemes, host_disks)
    }

    /// Reads `sys`, `proc` and `dev` below another root, for recorded trees in tests.
    pub fn below(root: &Path, schemes: Vec<&'static dyn Scheme>, host_disks: PathBuf) -> Self {
        let (sys, proc, dev) = (root.join("sys"), root.join("proc"), root.join("dev"));
        let host = HostWatch::new(proc.clone());
        let loops = Arc::new(LoopUses::new(proc.clone(), sys.clone()));
        Self { inner: Arc::new(Inner { sys, proc, dev, host, loops, host_disks, schemes }) }
    }

    /// Returns the shared picture of loop devices.
    pub(super) fn loops(&self) -> Arc<LoopUses> {
        Arc::clone(&self.inner.loops)
    }

    /// Reads all facts of one disk; gone if there is no such whole disk. May block on the disk's serial.
    pub fn read(&self, devnum: DevNum) -> Found<Facts> {
        self.read_as(devnum, |disk| self.identity(disk)).into()
    }

    /// Reads only the serial of one disk, which is enough to find a disk by its serial.
    pub fn serial(&self, devnum: DevNum) -> Found<Option<Serial>> {
        let read = || -> io::Result<_> {
            let Some(disk) = DiskFolder::open(devnum, &self.folder(devnum))? else { return Ok(None) };
            self.serial_of(&disk).map(Some)
        };
        read().into()
    }

    /// Returns the disk with this number if it shows this serial now. Does not read how the disk is used, which needs
    /// a read of the whole host. May block on the disk's serial.
    pub fn showing(&self, devnum: DevNum, serial: Serial) -> Found<Present> {
        let read = || -> io::Result<_> {
            let Some(disk) = DiskFolder::open(devnum, &self.folder(devnum))? else { return Ok(None) };
            let Some(diskseq) = unless_gone(disk.attributes.number("diskseq"))? else { return Ok(None) };
            let shown = self.serial_of(&disk)?;
            Ok((shown == Some(serial)).then_some(Present { name: disk.name, diskseq }))
        };
        read().into()
    }

    /// Reads the facts of a disk whose serial could not be requested, or which did not answer. Never blocks.
    pub fn read_unanswered(&self, devnum: DevNum, why: &str) -> Found<Facts> {
        self.read_as(devnum, |_| Err(NoIdentity::Unreadable(why.to_owned()))).into()
    }

    /// Returns the numbers of all block devices, partitions included; [`Sysfs::read`] excludes partitions. Never
    /// blocks.
    pub fn list(&self) -> io::Result<Vec<DevNum>> {
        let entries = fs::read_dir(self.inner.sys.join("dev/block"))?;
        let number = |entry: io::Result<fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).transpose()
        };
        entries.filter_map(number).collect()
    }

    /// Checks whether the disk with this number still has this disk sequence number. The kernel never gives a
    /// sequence number twice in one boot. Gone if another disk has the number. Never blocks.
    pub fn still(&self, devnum: DevNum, diskseq: u64) -> Found<()> {
        let disk = unless_gone(Attributes::open(&self.folder(devnum)));
        let now = disk.and_then(|disk| disk.map_or(Ok(None), |disk| unless_gone(disk.number("diskseq"))));
        now.map(|now| now.filter(|now| *now == diskseq).map(drop)).into()
    }

    /// Resolves a by-id path now. Never blocks.
    pub fn resolve(&self, link: &str) -> io::Result<LinkTarget> {
        let path = self.inner.dev.join(link.strip_prefix("/dev/").unwrap_or(link));
        match rustix::fs::stat(&path) {
            Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device() => {
                Ok(LinkTarget::Device(DevNum::from_raw(stat.st_rdev), stat.st_gid))
            }
            Ok(_) | Err(Errno::LOOP) => Ok(LinkTarget::Other),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(LinkTarget::Missing),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the group of the device's node in `/dev`; `None` if there is no such node. Never blocks.
    pub fn node_group(&self, devnum: DevNum) -> io::Result<Option<u32>> {
        let Some(folder) = unless_gone(Attributes::open(&self.folder(devnum)))? else { return Ok(None) };
        let text = unless_gone(folder.text("uevent"))?.unwrap_or_default();
        let Some(name) = text.lines().find_map(|line| line.strip_prefix("DEVNAME=")) else { return Ok(None) };
        self.group_of(name, devnum)
    }

    fn group_of(&self, node: &str, devnum: DevNum) -> io::Result<Option<u32>> {
        let stat = unless_gone(rustix::fs::stat(self.inner.dev.join(node)).map_err(Into::into))?;
        Ok(stat.filter(|stat| DevNum::from_raw(stat.st_rdev) == devnum).map(|stat| stat.st_gid))
    }

    /// Returns the id of this boot; disk sequence numbers are valid only within one boot.
    pub fn boot_id(&self) -> io::Result<Arc<str>> {
        Ok(fs::read_to_string(self.inner.proc.join("sys/kernel/random/boot_id"))?.trim().into())
    }

    fn folder(&self, devnum: DevNum) -> PathBuf {
        self.inner.sys.join("dev/block").join(devnum.to_string())
    }

    fn read_as(
        &self,
        devnum: DevNum,
        identify: impl FnOnce(&DiskFolder) -> Result<Identity, NoIdentity>,
    ) -> io::Result<Option<Facts>> {
        let Some(disk) = DiskFolder::open(devnum, &self.folder(devnum))? else { return Ok(None) };
        let Some(seq) = unless_gone(Attribute::open(&disk.attributes, "diskseq"))? else { return Ok(None) };
        let Some(diskseq) = unless_gone(seq.number())? else { return Ok(None) };
        let identity = identify(&disk);
        let (size, read_only) = (disk.attributes.number("size"), disk.attributes.number("ro"));
        // This is read last. If it changed, the facts above may come from two disks. If it is gone, the reads above
        // failed because of that.
        let Some(diskseq_after) = unless_gone(seq.number())? else { return Ok(None) };
        let (size_bytes, read_only) = (size? * SECTOR, read_only? == 1);
        Ok(Some(Facts { devnum, name: disk.name, diskseq, diskseq_after, size_bytes, read_only, identity }))
    }

    fn identity(&self, disk: &DiskFolder) -> Result<Identity, NoIdentity> {
        let Some(scheme) = self.scheme_of(disk).map_err(failed("its bus"))? else { return Err(NoIdentity::OtherBus) };
        let text = scheme.serial(&disk.attributes).map_err(failed("its serial"))?;
        let text = text.ok_or(NoIdentity::NoSerial)?;
        let serial: Serial = text.parse().map_err(|_| NoIdentity::OddSerial(text))?;
        let is_on = self.inner.schemes.iter().any(|on| on.name() == scheme.name());
        let instead = (!is_on).then(|| self.inner.schemes.iter().map(|on| on.link(serial)).collect());
        let link = scheme.link(serial);
        let link_target = self.resolve(&link).map_err(failed("its link"))?;
        let node_group = match link_target {
            LinkTarget::Device(devnum, _) if devnum == disk.devnum => None,
            _ => self.group_of(&disk.name, disk.devnum).map_err(failed("its node"))?,
        };
        // Without the host's mounts and swap, a disk of the host could not be told from a volume's.
        let host = self.inner.host.now().map_err(failed("what this host uses"))?;
        let uses = self.uses(disk, serial, &host).map_err(failed("who uses it"))?;
        Ok(Identity { scheme: scheme.name(), instead, serial, link, link_target, node_group, uses })
    }

    fn serial_of(&self, disk: &DiskFolder) -> io::Result<Option<Serial>> {
        let Some(scheme) = self.scheme_of(disk)? else { return Ok(None) };
        let text = scheme.serial(&disk.attributes)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    fn scheme_of(&self, disk: &DiskFolder) -> io::Result<Option<&'static dyn Scheme>> {
        for scheme in self.inner.schemes.iter().chain(scheme::BUSES) {
            if scheme.accepts(&disk.name, &disk.attributes)? {
                return Ok(Some(*scheme));
            }
        }
        Ok(None)
    }

    /// Returns every use of the disk and of its partitions.
    fn uses(&self, disk: &DiskFolder, serial: Serial, host: &HostUse) -> io::Result<Vec<Use>> {
        let mut uses: Vec<Use> = host.of(disk.devnum).to_vec();
        let loops = self.inner.loops.now()?;
        let under_loop = |number| loops.get(&number).into_iter().flatten().cloned();
        uses.extend(under_loop(disk.devnum));
        uses.extend(holders(&disk.attributes)?);
        for part in disk.partitions()? {
            // If the partition is gone by now, its open folder makes this fail, and the disk is read again.
            let text = part.text("dev")?;
            let number = text.parse().map_err(|()| io::Error::other(format!("{text:?} is no device number")))?;
            uses.extend(host.of(number).iter().cloned());
            uses.extend(under_loop(number));
            uses.extend(holders(&part)?);
        }
        if self.inner.host_disks.join(serial.as_str()).try_exists()? {
            uses.push(Use::HostDisk);
        }
        Ok(uses)
    }
}

/// Makes an error that says what could not be read, and why.
fn failed(what: &str) -> impl Fn(io::Error) -> NoIdentity {
    move |error| NoIdentity::Unreadable(format!("{what}: {error}"))
}

/// The folder of a whole disk.
struct DiskFolder {
    devnum: DevNum,
    /// The disk's kernel name.
    name: String,
    attributes: Attributes,
    /// The names in the folder.
    entries: Vec<String>,
}

impl DiskFolder {
    /// Opens the folder; `None` if there is no such device or if it is a partition.
    fn open(devnum: DevNum, link: &Path) -> io::Result<Option<Self>> {
        let Some(target) = unless_gone(fs::read_link(link))? else { return Ok(None) };
        let folder = link.parent().unwrap_or(link).join(&target);
        let Some(attributes) = unless_gone(Attributes::open(&folder))? else { return Ok(None) };
        let Some(entries) = unless_gone(attributes.names())? else { return Ok(None) };
        let whole = !entries.iter().any(|entry| entry == "partition");
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(whole.then_some(Self { devnum, name, attributes, entries }))
    }

    /// Opens the folders of the partitions, which are in the disk's folder and begin with its name.
    fn partitions(&self) -> io::Result<Vec<Attributes>> {
        let mut parts = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.starts_with(&self.name)) {
            if let Some(part) = unless_gone(self.attributes.below(entry))?
                && part.has("partition")?
            {
                parts.push(part);
            }
        }
        Ok(parts)
    }
}

fn holders(device: &Attributes) -> io::Result<impl Iterator<Item = Use> + use<>> {
    Ok(device.names_below("holders")?.into_iter().map(Use::Holder))
}
