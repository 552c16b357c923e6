//! The loop driver's ioctls, as plain functions.

use anyhow::{Context, Result, bail};
use rustix::ioctl::{IntegerSetter, NoArg, Setter, ioctl};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const BLKPG: u32 = 0x1269;
const BLKPG_ADD_PARTITION: i32 = 1;
const LOOP_CLR_FD: u32 = 0x4C01;
const LOOP_SET_CAPACITY: u32 = 0x4C07;
const LOOP_CONFIGURE: u32 = 0x4C0A;
const LOOP_CTL_ADD: u32 = 0x4C80;
const LOOP_CTL_REMOVE: u32 = 0x4C81;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// How long a device may stay busy after its last user was told to close it. The limit is long, because udevd on a
/// loaded machine may be probing the device; it costs time only if something is wrong.
pub(crate) const BUSY: Duration = Duration::from_secs(10);

/// `struct loop_info64` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `<linux/loop.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

fn control() -> Result<File> {
    File::options().read(true).write(true).open("/dev/loop-control").context("opening /dev/loop-control (loop driver?)")
}

/// Returns the loop numbers that the kernel has now, of all processes.
pub(crate) fn existing() -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/block").context("reading /sys/block")? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|n| n.strip_prefix("loop")).and_then(|n| n.parse().ok()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// Returns the minor number that the kernel will give this loop number. It is known beforehand, so the node can exist
/// before the kernel's `add`, as with devtmpfs.
pub(crate) fn minor(number: u32) -> u32 {
    let max_part = fs::read_to_string("/sys/module/loop/parameters/max_part").unwrap_or_default();
    let max_part: u32 = max_part.trim().parse().unwrap_or(0);
    number << (u32::BITS - max_part.leading_zeros())
}

/// Adds exactly this number (kernel event `add`).
pub(crate) fn add(number: u32) -> Result<()> {
    // SAFETY: LOOP_CTL_ADD takes an integer and touches no memory of ours.
    let answer = unsafe { ioctl(control()?, IntegerSetter::<LOOP_CTL_ADD>::new_usize(number as usize)) };
    answer.with_context(|| format!("LOOP_CTL_ADD {number}"))
}

/// Removes this number (kernel event `remove`), waiting up to `limit` for its last opener to go.
pub(crate) fn remove(number: u32, limit: Duration) -> Result<()> {
    let control = control()?;
    let deadline = Instant::now() + limit;
    loop {
        // SAFETY: LOOP_CTL_REMOVE takes an integer and touches no memory of ours.
        match unsafe { ioctl(&control, IntegerSetter::<LOOP_CTL_REMOVE>::new_usize(number as usize)) } {
            Ok(()) | Err(rustix::io::Errno::NODEV) => return Ok(()),
            // The kernel has no event for the close by the last opener (often udevd's probe), so the request is
            // repeated.
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(rustix::io::Errno::BUSY) => bail!("loop{number} is still open after {limit:?}: {}", openers(number)),
            Err(e) => return Err(e).with_context(|| format!("LOOP_CTL_REMOVE {number}")),
        }
    }
}

/// Binds `backing` to the device in one step: there is no moment with a backing file but without its settings.
/// AUTOCLEAR makes the kernel free the device when the last descriptor goes, so a killed test frees it too.
pub(crate) fn configure(device: &File, backing: &File, read_only: bool) -> Result<()> {
    let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = backing.as_raw_fd().cast_unsigned();
    let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config, whose layout LoopConfig repeats; both outlive the call.
    unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, _>::new(config)) }.context("LOOP_CONFIGURE")
}

/// Asks the kernel to release the backing file; it does so when the last descriptor is closed.
pub(crate) fn clear(device: &File) -> Result<()> {
    // SAFETY: LOOP_CLR_FD has no argument.
    unsafe { ioctl(device, NoArg::<LOOP_CLR_FD>::new()) }.context("LOOP_CLR_FD")
}

/// Makes the device adopt the backing file's size (kernel event `change` with RESIZE=1).
pub(crate) fn refresh_size(device: &File) -> Result<()> {
    // SAFETY: LOOP_SET_CAPACITY has no argument.
    unsafe { ioctl(device, NoArg::<LOOP_SET_CAPACITY>::new()) }.context("LOOP_SET_CAPACITY")
}

/// `struct blkpg_partition` of `<linux/blkpg.h>`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArg {
    op: i32,
    flags: i32,
    datalen: i32,
    data: *const BlkpgPartition,
}

/// Announces a partition to the kernel, as `addpart` does. This works even where the kernel reads no partition
/// tables.
pub(crate) fn add_partition(device: &File, number: u32, start: u64, length: u64) -> Result<()> {
    let partition = BlkpgPartition {
        start: start.cast_signed(),
        length: length.cast_signed(),
        number: number.cast_signed(),
        names: [0; 128],
    };
    let datalen = i32::try_from(size_of::<BlkpgPartition>()).expect("a small struct");
    let arg = BlkpgArg { op: BLKPG_ADD_PARTITION, flags: 0, datalen, data: &raw const partition };
    // SAFETY: BLKPG reads one struct blkpg_ioctl_arg and the partition it points to; both outlive the call.
    unsafe { ioctl(device, Setter::<BLKPG, _>::new(arg)) }.context("BLKPG_ADD_PARTITION")
}

/// Waits until the device has no backing file any more, which is when its last opener has closed it.
pub(crate) fn wait_unbound(number: u32) -> Result<()> {
    let deadline = Instant::now() + BUSY;
    let path = format!("/sys/block/loop{number}/loop/backing_file");
    while fs::exists(&path)? {
        if Instant::now() > deadline {
            bail!("loop{number} keeps its backing file after {BUSY:?}: {}", openers(number));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Lists the processes that have the device open, for error messages: a detach that hangs usually has a forgotten
/// client.
fn openers(number: u32) -> String {
    let rdev = rustix::fs::makedev(7, minor(number));
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let fds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = |path: &std::path::Path| rustix::fs::stat(path).is_ok_and(|s| s.st_rdev == rdev);
        if fds.into_iter().any(|fd| holds(&fd.path())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} ({})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    if found.is_empty() { "no process has it open (mounted, or held by the kernel?)".into() } else { found.join(", ") }
}

/// Opens a node for reading and writing without the kernel giving it to our children.
pub(crate) fn open(node: &std::path::Path) -> Result<File> {
    File::options().read(true).write(true).open(node).with_context(|| format!("opening {}", node.display()))
}
