//! Identity schemes: how one kind of disk tells its serial, and which by-id link udev makes of it.
//!
//! A further scheme is one more file here and one more line in [`ALL`].

mod r#loop;
mod scsi;
mod virtio;

use std::io;

use serde::{Deserialize, Deserializer};

use super::attributes::Attributes;
use crate::identity::Serial;
use crate::procfs::unless_gone;

/// One kind of disk.
pub trait Scheme: Sync {
    /// The name used in the configuration.
    fn name(&self) -> &'static str;

    /// Whether the disk of that kernel name, with these attributes in sysfs, is of this kind.
    fn accepts(&self, name: &str, disk: &Attributes) -> io::Result<bool>;

    /// The text the disk gives as its serial, read live; `None` when it gives none. May block: it can be a request to
    /// the hypervisor.
    fn serial(&self, disk: &Attributes) -> io::Result<Option<String>>;

    /// The name below `/dev/disk/by-id/` that udev's rules give the disk with this serial.
    fn link_name(&self, serial: Serial) -> String;

    /// The by-id path of the disk with this serial.
    fn link(&self, serial: Serial) -> String {
        format!("/dev/disk/by-id/{}", self.link_name(serial))
    }
}

/// Whether the disk is on the bus of that name.
fn is_on_bus(disk: &Attributes, bus: &str) -> io::Result<bool> {
    let link = unless_gone(disk.link("device/subsystem"))?;
    Ok(link.is_some_and(|link| link.rsplit('/').next() == Some(bus)))
}

/// Every scheme there is.
pub static ALL: &[&dyn Scheme] = &[&virtio::Virtio, &scsi::Scsi, &r#loop::Loop];

/// How CloudStack attaches volumes: a disk on one of these whose scheme is off is refused by name, not passed over.
pub static BUSES: &[&dyn Scheme] = &[&virtio::Virtio, &scsi::Scsi];

/// A scheme's name, of [`ALL`].
pub type Name = &'static str;

/// The name of a scheme as another process of ours has written it.
pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    let name = String::deserialize(deserializer)?;
    by_name(&name).map(Scheme::name).ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no scheme")))
}

/// The scheme of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Scheme> {
    ALL.iter().copied().find(|scheme| scheme.name() == name)
}
