//! The folder of sections: one file for each volume that is wanted. A section says under which name the server offers
//! which path, and the path is the volume's place in the folder of links, the same from the intent to the withdrawal. So a
//! section can be written before there is a disk, and publishes nothing: that is what the link does.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::check;
use crate::effect;
use crate::export::links::Links;
use crate::identity::VolumeId;

/// The first line of every file that attachd writes; a file without it is somebody else's.
const MARK: &str = "# Written by attachd, and written again as it needs: leave it alone.\n";

/// What the names of files end in that the server reads.
const READ: &str = ".conf";

/// The folder, and where its sections lead.
#[derive(Debug, Clone)]
pub struct Sections {
    folder: PathBuf,
    links: Links,
}

/// What is in the folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Volumes that have a section of ours, which leads to their link.
    pub ours: BTreeSet<VolumeId>,
    /// Other files the server reads.
    pub foreign: Vec<String>,
}

impl Sections {
    /// The folder at this path, with sections that lead to these links.
    pub fn new(folder: PathBuf, links: Links) -> Self {
        Self { folder, links }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the volume's section, if it is not there as it must be. Says whether the server must be told.
    ///
    /// A file of this name that leads elsewhere is left alone, an error of the kind `AlreadyExists`: a server that has
    /// read it would go on serving what it leads to, whatever is written in its place.
    pub fn write(&self, volume: VolumeId) -> io::Result<bool> {
        let (place, text) = (self.place(volume), self.text(volume));
        match fs::read(&place) {
            Ok(old) if old == text.as_bytes() => return Ok(false),
            Ok(old) if !self.is_ours(volume, &old) => {
                let place = place.display();
                let why = format!("{place} is not what attachd has written: move it away, restart the NBD server");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        effect::at("section.make", || write_whole(&place, &text))?;
        Ok(true)
    }

    /// Takes the volume's section away, unless somebody else has written it. A server that has read it knows it on.
    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        let place = self.place(volume);
        match fs::read(&place) {
            Ok(bytes) if self.is_ours(volume, &bytes) => effect::at("section.remove", || fs::remove_file(&place)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists the folder; where there is none, nothing.
    pub fn list(&self) -> io::Result<Listed> {
        let mut listed = Listed::default();
        let entries = match fs::read_dir(&self.folder) {
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
            let is_ours = |volume: &VolumeId| fs::read(entry.path()).is_ok_and(|bytes| self.is_ours(*volume, &bytes));
            match volume.filter(is_ours) {
                Some(volume) => drop(listed.ours.insert(volume)),
                None => listed.foreign.push(name),
            }
        }
        listed.foreign.sort_unstable();
        Ok(listed)
    }

    fn place(&self, volume: VolumeId) -> PathBuf {
        self.folder.join(volume.export_name() + READ)
    }

    /// The whole file.
    ///
    /// Without `flush` and `fua` no client could make its data durable. The rest is what the predecessor wrote, and the
    /// server's defaults: said, because nobody should have to look them up.
    fn text(&self, volume: VolumeId) -> String {
        format!(
            "{MARK}[{}]\nexportname = {}\nreadonly = false\nmultifile = false\ncopyonwrite = false\n\
             flush = true\nfua = true\n",
            volume.export_name(),
            self.links.place(volume).display()
        )
    }

    /// Whether attachd has written this, if in other words perhaps, and it leads to the volume's link.
    fn is_ours(&self, volume: VolumeId, bytes: &[u8]) -> bool {
        let sections = check::sections(bytes).unwrap_or_default();
        let leads_there = |section: &check::Section| {
            section.name == volume.export_name() && Path::new(&section.exportname) == self.links.place(volume)
        };
        bytes.starts_with(MARK.as_bytes()) && matches!(&*sections, [section] if leads_there(section))
    }
}

/// Half a file would keep the server from starting: written under a name that it does not read, synced, renamed. Readable
/// by the server, which is another user, whatever the mask is.
fn write_whole(place: &Path, text: &str) -> io::Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let staged = place.with_file_name(format!(".{name}.tmp"));
    let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged);
    let written = created.and_then(|mut file| {
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, place)
    });
    if written.is_err() {
        let _ = fs::remove_file(&staged);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn sections() -> (tempfile::TempDir, Sections, VolumeId) {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new("/run/attachd/exports".into());
        let sections = Sections::new(dir.path().to_owned(), links);
        (dir, sections, VOLUME.parse().unwrap())
    }

    fn names(sections: &Sections) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(&sections.folder).unwrap().map(name).collect()
    }

    #[test]
    fn the_file_is_this_to_the_byte_and_the_server_may_read_it() {
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
        assert_eq!(sections.list().unwrap().ours, BTreeSet::from([volume]));
        for _ in 0..2 {
            sections.remove(volume).unwrap();
            assert_eq!(names(&sections), Vec::<String>::new());
        }
        fs::remove_dir(&sections.folder).unwrap();
        assert_eq!(sections.list().unwrap(), Listed::default(), "no folder, no section");
    }

    #[test]
    fn a_section_in_other_words_is_ours_and_written_anew() {
        let (_dir, sections, volume) = sections();
        fs::write(sections.place(volume), sections.text(volume).replace("fua = true\n", "")).unwrap();
        assert_eq!(sections.list().unwrap().ours, BTreeSet::from([volume]));
        assert!(sections.write(volume).unwrap());
        assert_eq!(fs::read_to_string(sections.place(volume)).unwrap(), sections.text(volume));
    }

    #[test]
    fn what_others_wrote_or_changed_is_listed_and_never_touched_not_even_under_our_name() {
        let (_dir, sections, volume) = sections();
        let (place, ours) = (sections.place(volume), sections.text(volume));
        let link = sections.links.place(volume);
        let theirs = [
            // The predecessor's.
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
            let name = volume.export_name() + READ;
            assert_eq!(sections.list().unwrap(), Listed { ours: BTreeSet::new(), foreign: vec![name] }, "{theirs}");
        }
        fs::rename(&place, sections.folder.join("copy.conf")).unwrap();
        assert!(sections.write(volume).unwrap(), "the control");
        assert_eq!(sections.list().unwrap().foreign, ["copy.conf"]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_beside_it() {
        let (_dir, sections, volume) = sections();
        let old = sections.text(volume).replace("fua = true\n", "");
        fs::write(sections.place(volume), &old).unwrap();
        let before = names(&sections);
        // A link to where no space is ever left.
        let staged = sections.folder.join(format!(".{}{READ}.tmp", volume.export_name()));
        std::os::unix::fs::symlink("/dev/full", &staged).unwrap();
        assert!(sections.write(volume).is_err());
        assert_eq!((fs::read_to_string(sections.place(volume)).unwrap(), names(&sections)), (old, before));
    }

    #[test]
    fn what_a_crash_leaves_is_no_section_and_does_not_stop_the_next_write() {
        let (_dir, sections, volume) = sections();
        fs::write(sections.folder.join(format!(".{}{READ}.tmp", volume.export_name())), "half").unwrap();
        assert_eq!(sections.list().unwrap(), Listed::default());
        sections.write(volume).unwrap();
        assert_eq!(names(&sections), [volume.export_name() + READ]);
    }
}
