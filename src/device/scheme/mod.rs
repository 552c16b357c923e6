//! Identity schemes: how a kind of disk gives its serial, and which by-id link udev makes from it.
//!
//! A new scheme needs one more file here and one more entry in [`ALL`].

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
    /// Returns the scheme's name in the configuration.
    fn name(&self) -> &'static str;

    /// Returns whether the disk with this kernel name and these sysfs attributes is of this kind.
    fn accepts(&self, name: &str, disk: &Attributes) -> io::Result<bool>;

    /// Reads the disk's serial live; `None` if the disk gives none. May block, because the read can be a request to
    /// the hypervisor.
    fn serial(&self, disk: &Attributes) -> io::Result<Option<String>>;

    /// Returns the link's name below `/dev/disk/by-id/` that udev's rules make for this serial.
    fn link_name(&self, serial: Serial) -> String;

    /// Returns the by-id path of the disk with this serial.
    fn link(&self, serial: Serial) -> String {
        format!("/dev/disk/by-id/{}", self.link_name(serial))
    }
}

/// Returns whether the disk is on this bus.
fn is_on_bus(disk: &Attributes, bus: &str) -> io::Result<bool> {
    let link = unless_gone(disk.link("device/subsystem"))?;
    Ok(link.is_some_and(|link| link.rsplit('/').next() == Some(bus)))
}

/// All schemes.
pub static ALL: &[&dyn Scheme] = &[&virtio::Virtio, &scsi::Scsi, &r#loop::Loop];

/// The schemes of the buses to which CloudStack attaches volumes. A disk on such a bus whose scheme is off is refused
/// by name and not ignored.
pub static BUSES: &[&dyn Scheme] = &[&virtio::Virtio, &scsi::Scsi];

/// The name of a scheme in [`ALL`].
pub type Name = &'static str;

/// Deserialises a scheme's name that another attachd process has written.
pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    let name = String::deserialize(deserializer)?;
    by_name(&name).map(Scheme::name).ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no scheme")))
}

/// Returns the scheme with this name.
pub fn by_name(name: &str) -> Option<&'static dyn Scheme> {
    ALL.iter().copied().find(|scheme| scheme.name() == name)
}
