//! `exclusive <maj:min> <serial>`: whether a marked disk can be opened exclusively.
//!
//! Whoever mounts a disk, swaps to it or builds on it (LVM, MD, crypt, a file system of several disks) holds it, or a
//! partition of it, open exclusively. That is true in every namespace, also where no table shows the use. The helper
//! opens the disk and closes it again; it reads and writes nothing.

use std::path::Path;
use std::time::Duration;
use std::{io, thread};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::retrigger::{CLAIMS, is_claimed};
use super::servers::NBD;
use super::{ErrorAnswer, HelperCode, here, host_disks};
use crate::accounts::id_of;
use crate::device::facts::Use;
use crate::device::{DevNum, limited};
use crate::helper_client::ExclusiveAnswer;
use crate::identity::Serial;
use crate::procfs::unless_gone;

/// How often a busy disk is tried, and the pause in between. The kernel itself holds a disk exclusively for the
/// moment in which it reads the partition table.
const TRIES: (u32, Duration) = (3, Duration::from_millis(4));

pub(super) fn exclusive(devnum: DevNum, serial: Serial) -> Result<Value, ErrorAnswer> {
    let silent = || ErrorAnswer(HelperCode::NoAnswer, format!("the disk {devnum} does not answer"));
    limited::one(devnum, move || try_open(devnum, serial)).unwrap_or_else(|| Err(silent()))
}

fn try_open(devnum: DevNum, serial: Serial) -> Result<Value, ErrorAnswer> {
    let sysfs = host_disks::sysfs();
    let what = format!("the disk {devnum} with the serial {serial}");
    // attachd has already checked the uses that tables show. This call is about uses that no table shows.
    let disk = here(sysfs.showing(devnum, serial), &what)?;
    if !is_claimed(&Path::new(CLAIMS).join(serial.as_str()))? {
        return Err(ErrorAnswer(HelperCode::NotClaimed, format!("{serial} is not claimed")));
    }
    if host_disks::is_one(serial)? {
        return Err(ErrorAnswer(HelperCode::InUseByHost, format!("{} is {}", disk.name, Use::HostDisk)));
    }
    let node = Path::new("/dev").join(&disk.name);
    // First only a path handle (O_PATH): nothing is opened before its kind is checked.
    let handle = open(&node, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let handle = here(unless_gone(handle.map_err(Into::into)).into(), &what)?;
    let stat = fstat(&handle).map_err(io::Error::from)?;
    if !FileType::from_raw_mode(stat.st_mode).is_block_device() || DevNum::from_raw(stat.st_rdev) != devnum {
        return Err(ErrorAnswer(HelperCode::NodeElsewhere, format!("{} is not the device {devnum}", node.display())));
    }
    if stat.st_gid != id_of("/etc/group", NBD)? {
        return Err(ErrorAnswer(HelperCode::NotMarked, format!("{} is not the NBD servers'", node.display())));
    }
    let why = format!("somebody on this host has {} or a part of it open exclusively, as a mount has", node.display());
    alone(&handle).map_err(|error| match error {
        Errno::BUSY => ErrorAnswer(HelperCode::InUseByHost, why),
        error => io::Error::from(error).into(),
    })?;
    // The disk had this number before and has it afterwards, so the opened node was this disk.
    here(sysfs.still(devnum, disk.diskseq), &what)?;
    Ok(json!(ExclusiveAnswer { diskseq: disk.diskseq }))
}

/// Opens the handle's file exclusively, and closes it.
fn alone(handle: &impl std::os::fd::AsRawFd) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut tries = 1;
    loop {
        match openat(CWD, &path, flags, Mode::empty()) {
            Err(Errno::BUSY) if tries < TRIES.0 => thread::sleep(TRIES.1),
            opened => return opened.map(drop),
        }
        tries += 1;
    }
}
