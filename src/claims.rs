//! Claims: one file per wanted serial, which udev's rules test for. They are derived from the store and restored at
//! each start.
//!
//! attachd writes or removes a file only if both its name and its kind are a claim's: a file of attachd's without a
//! second hard link.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::effect;
use crate::folder::{Folder, Names};
use crate::identity::{Serial, VolumeId};
use crate::place::Inode;

/// The folder of claims. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Claims {
    folder: Folder,
    /// The serials that were added or removed since the present restoration began; `None` if there is none.
    touched: Arc<Mutex<Option<HashSet<Serial>>>>,
}

/// A change of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Make it.
    Add(VolumeId),
    /// Remove it.
    Remove(Serial),
}

impl Order {
    fn serial(self) -> Serial {
        match self {
            Self::Add(volume) => volume.serial(),
            Self::Remove(serial) => serial,
        }
    }

    fn effect(self) -> &'static str {
        match self {
            Self::Add(_) => "claim.write",
            Self::Remove(_) => "claim.remove",
        }
    }
}

/// Restores the folder to the volumes that were wanted when it began. Claims that are added or removed in the
/// meantime stay as they are.
#[derive(Debug)]
pub struct Restoration {
    claims: Claims,
    wanted: Vec<VolumeId>,
    under_way: Vec<VolumeId>,
}

/// The result of a restoration.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Serials whose claim was missing and was written.
    pub written: Names,
    /// Claims without an intent, which were removed.
    pub removed: Names,
    /// Files in the folder that are not claims of attachd's; they were left alone.
    pub foreign: Names,
    /// Wanted serials that could not be claimed, because another file has the name.
    pub blocked: Names,
}

impl Claims {
    /// Uses the folder at this path. Reads nothing yet.
    pub fn new(path: PathBuf) -> Self {
        Self { folder: Folder::new(path), touched: Arc::default() }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Claims a volume's serial. Durable when this returns.
    #[cfg(test)]
    fn add(&self, volume: VolumeId) -> io::Result<()> {
        self.carry_out(&[Order::Add(volume)]).swap_remove(0)
    }

    /// Removes a claim, durably. A repetition changes nothing.
    #[cfg(test)]
    fn remove(&self, serial: Serial) -> io::Result<()> {
        self.carry_out(&[Order::Remove(serial)]).swap_remove(0)
    }

    /// Carries out orders in their order and returns the result of each. Durable when this returns: the folder is
    /// synced once for all orders. That makes the names durable, and the files are empty.
    pub fn carry_out(&self, orders: &[Order]) -> Vec<io::Result<()>> {
        for order in orders {
            self.touch(order.serial());
        }
        let names = orders.iter().map(|order| order.effect());
        effect::all(&names.collect::<Vec<_>>(), || {
            let folder = self.folder.open();
            let mut changed = false;
            let mut results: Vec<io::Result<()>> = orders
                .iter()
                .map(|order| {
                    let folder = match (&folder, order) {
                        (Ok(folder), _) => folder,
                        // Without a folder nothing is claimed.
                        (Err(error), Order::Remove(_)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                        (Err(error), _) => return Err(io::Error::new(error.kind(), error.to_string())),
                    };
                    match order {
                        Order::Add(volume) => self.write(folder, *volume).map(|()| changed = true),
                        Order::Remove(serial) => self.end(folder, *serial).map(|ended| changed |= ended),
                    }
                })
                .collect();
            if let (true, Ok(folder)) = (changed, &folder)
                && let Err(error) = rustix::fs::fsync(&**folder)
            {
                results.iter_mut().filter(|result| result.is_ok()).for_each(|result| *result = Err(error.into()));
            }
            results
        })
    }

    /// Makes a claim. A claim is only a name: the file is empty, so it cannot be half written.
    fn write(&self, folder: &Arc<OwnedFd>, volume: VolumeId) -> io::Result<()> {
        let serial = volume.serial();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::openat(&**folder, serial.as_str(), flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::EXIST) => self.is_claim(&Inode::below(&**folder, serial.as_str())?, serial),
            made => made.map(drop).map_err(io::Error::from),
        }
    }

    /// Checks that a file with a claim's name is a claim of attachd's.
    fn is_claim(&self, found: &Inode, serial: Serial) -> io::Result<()> {
        found.is_file_of(Some(self.folder.owner())).map_err(|why| {
            let place = self.folder.path().join(serial.as_str());
            let why = format!("{} is not a claim of attachd's: {why}; move it away", place.display());
            io::Error::new(io::ErrorKind::AlreadyExists, why)
        })
    }

    /// Removes a claim and returns whether there was one.
    fn end(&self, folder: &Arc<OwnedFd>, serial: Serial) -> io::Result<bool> {
        match Inode::below(&**folder, serial.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => self.is_claim(&found?, serial)?,
        }
        match rustix::fs::unlinkat(&**folder, serial.as_str(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(true),
        }
    }

    fn touch(&self, serial: Serial) {
        if let Some(touched) = self.touched().as_mut() {
            touched.insert(serial);
        }
    }

    fn touched(&self) -> MutexGuard<'_, Option<HashSet<Serial>>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a restoration. It makes the folder hold exactly the claims of the wanted volumes, except claims that
    /// are being made or removed. One restoration at a time.
    pub fn restoration(&self, wanted: Vec<VolumeId>, under_way: Vec<VolumeId>) -> Restoration {
        *self.touched() = Some(HashSet::new());
        Restoration { claims: self.clone(), wanted, under_way }
    }

    /// Runs `work` unless the serial's claim was changed in the meantime, and prevents changes until `work` is done.
    fn unless_touched(&self, serial: Serial, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let touched = self.touched();
        if touched.as_ref().is_some_and(|touched| touched.contains(&serial)) { Ok(()) } else { work() }
    }
}

impl Drop for Restoration {
    fn drop(&mut self) {
        *self.claims.touched() = None;
    }
}

impl Restoration {
    /// Restores the folder, and makes it if it is missing. May block for long.
    pub fn run(&self) -> io::Result<Restored> {
        let claims = &self.claims;
        let folder = claims.folder.open_or_make()?;
        let mut missing: BTreeMap<Serial, VolumeId> =
            self.wanted.iter().map(|volume| (volume.serial(), *volume)).collect();
        let under_way: HashSet<Serial> = self.under_way.iter().map(VolumeId::serial).collect();
        let mut restored = Restored::default();
        let mut unwanted = Vec::new();
        for entry in Dir::read_from(&*folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let serial = name.to_str().ok().and_then(|name| name.parse::<Serial>().ok());
            let found = match Inode::below(&*folder, name) {
                // The file was removed in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            let claim = serial.filter(|serial| claims.is_claim(&found, *serial).is_ok());
            match claim {
                Some(serial) if missing.remove(&serial).is_some() || under_way.contains(&serial) => {}
                Some(serial) => unwanted.push(serial),
                None => {
                    restored.foreign.add(name.to_string_lossy().into_owned());
                    if serial.and_then(|serial| missing.remove(&serial)).is_some() {
                        restored.blocked.add(name.to_string_lossy().into_owned());
                    }
                }
            }
        }
        for serial in unwanted {
            claims.unless_touched(serial, || {
                match rustix::fs::unlinkat(&*folder, serial.as_str(), AtFlags::empty()) {
                    Ok(()) => restored.removed.add(serial.to_string()),
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
                Ok(())
            })?;
        }
        for (serial, volume) in missing.into_iter().filter(|(serial, _)| !under_way.contains(serial)) {
            claims.unless_touched(serial, || {
                claims.write(&folder, volume)?;
                restored.written.add(serial.to_string());
                Ok(())
            })?;
        }
        if !(restored.written.is_empty() && restored.removed.is_empty()) {
            // One sync for all claims, because there may be thousands.
            rustix::fs::fsync(&*folder)?;
        }
        Ok(restored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn volumes<const N: usize>() -> [VolumeId; N] {
        std::array::from_fn(|n| format!("{n:08}-1b59-4f62-97e8-cefffdfe3804").parse().unwrap())
    }

    fn claims() -> (tempfile::TempDir, Claims) {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path().join("claims"));
        restore(&claims, &[], &[]).unwrap();
        (dir, claims)
    }

    fn restore(claims: &Claims, wanted: &[VolumeId], under_way: &[VolumeId]) -> io::Result<Restored> {
        claims.restoration(wanted.to_vec(), under_way.to_vec()).run()
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_restoration_writes_missing_claims_and_removes_unwanted_ones() {
        let (_dir, claims) = claims();
        let [kept, missing, going, unwanted] = volumes();
        for volume in [kept, going, unwanted] {
            claims.add(volume).unwrap();
        }
        let restored = restore(&claims, &[kept, missing], &[going]).unwrap();
        assert_eq!(restored.written.to_string(), missing.serial().as_str());
        assert_eq!(restored.removed.to_string(), unwanted.serial().as_str());
        let mut left = [kept, missing, going].map(|volume| volume.serial().to_string());
        left.sort();
        assert_eq!(names(claims.folder().path()), left);
        let again = restore(&claims, &[kept, missing], &[going]).unwrap();
        assert_eq!(again, Restored::default(), "nothing is left to do");
        for _ in 0..2 {
            claims.remove(kept.serial()).unwrap();
        }
        fs::remove_dir_all(claims.folder().path()).unwrap();
        assert_eq!(claims.add(kept).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(restore(&claims, &[kept], &[]).unwrap().written.count(), 1, "the folder is made again");
    }

    /// Invariant 12: only files with a claim's name and kind are touched.
    #[test]
    fn a_file_that_is_not_a_claim_by_name_and_kind_is_left_alone_and_named() {
        let (dir, claims) = claims();
        let folder = claims.folder().path().to_owned();
        let [wanted, a_link, a_folder, hard_linked, gone] = volumes();
        let letter = dir.path().join("letter");
        fs::write(&letter, "to somebody").unwrap();
        for name in ["attachd.db", "B3BB93101B594F6297E8", "b3bb93101b594f6297e80"] {
            fs::write(folder.join(name), name).unwrap();
        }
        symlink(&letter, folder.join(a_link.serial().as_str())).unwrap();
        fs::create_dir(folder.join(a_folder.serial().as_str())).unwrap();
        fs::hard_link(&letter, folder.join(hard_linked.serial().as_str())).unwrap();
        claims.add(gone).unwrap();
        let before = names(&folder);

        let restored = restore(&claims, &[wanted], &[]).unwrap();
        assert_eq!(restored.removed.to_string(), gone.serial().as_str(), "the control: a claim nobody wants goes");
        assert_eq!(restored.foreign.count(), 6, "{restored:?}");
        let mut left = before.clone();
        left.retain(|name| name != gone.serial().as_str());
        left.push(wanted.serial().to_string());
        left.sort();
        assert_eq!(names(&folder), left);

        // These serials are wanted, but attachd writes nothing into or through these files.
        for blocked in [a_link, a_folder, hard_linked] {
            let refused = claims.add(blocked).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists, "{refused}");
            assert!(claims.remove(blocked.serial()).is_err());
        }
        assert_eq!(restore(&claims, &[wanted, a_link, a_folder, hard_linked], &[]).unwrap().blocked.count(), 3);
        assert_eq!(fs::read_to_string(&letter).unwrap(), "to somebody");
        assert_eq!(names(&folder), left);
    }

    #[test]
    fn a_folder_of_another_owner_is_neither_read_nor_written() {
        let (dir, claims) = claims();
        let [volume] = volumes();
        let other = dir.path().join("other");
        fs::rename(claims.folder().path(), &other).unwrap();
        claims.folder().open().unwrap_err();
        symlink(&other, claims.folder().path()).unwrap();
        for refused in [claims.add(volume).unwrap_err(), restore(&claims, &[volume], &[]).unwrap_err()] {
            assert!(refused.to_string().contains("is not attachd's: it is a link"), "{refused}");
        }
        assert!(claims.remove(volume.serial()).is_err());
        assert!(names(&other).is_empty());
    }

    /// The engine continues during a restoration: an intent that is accepted in the meantime has a claim that was not
    /// wanted when the restoration began.
    #[test]
    fn claims_made_or_removed_during_a_restoration_stay_as_they_are() {
        let (_dir, claims) = claims();
        let [new, ended, unwanted, missing] = volumes();
        claims.add(unwanted).unwrap();
        let restoration = claims.restoration(vec![ended, missing], Vec::new());
        claims.add(new).unwrap();
        claims.remove(ended.serial()).unwrap();
        let restored = restoration.run().unwrap();
        assert_eq!(restored.removed.to_string(), unwanted.serial().as_str(), "the control");
        assert_eq!(restored.written.to_string(), missing.serial().as_str(), "the control");
        let mut left = [new, missing].map(|volume| volume.serial().to_string());
        left.sort();
        assert_eq!(names(claims.folder().path()), left);
        drop(restoration);
        assert_eq!(restore(&claims, &[missing], &[]).unwrap().removed.to_string(), new.serial().as_str());
    }
}
