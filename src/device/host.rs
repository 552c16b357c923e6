//! Mounts and swap of this host. They are read again only after the kernel has reported a change.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::DevNum;
use super::facts::Use;
use crate::procfs;

/// The device numbers that this host has mounted or swaps to.
#[derive(Debug, Default)]
pub struct HostUse {
    by_devnum: HashMap<DevNum, Vec<Use>>,
}

impl HostUse {
    /// Reads `/proc/self/mountinfo` and `/proc/swaps` below `proc`. Text that cannot be read or understood is an
    /// error, because it does not mean that nothing is in use.
    pub fn read(proc: &Path) -> io::Result<Self> {
        let mut all = Self::default();
        let mut nodes = HashMap::new();
        let table = procfs::table(&proc.join("self/mountinfo"))?;
        for mount in mounts(&table) {
            let mount = mount?;
            let place = Use::Mounted(String::from_utf8_lossy(&mount.place).into_owned());
            if let Some(of_source) = mount.source_counts().then_some(mount.source) {
                let known = match nodes.entry(of_source) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let devnum = node_devnum(path(new.key()))?;
                        *new.insert(devnum)
                    }
                };
                if let Some(devnum) = known {
                    all.by_devnum.entry(devnum).or_default().push(place.clone());
                }
            }
            all.by_devnum.entry(mount.devnum).or_default().push(place);
        }
        for node in swaps(&procfs::table_if_any(&proc.join("swaps"))?) {
            if let Some(devnum) = node_devnum(path(&node))? {
                all.by_devnum.entry(devnum).or_default().push(Use::Swap);
            }
        }
        Ok(all)
    }

    /// Returns the uses of all device numbers.
    pub(super) fn into_all(self) -> HashMap<DevNum, Vec<Use>> {
        self.by_devnum
    }

    /// Returns the uses of one device number.
    pub fn of(&self, devnum: DevNum) -> &[Use] {
        self.by_devnum.get(&devnum).map_or(&[], Vec::as_slice)
    }
}

/// Caches the tables as long as they are valid.
///
/// poll(2) on `/proc/PID/mountinfo` and `/proc/swaps` reports a change since the last poll (proc(5)). The cache polls
/// before each use and never waits, so a mount on the host causes no wake-up.
pub(super) struct HostWatch {
    proc: PathBuf,
    known: Mutex<Option<CachedTables>>,
}

struct CachedTables {
    files: Vec<File>,
    uses: Arc<HostUse>,
}

impl HostWatch {
    /// Makes a cache of the tables below `proc`. Reads nothing yet.
    pub(super) fn new(proc: PathBuf) -> Self {
        Self { proc, known: Mutex::default() }
    }

    /// Returns what the host uses now.
    pub(super) fn now(&self) -> io::Result<Arc<HostUse>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref()
            && !changed(&known.files)
        {
            return Ok(Arc::clone(&known.uses));
        }
        *known = None;
        // The files are opened before the tables are read, so a change in between is reported at the next use.
        let files = self.open()?;
        let uses = Arc::new(HostUse::read(&self.proc)?);
        // Regular files report no changes, so a recorded tree is read each time.
        if files.iter().all(tells_changes) {
            *known = Some(CachedTables { files, uses: Arc::clone(&uses) });
        }
        Ok(uses)
    }

    fn open(&self) -> io::Result<Vec<File>> {
        let mut files = vec![File::open(self.proc.join("self/mountinfo"))?];
        match File::open(self.proc.join("swaps")) {
            // A kernel without swap has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            swaps => files.push(swaps?),
        }
        Ok(files)
    }
}

/// Returns whether a table has changed, or whether that is unknown.
fn changed(files: &[File]) -> bool {
    let mut asked: Vec<PollFd<'_>> = files.iter().map(|file| PollFd::new(file, PollFlags::PRI)).collect();
    rustix::event::poll(&mut asked, Some(&Timespec::default())) != Ok(0)
}

fn tells_changes(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Returns the device number of a block device's node. `None` for any other file and for a path that does not exist.
pub fn node_devnum(path: &Path) -> io::Result<Option<DevNum>> {
    if !path.is_absolute() {
        return Ok(None);
    }
    match rustix::fs::stat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_block_device() => Ok(Some(DevNum::from_raw(stat.st_rdev))),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(named(&format!("whether {} is a disk", path.display()), &error.into())),
    }
}

/// One line of a mountinfo text (`proc_pid_mountinfo(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Mount<'table> {
    devnum: DevNum,
    kind: &'table [u8],
    source: Vec<u8>,
    place: Vec<u8>,
}

impl Mount<'_> {
    /// Returns whether the disk follows from the mount's source. btrfs and others show an anonymous device number;
    /// for them the source's node gives the disk. FUSE shows an anonymous number too, but its source is chosen by the
    /// user who mounts it. It is no disk, and its path may be unreadable or may never answer.
    fn source_counts(&self) -> bool {
        self.devnum.major == 0 && self.kind != b"fuse" && !self.kind.starts_with(b"fuse.")
    }
}

/// Parses the mounts of a mountinfo text.
fn mounts(table: &[u8]) -> impl Iterator<Item = io::Result<Mount<'_>>> {
    lines(table).map(|line| {
        mount(line).ok_or_else(|| io::Error::other(format!("a mount's line is not understood: {}", shown(line))))
    })
}

fn mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let devnum = str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
    let place = unescape(fields.nth(1)?);
    // Options follow, then any number of optional fields, then a hyphen.
    fields.next()?;
    fields.find(|field| *field == b"-")?;
    Some(Mount { devnum, place, kind: fields.next()?, source: unescape(fields.next()?) })
}

/// Returns the paths of the block devices in a `/proc/swaps` text. A swap file is left out: its file system is in the
/// table of mounts.
fn swaps(table: &[u8]) -> Vec<Vec<u8>> {
    let fields = |line: &'_ [u8]| {
        line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let rows =
        lines(table).skip(1).map(fields).filter(|row: &Vec<Vec<u8>>| row.get(1).is_none_or(|kind| kind != b"file"));
    rows.filter_map(|row| row.first().map(|path| unescape(path))).collect()
}

fn lines(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// Decodes the kernel's octal escapes of blanks, tabs, line ends and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|_| *byte == b'\\');
        let octal = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(octal.unwrap_or(*byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    plain
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned()
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(table: &[u8]) -> Vec<Mount<'_>> {
        mounts(table).map(Result::unwrap).collect()
    }

    #[test]
    fn a_mount_point_is_found_under_its_device_number_whatever_bytes_its_name_has() {
        let table = b"23 28 0:22 / /proc rw - proc proc rw\n\
            28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
            91 28 254:16 /sub /srv/customer\\040data rw - ext4 /dev/vdb rw\n\
            92 28 254:32 / /srv/pok\xe9mon rw shared:2 master:1 - ext4 /dev/vdc rw\n";
        let read = all(table);
        assert_eq!(
            read[1],
            Mount {
                devnum: "254:1".parse().unwrap(),
                kind: b"ext4",
                source: b"/dev/vda1".to_vec(),
                place: b"/".to_vec()
            }
        );
        assert_eq!(read[2].place, b"/srv/customer data");
        assert_eq!((read[3].devnum.minor, &*read[3].place), (32, &b"/srv/pok\xe9mon"[..]));
    }

    #[test]
    fn the_source_gives_the_disk_of_an_anonymous_number_except_for_fuse() {
        let counts = |line: &str| all(line.as_bytes())[0].source_counts();
        assert!(counts("1 2 0:40 / /srv rw - btrfs /dev/vdb rw\n"));
        assert!(!counts("1 2 254:16 / /srv rw - ext4 /dev/vdb rw\n"));
        assert!(!counts("1 2 0:41 / /home/x/mnt rw - fuse.x /root/secret rw\n"));
        assert!(!counts("1 2 0:41 / /home/x/mnt rw - fuse /root/secret rw\n"));
    }

    #[test]
    fn swap_areas_are_read_without_the_heading_and_without_swap_files() {
        let table = b"Filename\t\t\t\tType\t\tSize\n\
            /srv/sw\xe4p                              file\t1024\n\
            /dev/mapper/sw\\040\xe4p                 partition\t1048572\n\
            /dev/vdc                                partition\t1048572\n";
        assert_eq!(swaps(table), [b"/dev/mapper/sw \xe4p".to_vec(), b"/dev/vdc".to_vec()]);
        assert!(swaps(b"").is_empty());
    }

    /// Invariant 13: a skipped line could be the one that names the disk.
    #[test]
    fn a_malformed_line_is_an_error_that_quotes_it() {
        for bad in [" - ", "x y", "1 2 3 4 5 - 6", "1 2 254:1 / / rw ext4 /dev/vda1 rw"] {
            let error = mounts(bad.as_bytes()).next().unwrap().unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
        assert_eq!(all(b"\n").len(), 0);
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\134\\"), b"\\\\");
        assert_eq!(unescape(b"\\777\\0x1"), b"\\777\\0x1");
    }

    #[test]
    fn an_unreadable_table_is_an_error_and_not_an_empty_table() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("self")).unwrap();
        assert!(HostUse::read(dir.path()).is_err(), "no mountinfo");
        std::fs::write(dir.path().join("self/mountinfo"), "").unwrap();
        assert!(HostUse::read(dir.path()).is_ok(), "the control: a kernel without swap");
        std::fs::create_dir(dir.path().join("swaps")).unwrap();
        assert!(HostUse::read(dir.path()).is_err(), "swaps is there and cannot be read");
    }
}
