//! Disks of the guest: files on this side, with contents that show whose they are.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use lab::Volume;

pub(crate) const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A disk, plugged or not.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// QEMU's name for the disk.
    pub(crate) id: String,
    pub(crate) file: PathBuf,
    /// The serial that the guest reads; empty for none.
    pub(crate) serial: String,
    pub(crate) read_only: bool,
    pub(crate) bus: Bus,
    /// The socket of a storage server with the contents; `None`: the file itself.
    pub(crate) storage: Option<PathBuf>,
}

/// How the guest sees a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bus {
    Virtio,
    Scsi,
}

impl Disk {
    /// Makes the disk that CloudStack would attach for a volume.
    pub(crate) fn of(folder: &Path, volume: &Volume, size: u64) -> Self {
        let disk = Self::blank(folder, &volume.serial, size);
        write_pattern(&disk.file, &volume.serial, size);
        disk
    }

    /// Makes a disk of zeroes.
    pub(crate) fn blank(folder: &Path, serial: &str, size: u64) -> Self {
        // Any text may be a serial but not a QEMU name; and a second disk with the serial needs another name.
        let number = std::fs::read_dir(folder).unwrap().count();
        let id = format!("disk{number}");
        let file = folder.join(format!("{id}.img"));
        File::create_new(&file).unwrap().set_len(size).unwrap();
        Self { id, file, serial: serial.to_owned(), read_only: false, bus: Bus::Virtio, storage: None }
    }

    pub(crate) fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    pub(crate) fn on(self, bus: Bus) -> Self {
        Self { bus, ..self }
    }

    /// Serves its contents from a storage server, which has the file open.
    pub(crate) fn behind(self, storage: &Path) -> Self {
        Self { storage: Some(storage.to_owned()), ..self }
    }

    /// Returns the checksum of its contents, as `sha256sum` prints it.
    pub(crate) fn sha256(&self) -> String {
        let told = std::process::Command::new("sha256sum").arg(&self.file).output().unwrap();
        String::from_utf8(told.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
    }
}

/// Writes a pattern: every sector begins with the owner and its number; the rest looks random, different for each
/// disk and sector.
fn write_pattern(file: &Path, serial: &str, size: u64) {
    let mut out = BufWriter::new(File::create(file).unwrap());
    let seed = serial.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    for number in 0..size / SECTOR {
        let mut sector = format!("{serial} {number:011}").into_bytes();
        let mut state = seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while (sector.len() as u64) < SECTOR {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sector.extend(state.to_le_bytes());
        }
        out.write_all(&sector).unwrap();
    }
    out.flush().unwrap();
}
