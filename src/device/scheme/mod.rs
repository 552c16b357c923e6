//! Identity schemes: how one kind of disk tells its serial, and which by-id link udev makes of it.
//!
//! A further scheme is one more file here and one more line in [`ALL`].

mod r#loop;
mod scsi;
mod virtio;

use std::io;

use super::attributes::Attributes;
use crate::identity::Serial;

/// One kind of disk.
pub trait Scheme: Sync {
    /// The name used in the configuration.
    fn name(&self) -> &'static str;

    /// Whether the disk of that kernel name, with these attributes in sysfs, is of this kind.
    fn accepts(&self, name: &str, disk: &Attributes) -> bool;

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

/// Every scheme there is.
pub static ALL: &[&dyn Scheme] = &[&virtio::Virtio, &scsi::Scsi, &r#loop::Loop];

/// How CloudStack attaches volumes: a disk on one of these whose scheme is off is refused by name, not passed over.
pub static BUSES: &[&dyn Scheme] = &[&virtio::Virtio, &scsi::Scsi];

/// The scheme of that name.
pub fn by_name(name: &str) -> Option<&'static dyn Scheme> {
    ALL.iter().copied().find(|scheme| scheme.name() == name)
}
