//! `exclusive <maj:min> <serial>`: whether the kernel would give a marked disk to one opener alone.
//!
//! Whoever mounts a disk, swaps to it or builds on it (LVM, MD, crypt, a file system of several disks) has it, or a partition
//! of it, open for itself alone. That holds in whichever namespace it was done, where no table may show it. Nothing is
//! written, and nothing read: the disk is opened and let go.

use std::path::Path;
use std::time::Duration;
use std::{io, thread};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::retrigger::{CLAIMS, is_claimed};
use super::servers::NBD;
use super::{HelperCode, Refusal, here, host_disks};
use crate::accounts::id_of;
use crate::device::facts::Use;
use crate::device::{DevNum, limited};
use crate::helper_client::ExclusiveAnswer;
use crate::identity::Serial;
use crate::procfs::unless_gone;

/// How often a disk that somebody has is tried, and the pause in between: the kernel itself takes a disk for the moment in
/// which it reads the partition table.
const TRIES: (u32, Duration) = (3, Duration::from_millis(4));

pub(super) fn exclusive(devnum: DevNum, serial: Serial) -> Result<Value, Refusal> {
    let silent = || Refusal(HelperCode::NoAnswer, format!("the disk {devnum} does not answer"));
    limited::one(devnum, move || try_open(devnum, serial)).unwrap_or_else(|| Err(silent()))
}

fn try_open(devnum: DevNum, serial: Serial) -> Result<Value, Refusal> {
    let sysfs = host_disks::sysfs();
    let what = format!("the disk {devnum} with the serial {serial}");
    // Who uses it, as far as tables show it, attachd has found out: this is about what they do not show.
    let disk = here(sysfs.showing(devnum, serial), &what)?;
    if !is_claimed(&Path::new(CLAIMS).join(serial.as_str()))? {
        return Err(Refusal(HelperCode::NotClaimed, format!("{serial} is not claimed")));
    }
    if host_disks::is_one(serial)? {
        return Err(Refusal(HelperCode::InUseByHost, format!("{} is {}", disk.name, Use::HostDisk)));
    }
    let node = Path::new("/dev").join(&disk.name);
    // A handle first: nothing is opened before it is known what it is.
    let handle = open(&node, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let handle = here(unless_gone(handle.map_err(Into::into)).into(), &what)?;
    let stat = fstat(&handle).map_err(io::Error::from)?;
    if !FileType::from_raw_mode(stat.st_mode).is_block_device() || DevNum::from_raw(stat.st_rdev) != devnum {
        return Err(Refusal(HelperCode::NodeElsewhere, format!("{} is not the device {devnum}", node.display())));
    }
    if stat.st_gid != id_of("/etc/group", NBD)? {
        return Err(Refusal(HelperCode::NotMarked, format!("{} is not the NBD servers'", node.display())));
    }
    let why = format!("somebody on this host has {} or a part of it open exclusively, as a mount has", node.display());
    alone(&handle).map_err(|error| match error {
        Errno::BUSY => Refusal(HelperCode::InUseByHost, why),
        error => io::Error::from(error).into(),
    })?;
    // The number was this disk's before and is afterwards, so it was this disk's in between.
    here(sysfs.still(devnum, disk.diskseq), &what)?;
    Ok(json!(ExclusiveAnswer { diskseq: disk.diskseq }))
}

/// Opens what the handle stands for, for this program alone, and lets it go.
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
