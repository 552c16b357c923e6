//! Loop devices that sit on other disks. The driver opens what is below without claiming it: neither `holders` nor an
//! exclusive open of that disk shows it, whatever is mounted above.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::DevNum;
use super::facts::Use;
use super::host::node_devnum;
use crate::procfs::unless_gone;

/// The loop devices of this host that sit on a block device, each as a use of that one. `sys` is where sysfs is.
pub(super) fn uses(sys: &Path) -> io::Result<Vec<(DevNum, Use)>> {
    let mut uses = Vec::new();
    for entry in unless_gone(fs::read_dir(sys.join("block")))?.into_iter().flatten() {
        let name = entry?.file_name();
        if name.as_bytes().starts_with(b"loop")
            && let Some(below) = below(&sys.join("block").join(&name))?
        {
            uses.push((below, Use::Loop(name.to_string_lossy().into_owned())));
        }
    }
    Ok(uses)
}

/// The block device below a loop device, whose folder in sysfs this is. Only nodes in `/dev` are looked at: any other path is
/// a file's as a rule, of a file system that may never answer.
pub(super) fn below(device: &Path) -> io::Result<Option<DevNum>> {
    // Without a backing file, or no loop device at all.
    let Some(file) = unless_gone(fs::read(device.join("loop/backing_file")))? else { return Ok(None) };
    let path = file.strip_suffix(b"\n").unwrap_or(&file);
    if !path.starts_with(b"/dev/") {
        return Ok(None);
    }
    node_devnum(Path::new(OsStr::from_bytes(path)))
}
