//! One device's folder in sysfs, held open, and read with as few system calls as there can be: this lies on the way of
//! every event.
//!
//! What is read through one open folder is of one device: when its number goes to another, the folder stays the old one's,
//! and reading in it fails.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::reader_process;
use crate::procfs::unless_gone;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir};

/// sysfs gives an attribute whole in one read, and never more than a page.
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

    /// The folder of that name in this one.
    pub fn below(&self, name: &str) -> io::Result<Self> {
        folder_at(&self.folder, name).map(|folder| Self { folder })
    }

    /// The text of an attribute. What is no UTF-8 in it is shown as such.
    pub fn text(&self, name: &str) -> io::Result<String> {
        Attribute::open(self, name)?.text()
    }

    /// The text of an attribute that asks the device, and may get no answer.
    pub fn asked_text(&self, name: &str) -> io::Result<String> {
        let Attribute(file) = Attribute::open(self, name)?;
        Ok(String::from_utf8_lossy(&reader_process::read(&file)?).into_owned())
    }

    /// The bytes of an attribute that is no text.
    pub fn bytes(&self, name: &str) -> io::Result<Vec<u8>> {
        Attribute::open(self, name)?.bytes()
    }

    /// The number in an attribute.
    pub fn number(&self, name: &str) -> io::Result<u64> {
        Attribute::open(self, name)?.number()
    }

    /// Whether there is such an attribute.
    pub fn has(&self, name: &str) -> io::Result<bool> {
        let stat = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from);
        unless_gone(stat).map(|stat| stat.is_some())
    }

    /// Where a link of the folder points to.
    pub fn link(&self, name: &str) -> io::Result<String> {
        let target = rustix::fs::readlinkat(&self.folder, name, Vec::new())?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// The names of what is in the folder.
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

    /// The names in the folder of that name in this one; none when there is no such folder.
    pub fn names_below(&self, name: &str) -> io::Result<Vec<String>> {
        unless_gone(self.below(name))?.map_or(Ok(Vec::new()), |folder| folder.names())
    }
}

/// An open attribute: each reading asks the kernel anew.
pub struct Attribute(OwnedFd);

impl Attribute {
    /// Opens an attribute.
    pub fn open(folder: &Attributes, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(&folder.folder, name, flags, Mode::empty())?))
    }

    /// Its text now.
    pub fn text(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    /// Its bytes now.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut page = [0; PAGE];
        let length = rustix::io::pread(&self.0, &mut page, 0)?;
        Ok(page[..length].to_vec())
    }

    /// The number in it now.
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
    fn an_open_folder_stays_the_one_it_was_when_another_takes_its_place() {
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
    fn an_open_attribute_is_read_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("size"), "8\n").unwrap();
        let size = Attribute::open(&Attributes::open(dir.path()).unwrap(), "size").unwrap();
        assert_eq!(size.number().unwrap(), 8);
        fs::write(dir.path().join("size"), "16\n").unwrap();
        assert_eq!(size.number().unwrap(), 16);
    }

    #[test]
    fn names_are_all_there_however_many_and_what_is_missing_is_empty() {
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
    fn what_is_there_and_cannot_be_read_is_an_error_and_neither_none_nor_zero() {
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
