//! Loop devices that are built on other disks. The loop driver opens the disk below without claiming it. So neither
//! `holders` nor an exclusive open of that disk shows the use, whatever is mounted above.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::DevNum;
use super::facts::Use;
use super::host::node_devnum;
use crate::procfs::{table_if_any, unless_gone};

/// The size limit of a path; a path that sysfs can show is shorter.
const LONGEST: usize = 4096;

/// The age at which a picture is taken again. It limits the damage by a kernel that does not report changes of loop
/// devices.
const FRESH: Duration = Duration::from_millis(50);

/// The uses by device number; a partition has its own entry.
pub(super) type Uses = HashMap<DevNum, Vec<Use>>;

/// The loop devices of this host that are built on a block device, each as a use of that device.
///
/// Reading them takes a few microseconds per loop device in use, and each event needs the result. With a thousand
/// loop devices, a thousand disks that arrive at once would need a million reads. So one picture serves all callers
/// that asked before a change. The kernel counts its events (`/sys/kernel/uevent_seqnum`), and setting up or freeing
/// a loop device is an event. A caller that asks after such an event gets a picture that was begun after the event.
pub(super) struct LoopUses {
    proc: PathBuf,
    sys: PathBuf,
    picture: Mutex<Option<Picture>>,
}

struct Picture {
    /// The kernel's event count, and the time, both from before the first read.
    count: u64,
    begun: Instant,
    uses: Arc<Uses>,
}

impl LoopUses {
    /// `proc` and `sys` are the mount points of procfs and sysfs. Reads nothing yet.
    pub(super) fn new(proc: PathBuf, sys: PathBuf) -> Self {
        Self { proc, sys, picture: Mutex::default() }
    }

    /// Returns the uses now.
    pub(super) fn now(&self) -> io::Result<Arc<Uses>> {
        let asked = self.events()?;
        // The lock is held while a picture is taken: a caller that waits can mostly use this picture.
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(asked), Some(picture)) = (asked, picture.as_ref())
            && picture.count >= asked
            && picture.begun.elapsed() < FRESH
        {
            return Ok(Arc::clone(&picture.uses));
        }
        let (count, begun) = (self.events()?, Instant::now());
        let uses = Arc::new(read(&self.proc, &self.sys)?);
        // Without an event count it is unknown how long the picture is valid.
        *picture = count.map(|count| Picture { count, begun, uses: Arc::clone(&uses) });
        Ok(uses)
    }

    /// Returns how many events the kernel has sent; `None` if it does not report that, as in a recorded tree.
    fn events(&self) -> io::Result<Option<u64>> {
        let path = self.sys.join("kernel/uevent_seqnum");
        let Some(text) = unless_gone(std::fs::read_to_string(&path))? else { return Ok(None) };
        let odd = || io::Error::other(format!("{} holds {text:?}", path.display()));
        text.trim().parse().map(Some).map_err(|_| odd())
    }
}

/// Reads the loop devices in use. The kernel's list leaves out unused ones, of which there can be many.
fn read(proc: &Path, sys: &Path) -> io::Result<Uses> {
    let mut uses = Uses::new();
    for name in names(&table_if_any(&proc.join("partitions"))?) {
        if let Some(below) = below(&sys.join("block").join(name))? {
            uses.entry(below).or_default().push(Use::Loop(name.to_owned()));
        }
    }
    Ok(uses)
}

/// Returns the loop devices in a `/proc/partitions` text, without their partitions.
fn names(table: &[u8]) -> impl Iterator<Item = &str> {
    let lines = table.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
    let names = lines.filter_map(|line| line.split_ascii_whitespace().nth(3));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    names.filter(move |name| name.strip_prefix("loop").is_some_and(is_number))
}

/// Returns the block device below a loop device, given the loop device's folder in sysfs. Only nodes in `/dev` are
/// examined: any other path is usually a file, and its file system may never answer.
pub(super) fn below(device: &Path) -> io::Result<Option<DevNum>> {
    // There is no backing file, or it is no loop device.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let attribute = openat(CWD, device.join("loop/backing_file"), flags, Mode::empty()).map_err(Into::into);
    let Some(attribute) = unless_gone(attribute)? else { return Ok(None) };
    let mut buffer = [0; LONGEST];
    let read = rustix::io::read(&attribute, &mut buffer).map_err(Into::into);
    let Some(length) = unless_gone(read)? else { return Ok(None) };
    let path = buffer[..length].strip_suffix(b"\n").unwrap_or(&buffer[..length]);
    if !path.starts_with(b"/dev/") {
        return Ok(None);
    }
    match node_devnum(Path::new(OsStr::from_bytes(path))) {
        // The path is in a private folder, for instance below /dev/shm. The nodes of disks can be examined by every
        // user.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_devices_in_use_are_found_by_name_and_their_partitions_are_not() {
        let table = b"major minor  #blocks  name\n\n 254        0   10485760 vda\n   7        0      10240 loop0\n \
            259        3       1024 loop0p1\n   7      112         64 loop7000\n 253        0        128 loop-like\n";
        assert_eq!(names(table).collect::<Vec<_>>(), ["loop0", "loop7000"]);
        assert_eq!(names(b"").count(), 0);
    }

    #[test]
    fn a_picture_is_shared_until_the_kernels_next_event_and_never_without_an_event_count() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, sys) = (dir.path().join("proc"), dir.path().join("sys"));
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let loops = LoopUses::new(proc, sys);
        write("proc/partitions", "   7        0      10240 loop0\n");
        write("sys/block/loop0/loop/backing_file", "/dev/null\n");
        let first = loops.now().unwrap();
        assert!(!Arc::ptr_eq(&first, &loops.now().unwrap()), "nothing tells for how long it is true");
        write("sys/kernel/uevent_seqnum", "41\n");
        let picture = || Arc::as_ptr(&loops.now().unwrap());
        let begun = Instant::now();
        let (second, again) = (picture(), picture());
        assert!(second == again || begun.elapsed() >= FRESH);
        write("sys/kernel/uevent_seqnum", "42\n");
        // The old picture is kept alive, so that a new one cannot get the same address.
        let held = loops.picture.lock().unwrap().as_ref().map(|picture| Arc::clone(&picture.uses));
        assert_ne!(picture(), second, "the control: an event");
        drop(held);
        write("sys/kernel/uevent_seqnum", "?\n");
        assert!(loops.now().is_err(), "what cannot be understood is no picture");
    }
}
