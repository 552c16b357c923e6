//! Reports when a disk is closed. The watch is on the folder of the disk's node, which needs no permission for the
//! disk.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::limits;
use crate::readable::register;

/// A watch for closes of one device node.
pub struct Closing {
    events: AsyncFd<OwnedFd>,
    name: OsString,
}

impl Closing {
    /// Starts to watch.
    pub fn watch(node: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (node.parent(), node.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let events = limits::inotify()?;
        let closed = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        limits::watch(&events, folder, closed)?;
        Ok(Self { events: register(events)?, name: name.to_owned() })
    }

    /// Waits until the disk was closed since the last call. Several closes count as one; lost events count as one.
    pub async fn closed(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let Ok(mut ready) = self.events.readable().await else { return std::future::pending().await };
            let mut reader = inotify::Reader::new(self.events.get_ref(), &mut buffer);
            let mut concerned = false;
            while let Ok(event) = reader.next() {
                let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                concerned |= name.is_none_or(|name| name == self.name);
            }
            ready.clear_ready();
            if concerned {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Duration;

    #[tokio::test]
    async fn a_close_of_this_node_is_reported_and_earlier_ones_or_those_of_other_nodes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let [node, other] = ["vdb", "vdbx"].map(|name| dir.path().join(name));
        for node in [&node, &other] {
            File::create(node).unwrap();
        }
        let closing = Closing::watch(&node).unwrap();
        let open = File::open(&node).unwrap();
        drop(File::open(&other).unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(50), closing.closed()).await.is_err());
        drop(open);
        tokio::time::timeout(Duration::from_secs(10), closing.closed()).await.unwrap();
    }
}
