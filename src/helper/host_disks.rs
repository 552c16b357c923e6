//! `host-disks`: writes down the serials of the disks this host lives on. Adds, never removes: a host disk that is not in
//! use just now stays one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::{HelperCode, Refusal};
use crate::device::facts::{Facts, Use};
use crate::device::host::HostUse;
use crate::device::sysfs::Sysfs;
use crate::device::{limited, scheme, stack};
use crate::identity::Serial;

/// One file per serial that is never to be claimed.
const HOST_DISKS: &str = "/etc/attachd/host-disks";
/// Where a host's own file systems are mounted.
const HOME: [&str; 5] = ["/", "/boot", "/boot/efi", "/usr", "/var"];

/// The running kernel's disks.
pub(super) fn sysfs() -> Sysfs {
    Sysfs::new(scheme::ALL.to_vec(), HOST_DISKS.into())
}

/// Whether a disk of this serial is one this host lives on.
pub(super) fn is_one(serial: Serial) -> io::Result<bool> {
    Path::new(HOST_DISKS).join(serial.as_str()).try_exists()
}

pub(super) fn host_disks() -> Result<Value, Refusal> {
    let host = HostUse::read(Path::new("/proc"))?;
    let is_home = |used: &Use| matches!(used, Use::Swap) || matches!(used, Use::Mounted(at) if HOME.contains(&&**at));
    let mut whole = BTreeSet::new();
    for devnum in sysfs().list()?.into_iter().filter(|devnum| host.of(*devnum).iter().any(is_home)) {
        stack::whole_disks(Path::new("/sys/dev/block"), devnum, &mut whole)?;
    }
    let limited::Answers { here, unread } = limited::read(&sysfs(), whole);
    let names: BTreeSet<&str> = here.iter().map(|disk| &*disk.name).collect();
    let serials: BTreeSet<_> = here.iter().filter_map(Facts::serial).collect();
    fs::create_dir_all(HOST_DISKS)?;
    let mut added = Vec::new();
    for serial in &serials {
        match File::create_new(Path::new(HOST_DISKS).join(serial.as_str())) {
            Ok(_) => added.push(serial),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !unread.is_empty() {
        return Err(Refusal(HelperCode::Unread, format!("the serials of {} could not be read", unread.join(", "))));
    }
    // The journal has this answer: also that a list emptied by hand was filled again.
    Ok(json!({ "serials": serials, "disks": names, "added": added }))
}
