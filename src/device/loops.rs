//! Loop devices that are built on other disks. The loop driver opens the disk below without claiming it. So neither
//! `holders` nor an exclusive open of that disk shows the use, whatever is mounted above.

use std::collections::{BTreeMap, HashMap};
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
use super::kernel_events::{KernelEvents, is_loop};
use crate::procfs::{table_if_any, unless_gone};

/// The size limit of a path; a path that sysfs can show is shorter.
const LONGEST: usize = 4096;

/// The age at which all loop devices are read again, or ten times as long as reading them took, if that is more. It
/// limits the damage by a kernel that does not report changes of loop devices.
const FRESH: (Duration, u32) = (Duration::from_millis(50), 10);

/// The uses by device number; a partition has its own entry.
pub(super) type Uses = HashMap<DevNum, Vec<Use>>;

/// What each loop device is built on. One without a backing file is not here: it may be about to get it.
type Below = BTreeMap<String, Backing>;

/// What a loop device is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Device(DevNum),
    /// A file, or what cannot be examined.
    Other,
}

/// The loop devices of this host that are built on a block device, each as a use of that device.
///
/// Reading one takes some ten microseconds, and each event needs the result. With a thousand loop devices, a thousand
/// disks that arrive at once would need a million reads. So there is one picture for all callers. The kernel counts its
/// events (`/sys/kernel/uevent_seqnum`), and setting up or freeing a loop device is an event. A caller gets a picture in
/// which every loop device was read after its last event, as of the moment when the caller asked. If the kernel has told
/// of all events since the picture ([`KernelEvents`]), only the loop devices that had one are read; otherwise all. Many
/// kernels send no event when an unused loop device is set up (before Linux 6.15), so those that are new in the kernel's
/// table are read too.
pub(super) struct LoopUses {
    proc: PathBuf,
    sys: PathBuf,
    /// See [`FRESH`].
    fresh: Duration,
    known: Mutex<Known>,
}

struct Known {
    /// Where the kernel tells of its events; not in a recorded tree.
    events: Events,
    picture: Option<Picture>,
}

enum Events {
    /// A recorded tree has none.
    None,
    /// Not listened to yet.
    Unheard,
    Heard(KernelEvents),
}

struct Picture {
    /// The kernel's event count from before the last read.
    count: u64,
    /// When all were read last, and how long that took.
    begun: Instant,
    took: Duration,
    below: Below,
    uses: Arc<Uses>,
}

impl LoopUses {
    /// `proc` and `sys` are the mount points of procfs and sysfs, of this host or of a recorded tree. Reads nothing yet.
    pub(super) fn new(proc: PathBuf, sys: PathBuf) -> Self {
        let events = if sys == Path::new("/sys") { Events::Unheard } else { Events::None };
        Self { proc, sys, fresh: FRESH.0, known: Mutex::new(Known { events, picture: None }) }
    }

    /// Returns the uses now.
    pub(super) fn now(&self) -> io::Result<Arc<Uses>> {
        let asked = self.events()?;
        // The lock is held while loop devices are read: a caller that waits can mostly use the result.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // What fails below leaves no picture.
        let picture = match (asked, known.picture.take()) {
            (Some(asked), Some(picture)) => self.renewed(picture, asked, &mut known.events)?,
            _ => None,
        };
        if let Some(picture) = picture {
            let uses = Arc::clone(&picture.uses);
            known.picture = Some(picture);
            return Ok(uses);
        }
        known.events.listen();
        let (count, begun) = (self.events()?, Instant::now());
        let below = read(&self.proc, &self.sys, |_| None)?;
        let uses = Arc::new(uses(&below));
        // Without an event count it is unknown how long the picture is valid.
        known.picture =
            count.map(|count| Picture { count, begun, took: begun.elapsed(), below, uses: Arc::clone(&uses) });
        Ok(uses)
    }

    /// Returns the picture as it is after event number `asked`; `None` if everything must be read for that.
    fn renewed(&self, mut picture: Picture, asked: u64, events: &mut Events) -> io::Result<Option<Picture>> {
        if picture.begun.elapsed() >= self.fresh.max(picture.took * FRESH.1) {
            return Ok(None);
        }
        if picture.count >= asked {
            return Ok(Some(picture));
        }
        let Events::Heard(events) = events else { return Ok(None) };
        let Some(since) = events.since(picture.count, asked) else { return Ok(None) };
        picture.count = since.count;
        let kept = |name: &str| picture.below.get(name).filter(|_| !since.loops.contains(name)).copied();
        let below = read(&self.proc, &self.sys, kept)?;
        if below != picture.below {
            (picture.uses, picture.below) = (Arc::new(uses(&below)), below);
        }
        Ok(Some(picture))
    }

    /// Returns how many events the kernel has sent; `None` if it does not report that, as in a recorded tree.
    fn events(&self) -> io::Result<Option<u64>> {
        let path = self.sys.join("kernel/uevent_seqnum");
        let Some(text) = unless_gone(std::fs::read_to_string(&path))? else { return Ok(None) };
        let odd = || io::Error::other(format!("{} holds {text:?}", path.display()));
        text.trim().parse().map(Some).map_err(|_| odd())
    }
}

impl Events {
    /// Listens, if nobody does. Without it each event has all loop devices read.
    fn listen(&mut self) {
        if matches!(self, Self::Unheard)
            && let Ok(events) = KernelEvents::listen()
        {
            *self = Self::Heard(events);
        }
    }
}

fn uses(below: &Below) -> Uses {
    let mut uses = Uses::new();
    for (name, below) in below {
        if let Backing::Device(below) = below {
            uses.entry(*below).or_default().push(Use::Loop(name.clone()));
        }
    }
    uses
}

/// Reads the loop devices in use, except those of which `kept` knows the answer. The kernel's table leaves out unused
/// ones, of which there can be many.
fn read(proc: &Path, sys: &Path, kept: impl Fn(&str) -> Option<Backing>) -> io::Result<Below> {
    let mut all = Below::new();
    for name in names(&table_if_any(&proc.join("partitions"))?) {
        let found = match kept(name) {
            None => backing(&sys.join("block").join(name))?,
            kept => kept,
        };
        all.extend(found.map(|found| (name.to_owned(), found)));
    }
    Ok(all)
}

/// Returns the loop devices in a `/proc/partitions` text, without their partitions.
fn names(table: &[u8]) -> impl Iterator<Item = &str> {
    let lines = table.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
    let names = lines.filter_map(|line| line.split_ascii_whitespace().nth(3));
    names.filter(|name| is_loop(name))
}

/// Returns the block device below a loop device, given the loop device's folder in sysfs.
pub(super) fn below(device: &Path) -> io::Result<Option<DevNum>> {
    Ok(match backing(device)? {
        Some(Backing::Device(below)) => Some(below),
        Some(Backing::Other) | None => None,
    })
}

/// Returns what a loop device is built on; `None`: it has no backing file, or it is no loop device. Only nodes in `/dev`
/// are examined: any other path is usually a file, and its file system may never answer.
fn backing(device: &Path) -> io::Result<Option<Backing>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let attribute = openat(CWD, device.join("loop/backing_file"), flags, Mode::empty()).map_err(Into::into);
    let Some(attribute) = unless_gone(attribute)? else { return Ok(None) };
    let mut buffer = [0; LONGEST];
    let read = rustix::io::read(&attribute, &mut buffer).map_err(Into::into);
    let Some(length) = unless_gone(read)? else { return Ok(None) };
    let path = buffer[..length].strip_suffix(b"\n").unwrap_or(&buffer[..length]);
    if path.is_empty() {
        return Ok(None);
    }
    if !path.starts_with(b"/dev/") {
        return Ok(Some(Backing::Other));
    }
    let below = match node_devnum(Path::new(OsStr::from_bytes(path))) {
        // The path is in a private folder, for instance below /dev/shm. The nodes of disks can be examined by every
        // user.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        found => found?,
    };
    Ok(Some(below.map_or(Backing::Other, Backing::Device)))
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

    /// A tree with some loop devices, and the picture of them, which is not too old at any time.
    struct Tree {
        dir: tempfile::TempDir,
        loops: LoopUses,
    }

    impl Tree {
        fn new(names: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut loops = LoopUses::new(dir.path().join("proc"), dir.path().join("sys"));
            loops.fresh = Duration::from_hours(1);
            let tree = Self { dir, loops };
            let rows: Vec<String> = names.iter().map(|name| format!("   7        0      10240 {name}\n")).collect();
            tree.write("proc/partitions", &rows.concat());
            for name in names {
                tree.write(&Self::attribute(name), "/dev/null\n");
            }
            tree
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn attribute(name: &str) -> String {
            format!("sys/block/{name}/loop/backing_file")
        }

        /// Whoever reads this loop device gets an error.
        fn unreadable(&self, name: &str) {
            let path = self.dir.path().join(Self::attribute(name));
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
        }

        fn readable(&self, name: &str) {
            std::fs::remove_dir(self.dir.path().join(Self::attribute(name))).unwrap();
            self.write(&Self::attribute(name), "/dev/null\n");
        }

        /// Counts one more event, and tells of it if it is heard.
        fn event(&self, number: u64, device: &str, heard: bool) {
            self.write("sys/kernel/uevent_seqnum", &format!("{number}\n"));
            let mut known = self.loops.known.lock().unwrap();
            if let Events::None = known.events {
                known.events = Events::Heard(KernelEvents::of_a_test());
            }
            if let (true, Events::Heard(events)) = (heard, &mut known.events) {
                events.note(format!("change@/devices/virtual/block/{device}\0SEQNUM={number}\0").as_bytes());
            }
        }
    }

    #[test]
    fn a_picture_is_shared_until_the_kernels_next_event_and_never_without_an_event_count() {
        let tree = Tree::new(&["loop0"]);
        let picture = || tree.loops.now().unwrap();
        let first = picture();
        assert!(!Arc::ptr_eq(&first, &picture()), "nothing tells for how long it is true");
        tree.write("sys/kernel/uevent_seqnum", "41\n");
        let second = picture();
        assert!(Arc::ptr_eq(&second, &picture()));
        tree.write("sys/kernel/uevent_seqnum", "42\n");
        assert!(!Arc::ptr_eq(&second, &picture()), "the control: an event of which nobody has told");
        tree.write("sys/kernel/uevent_seqnum", "?\n");
        assert!(tree.loops.now().is_err(), "what cannot be understood is no picture");
    }

    #[test]
    fn only_new_loop_devices_and_those_with_an_event_are_read_and_all_of_them_once_an_event_was_missed() {
        let tree = Tree::new(&["loop0", "loop1"]);
        tree.event(41, "vda", true);
        tree.loops.now().unwrap();
        tree.unreadable("loop0");
        tree.event(42, "loop1", true);
        assert!(tree.loops.now().is_ok(), "loop0 had no event");
        tree.event(43, "loop0", true);
        assert!(tree.loops.now().is_err(), "loop0 had one");
        assert!(tree.loops.now().is_err(), "what could not be read does not count as read");
        tree.readable("loop0");
        tree.loops.now().unwrap();
        tree.unreadable("loop1");
        tree.event(44, "vda", true);
        assert!(tree.loops.now().is_ok(), "the control: no event was missed");
        tree.readable("loop1");
        tree.write(
            "proc/partitions",
            "   7        0      10240 loop0\n   7        1      10240 loop1\n   7        2        64 loop2\n",
        );
        tree.write(&Tree::attribute("loop2"), "/dev/null\n");
        tree.unreadable("loop2");
        tree.event(45, "vda", true);
        assert!(tree.loops.now().is_err(), "loop2 is new in the table, although no event was of it");
        tree.readable("loop2");
        tree.loops.now().unwrap();
        tree.unreadable("loop1");
        tree.event(46, "vda", true);
        assert!(tree.loops.now().is_ok(), "the control: no event was missed");
        tree.event(47, "vda", false);
        tree.event(48, "vda", true);
        assert!(tree.loops.now().is_err(), "event 47 may have been of loop1");
    }

    #[test]
    fn all_loop_devices_are_read_again_after_some_time_whatever_the_kernel_has_told() {
        let mut tree = Tree::new(&["loop0"]);
        tree.event(41, "vda", true);
        tree.loops.now().unwrap();
        tree.unreadable("loop0");
        assert!(tree.loops.now().is_ok(), "the control: not yet");
        (tree.loops.fresh, tree.loops.known.lock().unwrap().picture.as_mut().unwrap().took) = Default::default();
        assert!(tree.loops.now().is_err());
    }

    #[test]
    fn the_running_kernel_tells_of_every_loop_device_that_comes_or_goes() {
        let lab = lab::Lab::builder().build().unwrap();
        let disk = lab.settled_disk(&lab.volume().serial, 1 << 20).unwrap();
        let number = node_devnum(&disk.node()).unwrap().unwrap();
        let mut above = lab.loop_over(&disk.node());
        let mut loops = LoopUses::new("/proc".into(), "/sys".into());
        loops.fresh = Duration::from_hours(1);
        let uses = || loops.now().unwrap().get(&number).map_or(0, Vec::len);
        let all_read = || loops.known.lock().unwrap().picture.as_ref().map(|picture| picture.begun);
        // An event in a namespace of another program is a missing number here, and then everything is read.
        for _ in 0..50 {
            assert_eq!(uses(), 0);
            let before = all_read();
            above.attach().unwrap();
            assert_eq!(uses(), 1);
            above.detach().unwrap();
            assert_eq!(uses(), 0);
            if all_read() == before {
                return;
            }
        }
        panic!("everything was read each time, so no event was needed");
    }
}
