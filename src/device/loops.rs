//! Loop devices that sit on other disks. The driver opens what is below without claiming it: neither `holders` nor an
//! exclusive open of that disk shows it, whatever is mounted above.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::DevNum;
use super::facts::Use;
use super::host::node_devnum;
use crate::procfs::{table_if_any, unless_gone};

/// A path that sysfs can show is shorter.
const LONGEST: usize = 4096;

/// The loop devices of this host that sit on a block device, each as a use of that one. `proc` and `sys` are where procfs and
/// sysfs are. This lies on the way of every event: the kernel's list leaves out those that are not in use, of which there can
/// be many.
pub(super) fn uses(proc: &Path, sys: &Path) -> io::Result<Vec<(DevNum, Use)>> {
    let mut uses = Vec::new();
    for name in names(&table_if_any(&proc.join("partitions"))?) {
        if let Some(below) = below(&sys.join("block").join(name))? {
            uses.push((below, Use::Loop(name.to_owned())));
        }
    }
    Ok(uses)
}

/// The loop devices in a `/proc/partitions` text, without their partitions.
fn names(table: &[u8]) -> impl Iterator<Item = &str> {
    let lines = table.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
    let names = lines.filter_map(|line| line.split_ascii_whitespace().nth(3));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    names.filter(move |name| name.strip_prefix("loop").is_some_and(is_number))
}

/// The block device below a loop device, whose folder in sysfs this is. Only nodes in `/dev` are looked at: any other path is
/// a file's as a rule, of a file system that may never answer.
pub(super) fn below(device: &Path) -> io::Result<Option<DevNum>> {
    // Without a backing file, or no loop device at all.
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
        // In a folder of somebody's own, below /dev/shm for instance. Everybody may look at disks' nodes.
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
}
