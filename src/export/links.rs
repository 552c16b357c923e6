//! The folder of links. For each published volume it holds one symlink, named after the export, that leads to the
//! disk's by-id link. Both NBD servers open this symlink for each new client. So making the symlink publishes the
//! export and removing it revokes the export, at once and without a signal.
//!
//! The folder is on tmpfs: after a reboot no export is served until it is proven again.
//!
//! attachd makes links only in a folder that it alone can write. It removes a link from the folder in which it made
//! the link, even if that folder was moved. Listings read the path that the server reads, whoever owns the folder.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::backend::{Contents, MAX_STRAYS};
use crate::effect;
use crate::folder::Folder;
use crate::identity::VolumeId;
use crate::place::{Inode, Kind};

/// The name of the staging folder, where a new link is made before it replaces an old one. It is beside the folder of
/// links, because a link inside that folder would be an export.
pub const STAGING_FOLDER: &str = "exports.new";

/// The folder of links, with its staging folder.
#[derive(Debug, Clone)]
pub struct Links {
    folder: Folder,
    staging: Folder,
}

impl Links {
    /// Uses the folder at this path, which must exist (tmpfiles.d makes it).
    pub fn new(folder: PathBuf) -> Self {
        let staging = Folder::new(folder.with_file_name(STAGING_FOLDER));
        Self { folder: Folder::new(folder), staging }
    }

    /// The name of the staging folder, where a new link is made before it replaces an old one.
    pub const STAGING_FOLDER: &str = "exports.new";

    /// Returns the folder itself.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Returns the path of a volume's link.
    pub fn place(&self, volume: VolumeId) -> PathBuf {
        self.folder.path().join(volume.export_name())
    }

    /// Publishes a volume: makes or replaces its link. A replacement leaves no moment without a link.
    pub fn make(&self, volume: VolumeId, target: &str) -> io::Result<()> {
        let name = volume.export_name();
        effect::at("link.make", || {
            let folder = self.folder.open()?;
            match rustix::fs::symlinkat(target, &*folder, &*name) {
                Err(Errno::EXIST) if target_of(&folder, &name)?.is_some_and(|old| old == target) => Ok(()),
                Err(Errno::EXIST) => {
                    self.is_link(&folder, volume)?;
                    let staging = self.staging.open_or_make()?;
                    let _ = rustix::fs::unlinkat(&*staging, &*name, AtFlags::empty());
                    rustix::fs::symlinkat(target, &*staging, &*name)?;
                    Ok(rustix::fs::renameat(&*staging, &*name, &*folder, &*name)?)
                }
                result => Ok(result?),
            }
        })
    }

    /// Revokes a volume's export: removes its link. Does nothing if there is no link.
    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        effect::at("link.remove", || {
            let folder = match (self.folder.open(), self.folder.held()) {
                (Ok(folder), _) | (Err(_), Some(folder)) => folder,
                (Err(error), None) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                (Err(error), None) => return Err(error),
            };
            match self.is_link(&folder, volume) {
                Ok(()) => match rustix::fs::unlinkat(&*folder, volume.export_name(), AtFlags::empty()) {
                    Err(Errno::NOENT) => Ok(()),
                    result => Ok(result?),
                },
                // The link is not there, or the file is not attachd's.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// Checks that the file with the volume's name is a link; no other kind of file is attachd's.
    fn is_link(&self, folder: &Arc<OwnedFd>, volume: VolumeId) -> io::Result<()> {
        let found = Inode::below(&**folder, volume.export_name())?;
        found.is(Kind::Link).map_err(|why| {
            let why = format!("{} is not attachd's: {why}; move it away", self.place(volume).display());
            io::Error::new(io::ErrorKind::AlreadyExists, why)
        })
    }

    /// Reads where a volume's link leads now; `None` if there is no link.
    pub fn look(&self, volume: VolumeId) -> io::Result<Option<String>> {
        target_of(&*self.folder.see()?, &volume.export_name())
    }

    /// Lists the published links of known volumes and everything else in the folder.
    pub fn list(&self, known: &BTreeSet<VolumeId>) -> io::Result<Contents> {
        let folder = self.folder.see()?;
        let mut contents =
            Contents { unusable: self.folder.open().err().map(|why| why.to_string()), ..Contents::default() };
        for entry in Dir::read_from(&*folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_link = match entry.file_type() {
                FileType::Unknown => Inode::below(&*folder, name).is_ok_and(|found| found.kind == Kind::Link),
                kind => kind == FileType::Symlink,
            };
            let volume = name.to_str().ok().and_then(VolumeId::from_export_name).filter(|_| is_link);
            match volume {
                Some(volume) if known.contains(&volume) => {
                    contents.links.extend(target_of(&*folder, &volume.export_name())?.map(|target| (volume, target)));
                }
                Some(volume) if contents.strays.len() < MAX_STRAYS => drop(contents.strays.insert(volume)),
                Some(_) => contents.more_strays = true,
                None => contents.foreign.add(name.to_string_lossy().into_owned()),
            }
        }
        Ok(contents)
    }
}

/// Reads a symlink; `None` if the file is not a symlink or does not exist.
fn target_of(folder: impl AsFd, name: &str) -> io::Result<Option<String>> {
    match rustix::fs::readlinkat(folder, name, Vec::new()) {
        // A target that is not UTF-8 is not attachd's and is no disk of a volume.
        Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::is_away;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn links() -> (tempfile::TempDir, Links, VolumeId) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("exports")).unwrap();
        let links = Links::new(dir.path().join("exports"));
        (dir, links, VOLUME.parse().unwrap())
    }

    fn list(links: &Links) -> Contents {
        links.list(&BTreeSet::from([VOLUME.parse().unwrap()])).unwrap()
    }

    fn is_empty(folder: &Path) -> bool {
        fs::read_dir(folder).unwrap().next().is_none()
    }

    #[test]
    fn making_and_removing_twice_is_the_same_as_once() {
        let (_dir, links, volume) = links();
        for _ in 0..2 {
            links.make(volume, "/dev/disk/by-id/virtio-a").unwrap();
            assert_eq!(list(&links).links[&volume], "/dev/disk/by-id/virtio-a");
            assert_eq!(links.look(volume).unwrap().unwrap(), "/dev/disk/by-id/virtio-a");
        }
        for _ in 0..2 {
            links.remove(volume).unwrap();
            assert_eq!(list(&links), Contents::default());
            assert_eq!(links.look(volume).unwrap(), None);
        }
    }

    #[test]
    fn a_link_that_points_elsewhere_is_replaced_without_a_gap_and_without_a_second_name() {
        let (_dir, links, volume) = links();
        links.make(volume, "/dev/disk/by-id/virtio-a").unwrap();
        links.make(volume, "/dev/disk/by-id/virtio-b").unwrap();
        let contents = list(&links);
        assert_eq!(contents.links[&volume], "/dev/disk/by-id/virtio-b");
        assert!(contents.foreign.is_empty());
    }

    /// Invariant 12.
    #[test]
    fn a_file_that_is_not_our_link_is_listed_as_foreign_and_neither_replaced_nor_removed() {
        let (_dir, links, volume) = links();
        fs::write(links.folder.path().join("migration-vol-file"), "").unwrap();
        fs::write(links.place(volume), "a letter").unwrap();
        let contents = list(&links);
        assert!(contents.links.is_empty());
        assert_eq!(contents.foreign.count(), 2);
        assert_eq!(links.make(volume, "/dev/null").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        links.remove(volume).unwrap();
        assert_eq!(fs::read_to_string(links.place(volume)).unwrap(), "a letter");
    }

    /// Kind of file: the path is a symlink to somebody else's folder.
    #[test]
    fn in_a_folder_put_at_our_path_no_link_is_made_and_old_links_are_removed_from_the_moved_folder() {
        let (dir, links, volume) = links();
        let (place, away, other) = (links.folder.path().to_owned(), dir.path().join("away"), dir.path().join("other"));
        fs::create_dir(&other).unwrap();
        links.make(volume, "/dev/null").unwrap();
        fs::rename(&place, &away).unwrap();
        assert!(is_away(&links.look(volume).unwrap_err()), "gone");
        symlink(&other, &place).unwrap();
        assert!(is_away(&links.look(volume).unwrap_err()), "a link");
        let refused = links.make(volume, "/dev/null").unwrap_err().to_string();
        assert!(refused.contains("it is a link, not a folder"), "{refused}");
        assert!(is_empty(&other) && !is_empty(&away), "the control: the old one is where it was made");
        links.remove(volume).unwrap();
        assert!(is_empty(&away));
    }

    /// Owner and mode: exports served from there are listed all the same.
    #[test]
    fn a_folder_that_others_may_write_is_listed_and_no_link_is_made_in_it() {
        let (_dir, links, volume) = links();
        let open = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(links.folder.path(), mode).unwrap();
        };
        open(0o777);
        symlink("/dev/null", links.place(volume)).unwrap();
        let contents = list(&links);
        assert!(contents.unusable.unwrap().contains("others may write it"));
        assert_eq!(contents.links[&volume], "/dev/null");
        assert!(links.make(volume, "/dev/zero").is_err() && links.remove(volume).is_err());
        open(0o755);
        links.make(volume, "/dev/zero").unwrap();
        assert_eq!(links.look(volume).unwrap().unwrap(), "/dev/zero", "the control");
    }

    #[test]
    fn of_very_many_foreign_names_and_strays_a_few_are_named_and_the_others_counted() {
        let (_dir, links, volume) = links();
        links.make(volume, "/dev/null").unwrap();
        for n in 0..3000 {
            fs::write(links.folder.path().join(format!("foreign-{n:04}")), "").unwrap();
            let stray = format!("migration-vol-{n:08}-1b59-4f62-97e8-cefffdfe3804");
            symlink("/dev/null", links.folder.path().join(stray)).unwrap();
        }
        let contents = list(&links);
        assert_eq!((contents.foreign.count(), contents.foreign.first().count()), (3000, 10));
        assert_eq!((contents.strays.len(), contents.more_strays), (MAX_STRAYS, true));
        assert_eq!(contents.links.len(), 1);
    }
}
