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
            let mut file = File::create(self.path.join(volume.serial().as_str()))?;
            writeln!(file, "{volume}")?;
            file.sync_all()?;
            self.sync()
        })
    }

    /// Ends a claim, durably. Ending it again changes nothing.
    pub fn remove(&self, serial: Serial) -> io::Result<()> {
        effect::at("claim.remove", || match fs::remove_file(self.path.join(serial.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        })
    }

    /// Makes the folder hold exactly the claims of these volumes, and says which files were in the way or missing.
    pub fn restore(&self, volumes: impl Iterator<Item = VolumeId>) -> io::Result<Vec<String>> {
        let mut present = HashSet::new();
        for entry in fs::read_dir(&self.path)? {
            present.insert(entry?.file_name());
        }
        let mut repaired = Vec::new();
        for volume in volumes {
            if !present.remove(std::ffi::OsStr::new(volume.serial().as_str())) {
                self.add(volume)?;
                repaired.push(format!("{} was missing", volume.serial()));
            }
        }
        for name in present {
            fs::remove_file(self.path.join(&name))?;
            repaired.push(format!("{} belonged to no intent", name.to_string_lossy()));
        }
        if !repaired.is_empty() {
            self.sync()?;
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
        let [kept, missing]: [VolumeId; 2] =
            ["b3bb9310-1b59-4f62-97e8-cefffdfe3804", "00000000-0000-4000-8000-000000000001"]
                .map(|id| id.parse().unwrap());
        claims.add(kept).unwrap();
        fs::write(dir.path().join("claims/by-hand"), "").unwrap();
        let repaired = claims.restore([kept, missing].into_iter()).unwrap();
        assert_eq!(repaired.len(), 2, "{repaired:?}");
        let mut names: Vec<_> =
            fs::read_dir(dir.path().join("claims")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [missing.serial().as_str(), kept.serial().as_str()]);
        claims.remove(kept.serial()).unwrap();
        claims.remove(kept.serial()).unwrap();
    }
}
