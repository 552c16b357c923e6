//! A folder of attachd's own. Its owner and mode are checked before each use, and it is held open. So work in it
//! happens in the folder that was checked, even if another folder is put at its path.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::place::{Inode, Kind, NotOurs};

/// The number of names that are listed of very many.
const LISTED: usize = 10;

/// A folder. Cheap to clone; clones share the open folder.
#[derive(Debug, Clone)]
pub struct Folder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    owner: u32,
    held: Mutex<Option<OpenFolder>>,
}

#[derive(Debug, Clone)]
struct OpenFolder {
    descriptor: Arc<OwnedFd>,
    identity: (u64, u64),
}

impl Folder {
    /// Uses the folder at this path, which must belong to this process's user. Reads nothing yet.
    pub fn new(path: PathBuf) -> Self {
        let owner = rustix::process::geteuid().as_raw();
        Self { inner: Arc::new(Inner { path, owner, held: Mutex::default() }) }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Returns the user that must own the folder.
    pub fn owner(&self) -> u32 {
        self.inner.owner
    }

    /// Opens the folder that is at the path now, if it is attachd's. The error has the kind `NotFound` if there is
    /// none.
    pub fn open(&self) -> io::Result<Arc<OwnedFd>> {
        let path = self.path();
        let found = Inode::at(path).map_err(|error| self.about(&error))?;
        let ours = |found: &Inode| found.is_folder_of(Some(self.inner.owner)).map_err(|why| self.not_ours(why));
        ours(&found)?;
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_ref().filter(|held| held.identity == found.identity()) {
            return Ok(Arc::clone(&held.descriptor));
        }
        let descriptor = self.open_whatever()?;
        // The opened folder may be another one than the one that was checked.
        let opened = Inode::open(&descriptor)?;
        ours(&opened)?;
        if held.as_ref().is_some_and(|held| held.identity.0 != opened.device) {
            return Err(self.not_ours(NotOurs::OtherDevice));
        }
        let descriptor = Arc::new(descriptor);
        *held = Some(OpenFolder { descriptor: Arc::clone(&descriptor), identity: opened.identity() });
        Ok(descriptor)
    }

    /// Opens the folder that is at the path now, whoever owns it, only to read it.
    pub fn see(&self) -> io::Result<Arc<OwnedFd>> {
        let found = Inode::at(self.path()).map_err(|error| self.about(&error))?;
        found.is(Kind::Folder).map_err(|why| self.not_ours(why))?;
        let held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_ref().filter(|held| held.identity == found.identity()) {
            return Ok(Arc::clone(&held.descriptor));
        }
        drop(held);
        self.open_whatever().map(Arc::new)
    }

    fn open_whatever(&self) -> io::Result<OwnedFd> {
        let open = |access| {
            let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, self.path(), flags, Mode::empty())
        };
        // attachd may still reach files by name in a folder that it cannot list, and it must be able to remove what
        // is published there.
        let opened = open(OFlags::RDONLY).or_else(|error| match error {
            Errno::ACCESS => open(OFlags::PATH),
            error => Err(error),
        });
        opened.map_err(|error| self.about(&error.into()))
    }

    /// Returns the folder that was last found to be attachd's, wherever it is now, so that files made in it can be
    /// removed.
    pub fn held(&self) -> Option<Arc<OwnedFd>> {
        let held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|held| Arc::clone(&held.descriptor))
    }

    /// As [`Folder::open`], but makes a missing folder if its parent is attachd's too.
    pub fn open_or_make(&self) -> io::Result<Arc<OwnedFd>> {
        match self.open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = self.path().parent().unwrap_or(Path::new("/"));
                let whose = Inode::at(above)
                    .and_then(|found| found.is_folder_of(Some(self.inner.owner)).map_err(io::Error::other));
                whose.map_err(|why| {
                    let (path, above) = (self.path().display(), above.display());
                    io::Error::new(io::ErrorKind::NotFound, format!("{path} is missing, and {above}: {why}"))
                })?;
                match rustix::fs::mkdirat(CWD, self.path(), Mode::from_raw_mode(0o755)) {
                    Ok(()) => tracing::warn!("{} was missing; it is made again", self.path().display()),
                    // Another process made the folder first.
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(self.about(&error.into())),
                }
                let folder = self.open()?;
                // The mode must not depend on the umask: other users must be able to look up names in the folder.
                rustix::fs::fchmod(&folder, Mode::from_raw_mode(0o755))?;
                Ok(folder)
            }
            folder => folder,
        }
    }

    fn not_ours(&self, why: NotOurs) -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, NotAttachds { path: self.path().to_owned(), why })
    }

    fn about(&self, error: &io::Error) -> io::Error {
        let path = self.path().display();
        match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, format!("{path} is missing")),
            kind => io::Error::new(kind, format!("{path}: {error}")),
        }
    }
}

/// The file at a folder's path is not attachd's.
#[derive(Debug, thiserror::Error)]
#[error("{} is not attachd's: {why}", path.display())]
struct NotAttachds {
    path: PathBuf,
    why: NotOurs,
}

/// Returns whether there is no folder at all: nothing, or another kind of file.
pub fn is_away(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<NotAttachds>());
    let other_kind = inner.is_some_and(|inner| matches!(inner.why, NotOurs::Kind { .. }));
    error.kind() == io::ErrorKind::NotFound || other_kind
}

/// Names, of which there may be very many: their number, and the first ones in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    count: usize,
    first: BTreeSet<String>,
}

impl Names {
    /// Adds a name.
    pub fn add(&mut self, name: String) {
        self.count += 1;
        self.first.insert(name);
        self.shorten();
    }

    /// Adds all names of `other`.
    pub fn extend(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.shorten();
    }

    fn shorten(&mut self) {
        while self.first.len() > LISTED {
            self.first.pop_last();
        }
    }

    /// Returns the number of names.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the first names.
    pub fn first(&self) -> impl Iterator<Item = &str> {
        self.first.iter().map(String::as_str)
    }

    /// Returns whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl FromIterator<String> for Names {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let mut all = Self::default();
        names.into_iter().for_each(|name| all.add(name));
        all
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.iter().cloned().collect::<Vec<_>>().join(", "))?;
        match self.count - self.first.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn another_folder_at_the_path_is_not_trusted_and_the_old_folder_stays_reachable() {
        let dir = tempfile::tempdir().unwrap();
        let (place, away, other) = (dir.path().join("place"), dir.path().join("away"), dir.path().join("other"));
        fs::create_dir(&place).unwrap();
        fs::create_dir(&other).unwrap();
        let folder = Folder::new(place.clone());
        let first = folder.open().unwrap();
        assert!(Arc::ptr_eq(&first, &folder.open().unwrap()), "the control: opened once");
        fs::rename(&place, &away).unwrap();
        assert_eq!(folder.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink(&other, &place).unwrap();
        let refused = folder.open().unwrap_err().to_string();
        assert!(refused.contains("place is not attachd's: it is a link, not a folder"), "{refused}");
        fs::remove_file(&place).unwrap();
        fs::write(&place, "").unwrap();
        assert!(folder.open().unwrap_err().to_string().contains("a file, not a folder"));
        let held = Inode::open(&*folder.held().unwrap()).unwrap();
        assert_eq!(held.identity(), Inode::at(&away).unwrap().identity());
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        let second = Inode::open(&*folder.open().unwrap()).unwrap();
        assert_eq!(second.identity(), Inode::at(&place).unwrap().identity(), "a new one of ours is taken");
    }

    #[test]
    fn a_missing_folder_is_made_again_only_in_a_parent_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("claims"));
        folder.open_or_make().unwrap();
        assert_eq!(Inode::at(folder.path()).unwrap().mode, 0o755);
        fs::remove_dir(folder.path()).unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let refused = folder.open_or_make().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        assert!(refused.to_string().contains("others may write it"), "{refused}");
    }

    #[test]
    fn of_many_names_the_first_are_listed_and_the_others_counted() {
        let names: Names = (0..100_000).rev().map(|n| format!("{n:06}")).collect();
        assert_eq!((names.count(), names.first().count()), (100_000, LISTED));
        let told = names.to_string();
        assert!(told.starts_with("000000, 000001, ") && told.ends_with("000009 and 99990 more"), "{told}");
        assert_eq!(Names::from_iter(["a".to_owned()]).to_string(), "a");
    }
}
