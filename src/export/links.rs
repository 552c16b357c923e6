//! The folder of links: a published volume has one in it, by its export's name, that leads to its disk's by-id link. Both
//! NBD servers open it for each new client. So making it publishes, removing it revokes, at once and without a signal.
//!
//! On tmpfs: after a reboot nothing is served until it is proven.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::backend::Contents;
use crate::config::STAGING_FOLDER;
use crate::effect;
use crate::identity::VolumeId;

/// The folder.
#[derive(Debug, Clone)]
pub struct Links {
    folder: PathBuf,
}

impl Links {
    /// The folder at this path; it must exist (tmpfiles.d makes it).
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where a volume's link is, when it is published.
    pub fn place(&self, volume: VolumeId) -> PathBuf {
        self.folder.join(volume.export_name())
    }

    /// Publishes. There is no moment without a link when there was one before.
    pub fn make(&self, volume: VolumeId, target: &str) -> io::Result<()> {
        let place = self.place(volume);
        effect::at("link.make", || match std::os::unix::fs::symlink(target, &place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_link(&place).is_ok_and(|old| old.as_os_str() == target) {
                    return Ok(());
                }
                let staged = self.folder.with_file_name(STAGING_FOLDER).join(volume.export_name());
                fs::create_dir_all(self.folder.with_file_name(STAGING_FOLDER))?;
                let _ = fs::remove_file(&staged);
                std::os::unix::fs::symlink(target, &staged)?;
                fs::rename(&staged, &place)
            }
            result => result,
        })
    }

    /// Revokes.
    pub fn remove(&self, volume: VolumeId) -> io::Result<()> {
        effect::at("link.remove", || match fs::remove_file(self.place(volume)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        })
    }

    /// What is published.
    pub fn list(&self) -> io::Result<Contents> {
        let mut contents = Contents::default();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let target = fs::read_link(entry.path()).ok().and_then(|target| target.to_str().map(str::to_owned));
            match (VolumeId::from_export_name(&name), target) {
                (Some(volume), Some(target)) => drop(contents.links.insert(volume, target)),
                _ => contents.foreign.push(name),
            }
        }
        Ok(contents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn links() -> (tempfile::TempDir, Links) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("exports")).unwrap();
        let links = Links::new(dir.path().join("exports"));
        (dir, links)
    }

    #[test]
    fn making_and_removing_twice_is_the_same_as_once() {
        let (_dir, links) = links();
        let volume = VOLUME.parse().unwrap();
        for _ in 0..2 {
            links.make(volume, "/dev/disk/by-id/virtio-a").unwrap();
            assert_eq!(links.list().unwrap().links[&volume], "/dev/disk/by-id/virtio-a");
        }
        for _ in 0..2 {
            links.remove(volume).unwrap();
            assert!(links.list().unwrap().links.is_empty());
        }
    }

    #[test]
    fn a_link_that_points_elsewhere_is_replaced_without_a_gap_and_without_a_second_name() {
        let (_dir, links) = links();
        let volume = VOLUME.parse().unwrap();
        links.make(volume, "/dev/disk/by-id/virtio-a").unwrap();
        links.make(volume, "/dev/disk/by-id/virtio-b").unwrap();
        let contents = links.list().unwrap();
        assert_eq!(contents.links[&volume], "/dev/disk/by-id/virtio-b");
        assert!(contents.foreign.is_empty());
    }

    #[test]
    fn what_is_not_a_link_of_ours_is_named_as_foreign() {
        let (_dir, links) = links();
        fs::write(links.folder.join("migration-vol-file"), "").unwrap();
        fs::write(links.place(VOLUME.parse().unwrap()), "").unwrap();
        let contents = links.list().unwrap();
        assert!(contents.links.is_empty());
        assert_eq!(contents.foreign.len(), 2);
    }
}
