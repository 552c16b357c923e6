//! Watches folders: their entries, and whether the folders themselves come and go. No polling.
//!
//! For each folder there is a watch on it, and one on its nearest parent that exists, which reports when the next
//! part of the path is made or moved there. One inotify instance serves all.

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

/// The limit of names that are reported one by one; with more, the whole folder must be listed.
const NAMES: usize = 1024;

/// The changes since the last report.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FolderChanges {
    /// Folders that must be listed as a whole: they came, went, have another owner or mode, or too much changed in
    /// them.
    pub whole: BTreeSet<Which>,
    /// Names that were made or written.
    pub came: BTreeSet<(Which, OsString)>,
    /// Names that were removed.
    pub went: BTreeSet<(Which, OsString)>,
}

/// The watch on all folders.
pub struct FolderWatch {
    notify: AsyncFd<OwnedFd>,
    folders: Vec<(Which, PathBuf)>,
    /// The purpose of each inotify watch.
    watches: HashMap<i32, Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// The folder itself, if the watch is on it.
    is: Option<Which>,
    /// If the watch is on a parent: the next names on the paths to folders.
    leads: Vec<(OsString, Which)>,
}

impl FolderWatch {
    /// Starts to watch. Needs a tokio runtime.
    pub fn new(folders: impl IntoIterator<Item = (Which, PathBuf)>) -> io::Result<Self> {
        let notify = limits::inotify()?;
        let folders = folders.into_iter().collect();
        let mut watch = Self { notify: register(notify)?, folders, watches: HashMap::new() };
        watch.arm();
        Ok(watch)
    }

    /// Sends changes until the receiver is dropped.
    pub async fn follow<Input: From<FolderChanges>>(mut self, receiver: mpsc::Sender<Input>) {
        loop {
            let Ok(mut ready) = self.notify.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            let (changes, again) = self.read();
            if again {
                self.arm();
            }
            if changes != FolderChanges::default() && receiver.send(changes.into()).await.is_err() {
                return;
            }
        }
    }

    /// Watches every folder that exists, and its nearest parent. A repetition changes nothing.
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
                // The flags are added to those of another folder's watch on the same parent.
                let flags = way | itself | WatchFlags::MASK_ADD;
                if let Ok(watch) = inotify::add_watch(self.notify.get_ref(), above, flags) {
                    self.watches.entry(watch).or_default().leads.push((name.to_owned(), which));
                    break;
                }
                step = above;
            }
        }
    }

    /// Reads the changes, and returns whether a watch must be set up again.
    fn read(&mut self) -> (FolderChanges, bool) {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(self.notify.get_ref(), &mut buffer);
        let (mut changes, mut again) = (FolderChanges::default(), false);
        while let Ok(event) = reader.next() {
            let kind = event.events();
            if kind.contains(ReadFlags::QUEUE_OVERFLOW) {
                changes.whole.extend(self.folders.iter().map(|(which, _)| *which));
                again = true;
                continue;
            }
            let name = event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec()));
            let Some(watched) = self.watches.get(&event.wd()) else { continue };
            for (_, which) in watched.leads.iter().filter(|(lead, _)| name.as_ref().is_none_or(|name| name == lead)) {
                changes.whole.insert(*which);
                again = true;
            }
            match (watched.is, name) {
                (Some(which), Some(name)) => {
                    let went = kind.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
                    // The last event of a name decides.
                    let (of, other) = if went {
                        (&mut changes.went, &mut changes.came)
                    } else {
                        (&mut changes.came, &mut changes.went)
                    };
                    other.remove(&(which, name.clone()));
                    of.insert((which, name));
                }
                (Some(which), None) => {
                    changes.whole.insert(which);
                    again = true;
                }
                (None, _) => {}
            }
            if kind.contains(ReadFlags::IGNORED) {
                self.watches.remove(&event.wd());
            }
            for names in [&mut changes.came, &mut changes.went] {
                if names.len() > NAMES {
                    changes.whole.extend(names.iter().map(|(which, _)| *which));
                    names.clear();
                }
            }
        }
        (changes, again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    /// Watches one folder and returns its changes.
    fn watch(path: &Path) -> mpsc::Receiver<FolderChanges> {
        let (sender, changes) = mpsc::channel(8);
        tokio::spawn(FolderWatch::new([(Which::Claims, path.to_owned())]).unwrap().follow(sender));
        changes
    }

    async fn until(changes: &mut mpsc::Receiver<FolderChanges>, wanted: impl Fn(&FolderChanges) -> bool) {
        let found = async { while !wanted(&changes.recv().await.unwrap()) {} };
        tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
    }

    fn named(name: &str) -> (Which, OsString) {
        (Which::Claims, name.into())
    }

    #[tokio::test]
    async fn names_that_come_and_go_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = watch(dir.path());
        fs::write(dir.path().join("a"), "").unwrap();
        until(&mut changes, |changes| changes.came.contains(&named("a")) && changes.whole.is_empty()).await;
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        until(&mut changes, |changes| changes.went.contains(&named("a")) && changes.came.contains(&named("b"))).await;
        fs::remove_file(dir.path().join("b")).unwrap();
        until(&mut changes, |changes| changes.went.contains(&named("b"))).await;
    }

    /// However much of the path is removed, and in whatever order it comes back.
    #[tokio::test]
    async fn a_folder_that_goes_and_comes_back_is_reported_and_watched_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b/c");
        fs::create_dir_all(&folder).unwrap();
        let mut changes = watch(&folder);
        let whole = |changes: &FolderChanges| changes.whole.contains(&Which::Claims);
        for gone in ["a/b/c", "a/b", "a"] {
            fs::remove_dir_all(dir.path().join(gone)).unwrap();
            until(&mut changes, whole).await;
            fs::create_dir_all(&folder).unwrap();
            // The parts of the path come one by one. The last part is there when a name in it is reported.
            let mut tries = 0;
            loop {
                tries += 1;
                fs::write(folder.join(tries.to_string()), "").unwrap();
                let changes = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await.unwrap().unwrap();
                if !changes.came.is_empty() {
                    break;
                }
                assert!(whole(&changes));
            }
        }
        fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
        until(&mut changes, whole).await;
        fs::create_dir(&folder).unwrap();
        until(&mut changes, whole).await;
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        until(&mut changes, whole).await;
    }

    #[tokio::test]
    async fn of_very_many_names_none_is_reported_and_the_folder_is_listed_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = watch(dir.path());
        for n in 0..3000 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        until(&mut changes, |changes| {
            assert!(changes.came.len() <= NAMES);
            changes.whole.contains(&Which::Claims)
        })
        .await;
    }
}
