//! Waits for events without polling.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits until one of `fds` is readable; false when the limit passed first.
pub fn readable(fds: &[BorrowedFd<'_>], limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let mut set: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut set, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.context("poll")? > 0),
        }
    }
}

/// An inotify watch on one folder. Set it **before** starting the program that will change the folder.
#[derive(Debug)]
pub struct FolderWatch(OwnedFd);

impl FolderWatch {
    /// Watches for files that appear in `folder` or are closed after writing.
    pub fn new(folder: &Path) -> Result<FolderWatch> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).context("inotify")?;
        let what = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&fd, folder, what).with_context(|| format!("watching {}", folder.display()))?;
        Ok(FolderWatch(fd))
    }

    /// Returns a descriptor that is readable when there are events.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the events: for each, the name and whether the file was closed after writing.
    pub fn take(&self) -> Vec<(String, bool)> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            seen.push((name, event.events().contains(inotify::ReadFlags::CLOSE_WRITE)));
        }
        seen
    }
}
