//! How a disk comes to the host and goes.

use anyhow::Result;

/// Where the guest sees a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// As `virtio-blk`.
    Virtio,
    /// As a disk of `virtio-scsi`.
    Scsi,
}

/// A disk as the hypervisor is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The volume's id.
    pub volume: String,
    /// The serial: the id without hyphens, its first 20 characters. None for a volume that was restored from a backup.
    pub serial: Option<String>,
    /// In bytes.
    pub size: u64,
    /// Where it is to appear.
    pub bus: Bus,
}

/// Who really plugs disks. Called from the stand-in's own threads, one disk of a VM at a time, as CloudStack does it.
pub trait Plug: Send + Sync {
    /// Returns when the hypervisor has done it: the guest may know of the disk already.
    fn plug(&self, unit: &Unit) -> Result<()>;

    /// Returns when the guest has let go. An error is a guest that does not: the disk is still there.
    fn unplug(&self, volume: &str) -> Result<()>;
}

/// Nobody: for what needs no disks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPlug;

impl Plug for NoPlug {
    fn plug(&self, _: &Unit) -> Result<()> {
        Ok(())
    }

    fn unplug(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

/// CloudStack's `diskUuidToSerial`.
pub(crate) fn serial(volume: &str) -> String {
    volume.replace('-', "").chars().take(20).collect()
}
