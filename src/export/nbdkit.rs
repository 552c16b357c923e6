//! nbdkit as the NBD server: the folder of links that it serves. On tmpfs: after a reboot nothing is served until it is proven.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::backend::{Backend, Check, Contents};
use crate::effect;
use crate::identity::VolumeId;

/// Where a new link is made before it replaces an old one: beside the folder, for inside of it it would be an export.
const STAGING: &str = "exports.new";

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at this path; it must exist (tmpfiles.d makes it).
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn link(&self, volume: VolumeId, link: &str) -> io::Result<()> {
        let place = self.path.join(volume.export_name());
        effect::at("link.make", || match std::os::unix::fs::symlink(link, &place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::read_link(&place).is_ok_and(|target| target.as_os_str() == link) {
                    return Ok(());
                }
                let staged = self.path.with_file_name(STAGING).join(volume.export_name());
                fs::create_dir_all(self.path.with_file_name(STAGING))?;
                let _ = fs::remove_file(&staged);
                std::os::unix::fs::symlink(link, &staged)?;
                fs::rename(&staged, &place)
            }
            result => result,
        })
    }
}

impl Backend for Folder {
    fn prepare(&self, _volume: VolumeId, _link: &str) -> io::Result<bool> {
        Ok(false)
    }

    fn publish(&self, volume: VolumeId, link: &str) -> io::Result<bool> {
        self.link(volume, link).map(|()| false)
    }

    fn revoke(&self, volume: VolumeId) -> io::Result<()> {
        effect::at("link.remove", || match fs::remove_file(self.path.join(volume.export_name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        })
    }

    fn forget(&self, _volume: VolumeId) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Contents> {
        let mut contents = Contents::default();
        for entry in fs::read_dir(&self.path)? {
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

    fn must_be_told(&self) -> bool {
        false
    }

    fn check(&self) -> Check {
        Check::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("exports")).unwrap();
        let folder = Folder::new(dir.path().join("exports"));
        (dir, folder)
    }

    #[test]
    fn publishing_and_revoking_twice_is_the_same_as_once() {
        let (_dir, folder) = folder();
        let volume = VOLUME.parse().unwrap();
        for _ in 0..2 {
            folder.publish(volume, "/dev/disk/by-id/virtio-a").unwrap();
            assert_eq!(folder.list().unwrap().links[&volume], "/dev/disk/by-id/virtio-a");
        }
        for _ in 0..2 {
            folder.revoke(volume).unwrap();
            assert!(folder.list().unwrap().links.is_empty());
        }
    }

    #[test]
    fn a_link_that_points_elsewhere_is_replaced_without_a_gap_and_without_a_second_name() {
        let (_dir, folder) = folder();
        let volume = VOLUME.parse().unwrap();
        folder.publish(volume, "/dev/disk/by-id/virtio-a").unwrap();
        folder.publish(volume, "/dev/disk/by-id/virtio-b").unwrap();
        let contents = folder.list().unwrap();
        assert_eq!(contents.links[&volume], "/dev/disk/by-id/virtio-b");
        assert!(contents.foreign.is_empty());
    }

    #[test]
    fn what_is_not_a_link_of_ours_is_named_as_foreign() {
        let (_dir, folder) = folder();
        fs::write(folder.path.join("migration-vol-file"), "").unwrap();
        fs::write(folder.path.join(format!("migration-vol-{VOLUME}")), "").unwrap();
        let contents = folder.list().unwrap();
        assert!(contents.links.is_empty());
        assert_eq!(contents.foreign.len(), 2);
    }
}
