//! The folder of sections, with one file for each volume that is wanted. A section tells the server a name and the
//! path to serve under this name. The path is the volume's link, and it stays the same from the intent to the
//! withdrawal. So attachd can write a section before the disk is there. A section alone publishes nothing: only the
//! link does.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::check;
use crate::effect;
use crate::export::backend::{Contents, MAX_STRAYS};
use crate::export::links::Links;
use crate::folder::Folder;
use crate::identity::VolumeId;
use crate::place::small_file;

/// The first line of every file that attachd writes. A file without this line is somebody else's.
const MARK: &str = "# Written by attachd, and written again as it needs: leave it alone.\n";

/// The suffix of the file names that the server reads.
const READ: &str = ".conf";

/// A size limit that every section of attachd's is below.
const SIZE: u64 = 4096;

/// The folder of sections, and the links that the sections lead to.
#[derive(Debug, Clone)]
pub struct Sections {
    folder: Folder,
    links: Links,
}

impl Sections {
    /// Uses the folder at this path, with sections that lead to these links.
    pub fn new(folder: PathBuf, links: Links) -> Self {
        Self { folder: Folder::new(folder), links }
    }

    /// Returns the folder itself.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Writes the volume's section unless it is already there and correct. Returns whether the server must be
    /// signalled. May block for long.
    ///
    /// A file of this name that leads elsewhere is left alone: the result is an error of kind `AlreadyExists`. A
    /// server that has read such a file would go on serving its path, even after attachd replaced the file.
    pub fn write(&self, volume: VolumeId) -> io::Result<bool> {
        let folder = self.folder.open()?;
        let (place, text) = (self.place(volume), self.text(volume));
        match small_file(&place, SIZE) {
            Ok(old) if old == text.as_bytes() => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(old) if self.is_ours(volume, &old) => {}
            other => {
                let (place, why) = (place.display(), unlike(other));
                let why = format!("{place} is not what attachd has written{why}: move it away, restart the NBD server");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
        }
        effect::at("section.make", || write_whole(&folder, &name(volume), &text))?;
        Ok(true)
    }

    /// Checks that the volume's section is there and leads to its link.
    pub fn is_there(&self, volume: VolumeId) -> io::Result<()> {
        self.folder.open()?;
        let place = self.place(volume);
        match small_file(&place, SIZE) {
            Ok(bytes) if self.is_ours(volume, &bytes) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is missing", place.display())))
            }
            other => {
                let why = format!("{} is not what attachd has written{}", place.display(), unlike(other));
                Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
            }
        }
    }

    /// Removes the volume's section, unless somebody else wrote the file. A server that has read the section still
    /// knows it.
    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        let folder = match self.folder.open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            folder => folder?,
        };
        match small_file(&self.place(volume), SIZE) {
            Ok(bytes) if self.is_ours(volume, &bytes) => {
                effect::at("section.remove", || match rustix::fs::unlinkat(&*folder, name(volume), AtFlags::empty()) {
                    Err(Errno::NOENT) => Ok(()),
                    result => Ok(result?),
                })
            }
            _ => Ok(()),
        }
    }

    /// Lists the sections of known volumes and every other file that the server reads; empty if there is no folder.
    pub fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents> {
        let mut listed =
            Contents { unusable: self.folder.open().err().map(|why| why.to_string()), ..Contents::default() };
        let entries = match fs::read_dir(self.folder.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listed),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !check::is_read(&entry) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let volume = name.strip_suffix(READ).and_then(VolumeId::from_export_name);
            let is_ours =
                |volume: &VolumeId| small_file(&entry.path(), SIZE).is_ok_and(|bytes| self.is_ours(*volume, &bytes));
            match volume.filter(is_ours) {
                Some(volume) if known.contains(&volume) => drop(listed.prepared.insert(volume)),
                Some(volume) if listed.strays.len() < MAX_STRAYS => drop(listed.strays.insert(volume)),
                Some(_) => listed.more_strays = true,
                None => listed.foreign.add(name),
            }
        }
        Ok(listed)
    }

    fn place(&self, volume: VolumeId) -> PathBuf {
        self.folder.path().join(name(volume))
    }

    /// Returns the whole content of a section.
    ///
    /// Without `flush` and `fua` no client could make its data durable. The other lines are what the predecessor
    /// wrote, and the server's defaults; they are written out so that nobody has to look them up.
    fn text(&self, volume: VolumeId) -> String {
        format!(
            "{MARK}[{}]\nexportname = {}\nreadonly = false\nmultifile = false\ncopyonwrite = false\n\
             flush = true\nfua = true\n",
            volume.export_name(),
            self.links.place(volume).display()
        )
    }

    /// Returns whether attachd wrote this file, possibly another version of attachd, and whether it leads to the
    /// volume's link.
    fn is_ours(&self, volume: VolumeId, bytes: &[u8]) -> bool {
        let sections = check::sections(bytes).unwrap_or_default();
        let leads_there = |section: &check::Section| {
            section.name == volume.export_name() && Path::new(&section.exportname) == self.links.place(volume)
        };
        bytes.starts_with(MARK.as_bytes()) && matches!(&*sections, [section] if leads_there(section))
    }
}

/// Describes why a file was not read.
fn unlike(read: io::Result<Vec<u8>>) -> String {
    read.err().map_or_else(String::new, |error| format!(" ({error})"))
}

/// Returns the file name of the volume's section.
fn name(volume: VolumeId) -> String {
    volume.export_name() + READ
}

/// Writes a file under a name that the server does not read, syncs it, and renames it, because half a file would keep
/// the server from starting. The file is readable by the server, which is another user, whatever the umask is.
fn write_whole(folder: &Arc<OwnedFd>, name: &str, text: &str) -> io::Result<()> {
    let staged = format!(".{name}.tmp");
    // The staging file may be left from a crash, or be a trap (a symlink) that somebody else made.
    let _ = rustix::fs::unlinkat(&**folder, &*staged, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(&**folder, &*staged, flags, Mode::from_raw_mode(0o600))?);
    let written = write_all(&file, text).and_then(|()| Ok(rustix::fs::renameat(&**folder, &*staged, &**folder, name)?));
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&**folder, &*staged, AtFlags::empty());
    }
    written
}

fn write_all(mut file: &File, text: &str) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Names;
    use std::collections::BTreeSet;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn sections() -> (tempfile::TempDir, Sections, VolumeId) {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new("/run/attachd/exports".into());
        let sections = Sections::new(dir.path().to_owned(), links);
        (dir, sections, VOLUME.parse().unwrap())
    }

    fn list(sections: &Sections) -> Contents {
        let mut contents = sections.list(&BTreeSet::from([VOLUME.parse().unwrap()])).unwrap();
        contents.unusable = None;
        contents
    }

    fn names(sections: &Sections) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(sections.folder.path()).unwrap().map(name).collect()
    }

    #[test]
    fn a_section_has_exactly_these_bytes_and_is_readable_by_the_server() {
        let (_dir, sections, volume) = sections();
        sections.write(volume).unwrap();
        let expected = "\
# Written by attachd, and written again as it needs: leave it alone.
[migration-vol-b3bb9310-1b59-4f62-97e8-cefffdfe3804]
exportname = /run/attachd/exports/migration-vol-b3bb9310-1b59-4f62-97e8-cefffdfe3804
readonly = false
multifile = false
copyonwrite = false
flush = true
fua = true
";
        let place = sections.place(volume);
        assert_eq!(fs::read_to_string(&place).unwrap(), expected);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o644, "the server is another user");
        let [checked] = <[check::Section; 1]>::try_from(check::sections(expected.as_bytes()).unwrap()).unwrap();
        assert_eq!(checked.remarks, []);
    }

    #[test]
    fn writing_and_removing_twice_is_the_same_as_once() {
        let (_dir, sections, volume) = sections();
        assert!(sections.write(volume).unwrap());
        assert!(!sections.write(volume).unwrap(), "the server need not be told again");
        assert_eq!(list(&sections).prepared, BTreeSet::from([volume]));
        for _ in 0..2 {
            sections.remove(volume).unwrap();
            assert_eq!(names(&sections), Vec::<String>::new());
        }
        fs::remove_dir(sections.folder.path()).unwrap();
        assert_eq!(list(&sections), Contents::default(), "no folder, no section");
    }

    #[test]
    fn a_section_of_another_attachd_version_is_ours_and_rewritten() {
        let (_dir, sections, volume) = sections();
        fs::write(sections.place(volume), sections.text(volume).replace("fua = true\n", "")).unwrap();
        assert_eq!(list(&sections).prepared, BTreeSet::from([volume]));
        assert!(sections.write(volume).unwrap());
        assert_eq!(fs::read_to_string(sections.place(volume)).unwrap(), sections.text(volume));
    }

    #[test]
    fn foreign_or_changed_sections_are_listed_and_never_touched_even_under_our_name() {
        let (_dir, sections, volume) = sections();
        let (place, ours) = (sections.place(volume), sections.text(volume));
        let link = sections.links.place(volume);
        let theirs = [
            // A section as the predecessor wrote it.
            format!("[{0}]\nexportname = {1}\n", volume.export_name(), link.display()),
            ours.replace(link.to_str().unwrap(), "/dev/vdb"),
            format!("{ours}[another]\nexportname = /dev/null\n"),
            format!("{ours}half a li"),
            MARK.to_owned(),
        ];
        for theirs in theirs {
            fs::write(&place, &theirs).unwrap();
            assert_eq!(sections.write(volume).unwrap_err().kind(), io::ErrorKind::AlreadyExists, "{theirs}");
            sections.remove(volume).unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), theirs);
            let foreign = Names::from_iter([name(volume)]);
            assert_eq!(list(&sections), Contents { foreign, ..Contents::default() }, "{theirs}");
        }
        fs::rename(&place, sections.folder.path().join("copy.conf")).unwrap();
        assert!(sections.write(volume).unwrap(), "the control");
        assert_eq!(list(&sections).foreign.to_string(), "copy.conf");
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_a_symlink_as_staging_file_is_not_followed() {
        let (dir, sections, volume) = sections();
        let old = sections.text(volume).replace("fua = true\n", "");
        fs::write(sections.place(volume), &old).unwrap();
        let staged = sections.folder.path().join(format!(".{}.tmp", name(volume)));
        // A folder with the staging file's name makes the write fail.
        fs::create_dir(&staged).unwrap();
        assert!(sections.write(volume).is_err());
        assert_eq!(fs::read_to_string(sections.place(volume)).unwrap(), old);
        fs::remove_dir(&staged).unwrap();
        let letter = dir.path().join("letter");
        fs::write(&letter, "to somebody").unwrap();
        std::os::unix::fs::symlink(&letter, &staged).unwrap();
        assert!(sections.write(volume).unwrap(), "the control");
        assert_eq!(fs::read_to_string(&letter).unwrap(), "to somebody");
        assert_eq!(fs::read_to_string(sections.place(volume)).unwrap(), sections.text(volume));
    }

    #[test]
    fn a_staging_file_left_by_a_crash_is_no_section_and_does_not_stop_the_next_write() {
        let (_dir, sections, volume) = sections();
        fs::write(sections.folder.path().join(format!(".{}{READ}.tmp", volume.export_name())), "half").unwrap();
        assert_eq!(list(&sections), Contents::default());
        sections.write(volume).unwrap();
        assert_eq!(names(&sections), [volume.export_name() + READ]);
    }
}
