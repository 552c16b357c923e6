//! One device's folder in sysfs, held open and read with few system calls, because every event needs such a read.
//!
//! All reads through one open folder are about one device. When the device's number is reused, the open folder still
//! belongs to the old device, and reads in it fail.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::reader_process;
use crate::procfs::unless_gone;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

/// The size of one read. sysfs returns a whole attribute in one read, at most one page.
const PAGE: usize = 4096;

/// An open folder of attributes.
pub struct Attributes {
    folder: OwnedFd,
}

impl Attributes {
    /// Opens a device's folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        folder_at(CWD, path).map(|folder| Self { folder })
    }

    /// Opens a subfolder.
    pub fn below(&self, name: &str) -> io::Result<Self> {
        folder_at(&self.folder, name).map(|folder| Self { folder })
    }

    /// Reads an attribute as text. Bytes that are not UTF-8 are replaced.
    pub fn text(&self, name: &str) -> io::Result<String> {
        Attribute::open(self, name)?.text()
    }

    /// Reads an attribute whose value comes from the device, which may never answer.
    pub fn asked_text(&self, name: &str) -> io::Result<String> {
        let Attribute(file) = Attribute::open(self, name)?;
        Ok(String::from_utf8_lossy(&reader_process::read(&file)?).into_owned())
    }

    /// Reads an attribute as bytes.
    pub fn bytes(&self, name: &str) -> io::Result<Vec<u8>> {
        Attribute::open(self, name)?.bytes()
    }

    /// Reads an attribute as a number.
    pub fn number(&self, name: &str) -> io::Result<u64> {
        Attribute::open(self, name)?.number()
    }

    /// Returns whether the attribute exists.
    pub fn has(&self, name: &str) -> io::Result<bool> {
        let stat = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from);
        unless_gone(stat).map(|stat| stat.is_some())
    }

    /// Returns the target of a symlink in the folder.
    pub fn link(&self, name: &str) -> io::Result<String> {
        let target = rustix::fs::readlinkat(&self.folder, name, Vec::new())?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Returns the names of the folder's entries.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut buffer = [MaybeUninit::uninit(); PAGE];
        let mut entries = RawDir::new(&self.folder, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// Returns the names in a subfolder; empty if there is no such folder.
    pub fn names_below(&self, name: &str) -> io::Result<Vec<String>> {
        unless_gone(self.below(name))?.map_or(Ok(Vec::new()), |folder| folder.names())
    }
}

/// An open attribute. Each read asks the kernel again.
pub struct Attribute(OwnedFd);

impl Attribute {
    /// Opens an attribute.
    pub fn open(folder: &Attributes, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(&folder.folder, name, flags, Mode::empty())?))
    }

    /// Reads its text now.
    pub fn text(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    /// Reads its bytes now.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut page = [0; PAGE];
        let length = rustix::io::pread(&self.0, &mut page, 0)?;
        Ok(page[..length].to_vec())
    }

    /// Reads its number now.
    pub fn number(&self) -> io::Result<u64> {
        let text = self.text()?;
        text.trim().parse().map_err(|_| io::Error::other(format!("{text:?} is no number")))
    }
}

fn folder_at(base: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(base, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_open_folder_stays_the_old_devices_when_a_new_device_gets_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("vdb");
        for (folder, diskseq) in [(&place, "5\n"), (&dir.path().join("vdc"), "6\n")] {
            fs::create_dir_all(folder.join("holders")).unwrap();
            fs::write(folder.join("diskseq"), diskseq).unwrap();
        }
        let open = Attributes::open(&place).unwrap();
        fs::rename(&place, dir.path().join("gone")).unwrap();
        fs::rename(dir.path().join("vdc"), &place).unwrap();
        assert_eq!(open.number("diskseq").unwrap(), 5);
        assert_eq!(Attributes::open(&place).unwrap().number("diskseq").unwrap(), 6);
    }

    #[test]
    fn an_open_attribute_is_read_from_the_kernel_each_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("size"), "8\n").unwrap();
        let size = Attribute::open(&Attributes::open(dir.path()).unwrap(), "size").unwrap();
        assert_eq!(size.number().unwrap(), 8);
        fs::write(dir.path().join("size"), "16\n").unwrap();
        assert_eq!(size.number().unwrap(), 16);
    }

    #[test]
    fn all_names_are_listed_and_a_missing_folder_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("slaves")).unwrap();
        for n in 0..500 {
            fs::write(dir.path().join("slaves").join(format!("device-mapper-{n}")), "").unwrap();
        }
        let open = Attributes::open(dir.path()).unwrap();
        assert_eq!(open.names().unwrap(), ["slaves"]);
        assert_eq!(open.names_below("slaves").unwrap().len(), 500);
        assert!(open.names_below("holders").unwrap().is_empty());
    }

    #[test]
    fn an_unreadable_attribute_is_an_error_and_neither_none_nor_zero() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("size")).unwrap();
        fs::write(dir.path().join("holders"), "").unwrap();
        fs::write(dir.path().join("diskseq"), "\n").unwrap();
        let open = Attributes::open(dir.path()).unwrap();
        assert!(open.number("size").is_err() && open.number("diskseq").is_err());
        assert!(open.names_below("holders").is_err(), "no folder");
        assert!(open.has("size").unwrap() && !open.has("ro").unwrap());
        fs::write(dir.path().join("serial"), b"sw\xe4p").unwrap();
        assert_eq!(open.text("serial").unwrap(), "sw\u{fffd}p", "shown, not refused");
    }
}
