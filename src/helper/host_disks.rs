//! `host-disks`: records the serials of this host's own disks. It adds serials and never removes one, because a host
//! disk may be unused at the moment.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::{ErrorAnswer, HelperCode};
use crate::device::facts::{Facts, Use};
use crate::device::host::HostUse;
use crate::device::sysfs::Sysfs;
use crate::device::{limited, scheme, stack};
use crate::identity::Serial;

/// The folder with one file for each serial that must never be claimed.
const HOST_DISKS: &str = "/etc/attachd/host-disks";
/// The mount points of the host's own file systems.
const HOME: [&str; 5] = ["/", "/boot", "/boot/efi", "/usr", "/var"];

/// Returns a reader for the running kernel.
pub(super) fn sysfs() -> Sysfs {
    Sysfs::new(scheme::ALL.to_vec(), HOST_DISKS.into())
}

/// Returns whether a disk with this serial is listed as the host's own.
pub(super) fn is_one(serial: Serial) -> io::Result<bool> {
    Path::new(HOST_DISKS).join(serial.as_str()).try_exists()
}

pub(super) fn host_disks() -> Result<Value, ErrorAnswer> {
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
        return Err(ErrorAnswer(HelperCode::Unread, format!("the serials of {} could not be read", unread.join(", "))));
    }
    // The journal gets this answer, so it shows when a list that was emptied by hand is filled again.
    Ok(json!({ "serials": serials, "disks": names, "added": added }))
}
