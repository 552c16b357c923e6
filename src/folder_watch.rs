//! Watches folders: what comes into them and goes out of them, and whether they themselves come and go. No polling.
//!
//! Each folder is watched, and the nearest one above that exists: that one tells when the next on the way is made or moved
//! there. One inotify instance for all.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::export::backend::Which;
use crate::limits;
use crate::readable::register;

/// Names that are told of one by one; with more, the whole folder is to be looked at.
const NAMES: usize = 1024;

/// What has happened since it was told the last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FolderChanges {
    /// Folders to be looked at as a whole: they came, went, have another owner or mode, or too much happened in them.
    pub whole: BTreeSet<Which>,
    /// Names that came into a folder, or are written.
    pub came: BTreeSet<(Which, OsString)>,
    /// Names that went.
    pub went: BTreeSet<(Which, OsString)>,
}

/// The watch.
pub struct FolderWatch {
    notify: AsyncFd<OwnedFd>,
    folders: Vec<(Which, PathBuf)>,
    /// What each watch is for.
    watches: HashMap<i32, Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// It is this folder.
    is: Option<Which>,
    /// It is above these, whose way leads by these names.
    leads: Vec<(OsString, Which)>,
}

impl FolderWatch {
    /// Begins to watch. Needs a tokio runtime.
    pub fn new(folders: impl IntoIterator<Item = (Which, PathBuf)>) -> io::Result<Self> {
        let notify = limits::inotify()?;
        let folders = folders.into_iter().collect();
        let mut watch = Self { notify: register(notify)?, folders, watches: HashMap::new() };
        watch.arm();
        Ok(watch)
    }

    /// Sends what happens, until the receiver is gone.
    pub async fn follow<Input: From<FolderChanges>>(mut self, changes: mpsc::Sender<Input>) {
        loop {
            let Ok(mut ready) = self.notify.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            let (told, again) = self.read();
            if again {
                self.arm();
            }
            if told != FolderChanges::default() && changes.send(told.into()).await.is_err() {
                return;
            }
        }
    }

    /// Watches every folder that is there, and the way to it. The same again changes nothing.
    fn arm(&mut self) {
        let within = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        let way = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        self.watches.values_mut().for_each(|watched| watched.leads.clear());
        for (which, path) in self.folders.clone() {
            let flags = within | itself | WatchFlags::DONT_FOLLOW;
            if let Ok(watch) = inotify::add_watch(self.notify.get_ref(), &path, flags) {
                self.watches.entry(watch).or_default().is = Some(which);
            }
            let mut step = path.as_path();
            while let (Some(above), Some(name)) = (step.parent(), step.file_name()) {
                // Added to what is watched there already, for another folder.
                let flags = way | itself | WatchFlags::MASK_ADD;
                if let Ok(watch) = inotify::add_watch(self.notify.get_ref(), above, flags) {
                    self.watches.entry(watch).or_default().leads.push((name.to_owned(), which));
                    break;
                }
                step = above;
            }
        }
    }

    /// What has happened, and whether something is to be watched anew.
    fn read(&mut self) -> (FolderChanges, bool) {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(self.notify.get_ref(), &mut buffer);
        let (mut told, mut again) = (FolderChanges::default(), false);
        while let Ok(event) = reader.next() {
            let kind = event.events();
            if kind.contains(ReadFlags::QUEUE_OVERFLOW) {
                told.whole.extend(self.folders.iter().map(|(which, _)| *which));
                again = true;
                continue;
            }
            let name = event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec()));
            let Some(watched) = self.watches.get(&event.wd()) else { continue };
            for (_, which) in watched.leads.iter().filter(|(lead, _)| name.as_ref().is_none_or(|name| name == lead)) {
                told.whole.insert(*which);
                again = true;
            }
            match (watched.is, name) {
                (Some(which), Some(name)) => {
                    let went = kind.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
                    // Which was last is what counts.
                    let (of, other) =
                        if went { (&mut told.went, &mut told.came) } else { (&mut told.came, &mut told.went) };
                    other.remove(&(which, name.clone()));
                    of.insert((which, name));
                }
                (Some(which), None) => {
                    told.whole.insert(which);
                    again = true;
                }
                (None, _) => {}
            }
            if kind.contains(ReadFlags::IGNORED) {
                self.watches.remove(&event.wd());
            }
            for names in [&mut told.came, &mut told.went] {
                if names.len() > NAMES {
                    told.whole.extend(names.iter().map(|(which, _)| *which));
                    names.clear();
                }
            }
        }
        (told, again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    /// A watch on one folder, and what it tells.
    fn watch(path: &Path) -> mpsc::Receiver<FolderChanges> {
        let (changes, told) = mpsc::channel(8);
        tokio::spawn(FolderWatch::new([(Which::Claims, path.to_owned())]).unwrap().follow(changes));
        told
    }

    async fn until(told: &mut mpsc::Receiver<FolderChanges>, wanted: impl Fn(&FolderChanges) -> bool) {
        let found = async { while !wanted(&told.recv().await.unwrap()) {} };
        tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
    }

    fn named(name: &str) -> (Which, OsString) {
        (Which::Claims, name.into())
    }

    #[tokio::test]
    async fn what_comes_and_what_goes_is_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = watch(dir.path());
        fs::write(dir.path().join("a"), "").unwrap();
        until(&mut told, |changes| changes.came.contains(&named("a")) && changes.whole.is_empty()).await;
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        until(&mut told, |changes| changes.went.contains(&named("a")) && changes.came.contains(&named("b"))).await;
        fs::remove_file(dir.path().join("b")).unwrap();
        until(&mut told, |changes| changes.went.contains(&named("b"))).await;
    }

    /// However much of the way to it goes, and in whatever order it comes back.
    #[tokio::test]
    async fn a_folder_that_goes_and_comes_back_is_told_of_and_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b/c");
        fs::create_dir_all(&folder).unwrap();
        let mut told = watch(&folder);
        let whole = |changes: &FolderChanges| changes.whole.contains(&Which::Claims);
        for gone in ["a/b/c", "a/b", "a"] {
            fs::remove_dir_all(dir.path().join(gone)).unwrap();
            until(&mut told, whole).await;
            fs::create_dir_all(&folder).unwrap();
            // Its parts come one by one: the last of them is there when a name in it is told.
            let mut tries = 0;
            loop {
                tries += 1;
                fs::write(folder.join(tries.to_string()), "").unwrap();
                let changes = tokio::time::timeout(Duration::from_secs(10), told.recv()).await.unwrap().unwrap();
                if !changes.came.is_empty() {
                    break;
                }
                assert!(whole(&changes));
            }
        }
        fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
        until(&mut told, whole).await;
        fs::create_dir(&folder).unwrap();
        until(&mut told, whole).await;
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        until(&mut told, whole).await;
    }

    #[tokio::test]
    async fn of_very_many_names_none_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut told = watch(dir.path());
        for n in 0..3000 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        until(&mut told, |changes| {
            assert!(changes.came.len() <= NAMES);
            changes.whole.contains(&Which::Claims)
        })
        .await;
    }
}
