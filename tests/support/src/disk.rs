//! A disk of the lab: a file of pseudo-random bytes that can be attached as a loop device and detached again.

use crate::listen::monotonic_ns;
use crate::loops;
use crate::slot::{NUMBERS, Slot};
use crate::world::{BACKSTAGE, node};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FileType;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const LOOP_MAJOR: u32 = 7;

/// How a disk differs from the usual one.
#[derive(Debug, Clone, Copy, Default)]
pub struct DiskOptions {
    /// The seed of the bytes; by default the serial. Two disks with one serial need different seeds to be told apart.
    pub seed: Option<u64>,
    /// Attach read-only.
    pub read_only: bool,
    /// Leave the file sparse (reads as zeroes), for tests that only need a size.
    pub blank: bool,
}

/// What the disks of one lab share.
#[derive(Debug)]
pub(crate) struct Shelf {
    slot: Arc<Slot>,
    next_number: AtomicU32,
    next_folder: AtomicU32,
    /// Disks whose handles were dropped.
    left: Mutex<Vec<Left>>,
}

/// A disk that its test does not need any more; it stays unchanged until the lab ends.
#[derive(Debug)]
struct Left {
    state: State,
    file: PathBuf,
}

impl Shelf {
    pub(crate) fn new(slot: Arc<Slot>) -> Shelf {
        Shelf { slot, next_number: AtomicU32::new(0), next_folder: AtomicU32::new(0), left: Mutex::default() }
    }

    /// Returns the least recently used number. To reuse a specific number, call `attach_as`.
    fn free_number(&self) -> Result<u32> {
        let range = self.slot.numbers();
        for _ in range.clone() {
            let number = range.start + self.next_number.fetch_add(1, Ordering::Relaxed) % NUMBERS;
            if !fs::exists(format!("/sys/block/loop{number}"))? {
                return Ok(number);
            }
        }
        bail!("this lab has {NUMBERS} disks: it cannot have more")
    }

    /// Returns the folder of all backing files.
    pub(crate) fn dir(slot: &Slot) -> PathBuf {
        slot.dir().join("disks")
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let left = std::mem::take(self.left.get_mut().unwrap_or_else(PoisonError::into_inner));
        left.into_iter().for_each(Left::take_down);
    }
}

impl Left {
    fn take_down(self) {
        if let Err(e) = detach(self.state) {
            eprintln!("lab: leaving {} to the next lab's sweep: {e:#}", self.file.display());
        }
        // For a loop device on another disk, the file is that disk's node and is not removed here.
        if fs::symlink_metadata(&self.file).is_ok_and(|file| file.is_file()) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// A disk. When its handle is dropped it stays attached until the lab ends, as a hypervisor's disk does not disappear
/// with a test. So a daemon that is started at the test's end finds it.
#[derive(Debug)]
pub struct Disk {
    shelf: Arc<Shelf>,
    serial: String,
    file: PathBuf,
    options: DiskOptions,
    state: State,
    bound_ns: Option<u64>,
}

/// The state of the disk. The held descriptor keeps AUTOCLEAR from freeing the device, and pins an unbound number.
#[derive(Debug)]
enum State {
    Detached,
    Attached {
        number: u32,
        held: File,
    },
    /// The number is kept, without a backing file.
    Kept {
        number: u32,
        _pin: File,
    },
}

impl Disk {
    pub(crate) fn new(shelf: &Arc<Shelf>, serial: &str, size: u64, options: DiskOptions) -> Result<Disk> {
        // Each disk has a folder, so that two files may have the same name, which is the serial.
        let folder = shelf.next_folder.fetch_add(1, Ordering::Relaxed);
        let folder = Shelf::dir(&shelf.slot).join(folder.to_string());
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{serial}.img"));
        let image = File::create(&file).with_context(|| format!("creating {}", file.display()))?;
        if options.blank {
            image.set_len(size)?;
        } else {
            fill(&image, size, options.seed.unwrap_or_else(|| seed_of(serial)))?;
        }
        Ok(Disk {
            shelf: Arc::clone(shelf),
            serial: serial.to_owned(),
            file,
            options,
            state: State::Detached,
            bound_ns: None,
        })
    }

    /// Makes a loop device on top of another device, as `losetup` does; not attached yet. It has no serial.
    pub(crate) fn over(shelf: &Arc<Shelf>, below: &Path) -> Disk {
        let options = DiskOptions::default();
        Disk {
            shelf: Arc::clone(shelf),
            serial: String::new(),
            file: below.to_owned(),
            options,
            state: State::Detached,
            bound_ns: None,
        }
    }

    /// Attaches it under a number that this lab has not used before: kernel `add`, then `change` with the serial. On
    /// a number kept by [`Disk::detach_keep`] there is only a `change`.
    pub fn attach(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Detached) {
            State::Detached => {
                let number = self.shelf.free_number()?;
                self.add_and_bind(number)
            }
            State::Kept { number, _pin } => self.bind(number),
            attached @ State::Attached { .. } => {
                self.state = attached;
                bail!("{} is attached already", self.serial)
            }
        }
    }

    /// Attaches it under a given number, usually that of a disk just detached, so that another disk gets the same
    /// name and device number.
    pub fn attach_as(&mut self, number: u32) -> Result<()> {
        ensure!(matches!(self.state, State::Detached), "{} has a number already", self.serial);
        ensure!(self.shelf.slot.numbers().contains(&number), "loop{number} does not belong to this lab");
        self.add_and_bind(number)
    }

    fn add_and_bind(&mut self, number: u32) -> Result<()> {
        let minor = loops::minor(number);
        // Both nodes are made before the kernel's `add`, as devtmpfs does: udevd sets the owner of nodes that exist.
        node(&backstage(number), FileType::BlockDevice, LOOP_MAJOR, minor, 0o600)?;
        node(&front(number), FileType::BlockDevice, LOOP_MAJOR, minor, 0o600)?;
        if let Err(e) = loops::add(number) {
            remove_nodes(number);
            return Err(e);
        }
        let bound = self.bind(number);
        if bound.is_err() {
            remove_nodes(number);
            let _ = loops::remove(number, loops::BUSY);
        }
        bound
    }

    fn bind(&mut self, number: u32) -> Result<()> {
        let backing = File::options().read(true).write(!self.options.read_only).open(&self.file)?;
        let device = loops::open(&backstage(number))?;
        self.bound_ns = Some(monotonic_ns());
        loops::configure(&device, &backing, self.options.read_only)?;
        self.state = State::Attached { number, held: device };
        Ok(())
    }

    /// Gives the attached disk a partition without a partition table (kernel `add`), and returns its node. A
    /// partition's device number is not known beforehand, so the node is made a moment after udevd first processed
    /// it; a trigger makes udevd process it again.
    pub fn add_partition(&self, number: u32, start: u64, length: u64) -> Result<PathBuf> {
        let State::Attached { number: disk, held } = &self.state else { bail!("{} is not attached", self.serial) };
        loops::add_partition(held, number, start, length)?;
        let wanted = format!("loop{disk}p{number}");
        let made = partitions(*disk)?.into_iter().find(|(name, ..)| *name == wanted);
        let (name, major, minor) = made.with_context(|| format!("the kernel made no {wanted}"))?;
        let path = Path::new("/dev").join(&name);
        node(&path, FileType::BlockDevice, major, minor, 0o600)?;
        if fs::exists("/run/udev/control")? {
            crate::udevd::udevadm(&["trigger", "--action=add", &format!("/sys/class/block/{name}")])?;
        }
        Ok(path)
    }

    /// Detaches it completely: kernel `change` (no backing file), then `remove`. Fails and names the process if the
    /// device is still open: a loop device cannot vanish under a client as a virtio disk can.
    pub fn detach(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Detached) {
            State::Detached => bail!("{} is not attached", self.serial),
            attached => detach(attached),
        }
    }

    /// Removes the backing file and keeps the number: only a `change`. The next [`Disk::attach`] uses the number
    /// again.
    pub fn detach_keep(&mut self) -> Result<()> {
        let State::Attached { number, held } = std::mem::replace(&mut self.state, State::Detached) else {
            bail!("{} is not attached", self.serial)
        };
        remove_partition_nodes(number);
        loops::clear(&held)?;
        drop(held);
        loops::wait_unbound(number)?;
        self.state = State::Kept { number, _pin: File::open(backstage(number))? };
        Ok(())
    }

    /// Changes the size of the disk and its file, attached or not: kernel `change` with RESIZE=1. Size 0 is how a
    /// dying disk appears.
    pub fn resize(&mut self, size: u64) -> Result<()> {
        File::options().write(true).open(&self.file)?.set_len(size)?;
        match &self.state {
            State::Attached { held, .. } => loops::refresh_size(held),
            _ => Ok(()),
        }
    }

    /// `/dev/loop<number>`.
    ///
    /// # Panics
    /// When the disk has no number.
    pub fn node(&self) -> PathBuf {
        front(self.number())
    }

    /// The loop number.
    ///
    /// # Panics
    /// When the disk has no number.
    pub fn number(&self) -> u32 {
        match &self.state {
            State::Attached { number, .. } | State::Kept { number, .. } => *number,
            State::Detached => panic!("{} has no number: attach() it first", self.serial),
        }
    }

    /// Major and minor.
    pub fn devnum(&self) -> (u32, u32) {
        (LOOP_MAJOR, loops::minor(self.number()))
    }

    /// The device's sysfs folder.
    pub fn sysfs(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.number()))
    }

    /// Returns the kernel's diskseq now. (A loop device gets a new one at bind and at unbind.)
    pub fn diskseq(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.sysfs().join("diskseq"))?.trim().parse()?)
    }

    /// The by-id link the loop scheme gives it.
    pub fn link(&self) -> PathBuf {
        PathBuf::from(format!("/dev/disk/by-id/loop-{}", self.serial))
    }

    /// Returns the backing file, to compare with what was read.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The serial.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When it was last attached (`CLOCK_MONOTONIC`): just before the kernel was told of its file.
    pub fn bound_ns(&self) -> Option<u64> {
        self.bound_ns
    }

    /// Whether it is bound to a loop device.
    pub fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached { .. })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Detached);
        let left = Left { state, file: std::mem::take(&mut self.file) };
        match left.state {
            State::Detached => left.take_down(),
            _ => self.shelf.left.lock().unwrap_or_else(PoisonError::into_inner).push(left),
        }
    }
}

fn detach(state: State) -> Result<()> {
    let number = match state {
        State::Detached => return Ok(()),
        State::Kept { number, _pin } => number,
        State::Attached { number, held } => {
            remove_partition_nodes(number);
            loops::clear(&held)?;
            number
        }
    };
    loops::wait_unbound(number)?;
    // The kernel removes the node before it announces the removal.
    remove_nodes(number);
    loops::remove(number, loops::BUSY)
}

fn front(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn backstage(number: u32) -> PathBuf {
    Path::new(BACKSTAGE).join(format!("loop{number}"))
}

fn remove_nodes(number: u32) {
    let _ = fs::remove_file(front(number));
    let _ = fs::remove_file(backstage(number));
}

fn partitions(number: u32) -> Result<Vec<(String, u32, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/sys/block/loop{number}"))? {
        let entry = entry?;
        if entry.path().join("partition").exists() {
            let devnum = fs::read_to_string(entry.path().join("dev"))?;
            let (major, minor) = devnum.trim().split_once(':').context("dev is MAJOR:MINOR")?;
            found.push((entry.file_name().to_string_lossy().into_owned(), major.parse()?, minor.parse()?));
        }
    }
    Ok(found)
}

fn remove_partition_nodes(number: u32) {
    for (name, _, _) in partitions(number).unwrap_or_default() {
        let _ = fs::remove_file(Path::new("/dev").join(name));
    }
}

/// FNV-1a; any stable function of the serial would do.
fn seed_of(serial: &str) -> u64 {
    serial.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Writes `size` bytes of splitmix64. The data has no runs of zeroes, so a reader cannot pass by skipping holes.
fn fill(image: &File, size: u64, seed: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, image);
    let mut state = seed;
    let mut left = size;
    while left > 0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (z ^ (z >> 31)).to_le_bytes();
        let take = left.min(8);
        out.write_all(&bytes[..usize::try_from(take).expect("at most eight")])?;
        left -= take;
    }
    out.flush().context("filling a disk image")
}
