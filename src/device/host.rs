//! What this host itself uses: mounts and swap. Read again only when the kernel says that it has changed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::DevNum;
use super::facts::Use;
use crate::procfs;

/// Which device numbers this host has mounted or swaps to.
#[derive(Debug, Default)]
pub struct HostUse {
    by_devnum: HashMap<DevNum, Vec<Use>>,
}

impl HostUse {
    /// Reads `/proc/self/mountinfo` and `/proc/swaps` below `proc`.
    pub fn read(proc: &Path) -> io::Result<Self> {
        let mut all = Self::default();
        let mut nodes = HashMap::new();
        for (devnum, source, place) in mounts(&procfs::table(&proc.join("self/mountinfo"))?) {
            // btrfs and others show an anonymous device number; the source's node tells the disk.
            let of_source = *nodes.entry(source).or_insert_with_key(|source| node_devnum(Path::new(source)));
            let of_source = of_source.filter(|other| *other != devnum);
            for devnum in [Some(devnum), of_source].into_iter().flatten() {
                all.by_devnum.entry(devnum).or_default().push(Use::Mounted(place.clone()));
            }
        }
        // A kernel without swap has no such file.
        let swaps_text = procfs::table(&proc.join("swaps")).unwrap_or_default();
        for devnum in swaps(&swaps_text).iter().filter_map(|path| node_devnum(Path::new(path))) {
            all.by_devnum.entry(devnum).or_default().push(Use::Swap);
        }
        Ok(all)
    }

    /// The uses of all device numbers.
    pub(super) fn into_all(self) -> HashMap<DevNum, Vec<Use>> {
        self.by_devnum
    }

    /// The uses of one device number.
    pub fn of(&self, devnum: DevNum) -> &[Use] {
        self.by_devnum.get(&devnum).map_or(&[], Vec::as_slice)
    }
}

/// Keeps what was read for as long as it is true.
///
/// poll(2) tells on `/proc/PID/mountinfo` and on `/proc/swaps` that they have changed since it was last asked (proc(5)).
/// It is asked before each use and never waited on, so nothing wakes up when the host mounts something.
pub(super) struct HostWatch {
    proc: PathBuf,
    known: Mutex<Option<Known>>,
}

struct Known {
    files: Vec<File>,
    uses: Arc<HostUse>,
}

impl HostWatch {
    /// Watches the tables below `proc`. Reads nothing yet.
    pub(super) fn new(proc: PathBuf) -> Self {
        Self { proc, known: Mutex::default() }
    }

    /// What the host uses now.
    pub(super) fn now(&self) -> io::Result<Arc<HostUse>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref()
            && !changed(&known.files)
        {
            return Ok(Arc::clone(&known.uses));
        }
        *known = None;
        // Opened first, read then: a change in between is told at the next use.
        let files = self.open()?;
        let uses = Arc::new(HostUse::read(&self.proc)?);
        // Ordinary files tell no changes: a recorded tree is read each time.
        if files.iter().all(tells_changes) {
            *known = Some(Known { files, uses: Arc::clone(&uses) });
        }
        Ok(uses)
    }

    fn open(&self) -> io::Result<Vec<File>> {
        let mut files = vec![File::open(self.proc.join("self/mountinfo"))?];
        // A kernel without swap has no such file.
        files.extend(File::open(self.proc.join("swaps")));
        Ok(files)
    }
}

/// Also when that cannot be found out.
fn changed(files: &[File]) -> bool {
    let mut asked: Vec<PollFd<'_>> = files.iter().map(|file| PollFd::new(file, PollFlags::PRI)).collect();
    rustix::event::poll(&mut asked, Some(&Timespec::default())) != Ok(0)
}

fn tells_changes(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// The device number of a block device's node; `None` for anything else.
pub fn node_devnum(path: &Path) -> Option<DevNum> {
    let stat = path.is_absolute().then(|| rustix::fs::stat(path).ok()).flatten()?;
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device().then(|| DevNum::from_raw(stat.st_rdev))
}

/// Device number, source and mount point of each line of a mountinfo text (`proc_pid_mountinfo(5)`).
fn mounts(text: &str) -> impl Iterator<Item = (DevNum, String, String)> {
    text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let devnum = fields.nth(2)?.parse().ok()?;
        let place = unescape(fields.nth(1)?);
        let source = unescape(after.split(' ').nth(1)?);
        Some((devnum, source, place))
    })
}

/// The paths of a `/proc/swaps` text.
fn swaps(text: &str) -> Vec<String> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(unescape).collect()
}

/// Undoes the kernel's octal escapes of blanks, tabs, line ends and backslashes.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let Some(byte) = part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            plain.push(char::from(byte));
            plain.push_str(&part[3..]);
        } else {
            plain.push('\\');
            plain.push_str(part);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_blanks_is_found_under_its_device_number() {
        let text = "23 28 0:22 / /proc rw - proc proc rw\n\
            28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
            91 28 254:16 /sub /srv/customer\\040data rw - ext4 /dev/vdb rw\n";
        let read: Vec<_> = mounts(text).filter(|(devnum, ..)| devnum.major == 254).collect();
        assert_eq!(read[0].0, DevNum { major: 254, minor: 1 });
        assert_eq!(read[0].1, "/dev/vda1");
        assert_eq!(read[1].2, "/srv/customer data");
    }

    #[test]
    fn swap_areas_are_read_without_the_heading() {
        let text = "Filename\t\t\t\tType\t\tSize\n/dev/vdc                                partition\t1048572\n";
        assert_eq!(swaps(text), ["/dev/vdc"]);
        assert!(swaps("").is_empty());
    }

    #[test]
    fn garbage_in_these_files_is_passed_over() {
        assert_eq!(mounts("\n - \nx y\n1 2 3 4 5 - 6\n").count(), 0);
        assert_eq!(unescape("a\\04"), "a\\04");
        assert_eq!(unescape("\\134\\"), "\\\\");
    }
}
