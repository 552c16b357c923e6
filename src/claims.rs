//! Claims: one file per wanted serial, which udev's rules test for. Derived from the store; written anew at start.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use crate::effect;
use crate::identity::{Serial, VolumeId};

/// The folder of claims.
#[derive(Debug, Clone)]
pub struct Claims {
    path: PathBuf,
}

impl Claims {
    /// The folder at this path, made when it is missing.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    /// Claims a volume's serial. Durable when this returns: the file and its folder are synced.
    pub fn add(&self, volume: VolumeId) -> io::Result<()> {
        effect::at("claim.write", || {
            self.write(volume)?.sync_all()?;
            self.sync()
        })
    }

    fn write(&self, volume: VolumeId) -> io::Result<File> {
        let mut file = File::create(self.path.join(volume.serial().as_str()))?;
        writeln!(file, "{volume}")?;
        Ok(file)
    }

    /// Ends a claim, durably. Ending it again changes nothing.
    pub fn remove(&self, serial: Serial) -> io::Result<()> {
        effect::at("claim.remove", || match fs::remove_file(self.path.join(serial.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        })
    }

    /// Makes the folder hold the claims of the wanted volumes and no others, those apart that are just being made or
    /// removed; says which files were in the way or missing.
    pub fn restore(
        &self,
        wanted: impl Iterator<Item = VolumeId>,
        under_way: impl Iterator<Item = VolumeId>,
    ) -> io::Result<Vec<String>> {
        let mut present = HashSet::new();
        for entry in fs::read_dir(&self.path)? {
            present.insert(entry?.file_name());
        }
        for volume in under_way {
            present.remove(std::ffi::OsStr::new(volume.serial().as_str()));
        }
        let mut repaired = Vec::new();
        for volume in wanted {
            if !present.remove(std::ffi::OsStr::new(volume.serial().as_str())) {
                self.write(volume)?;
                repaired.push(format!("{} was missing", volume.serial()));
            }
        }
        for name in present {
            match fs::remove_file(self.path.join(&name)) {
                // Nobody's claim, but no reason to stay away either.
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                    tracing::error!("{} in the folder of claims is a folder: remove it", name.to_string_lossy());
                }
                result => {
                    result?;
                    repaired.push(format!("{} belonged to no intent", name.to_string_lossy()));
                }
            }
        }
        if !repaired.is_empty() {
            // One sync for all: there may be thousands.
            rustix::fs::syncfs(File::open(&self.path)?)?;
        }
        Ok(repaired)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_writes_what_is_missing_and_removes_what_nobody_wants() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::open(dir.path().join("claims")).unwrap();
        let [kept, missing, going]: [VolumeId; 3] = ["b3bb9310", "00000001", "00000002"]
            .map(|start| format!("{start}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap());
        claims.add(kept).unwrap();
        claims.add(going).unwrap();
        fs::write(dir.path().join("claims/by-hand"), "").unwrap();
        let folder = dir.path().join("claims/folder");
        fs::create_dir(&folder).unwrap();
        let repaired = claims.restore([kept, missing].into_iter(), [going].into_iter()).unwrap();
        assert_eq!(repaired.len(), 2, "{repaired:?}");
        fs::remove_dir(&folder).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(dir.path().join("claims")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let serials = [missing, going, kept].map(|volume| std::ffi::OsString::from(volume.serial().as_str()));
        assert_eq!(names, serials);
        claims.remove(kept.serial()).unwrap();
        claims.remove(kept.serial()).unwrap();
    }
}
