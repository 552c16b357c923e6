//! `holders <maj:min>`: which NBD clients have a disk open, read from the open files of the NBD servers.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use serde_json::{Value, json};

use super::servers::Servers;
use super::sockets::connections;
use super::{CALLER, ErrorAnswer, HelperCode};
use crate::accounts::id_of;
use crate::device::DevNum;
use crate::helper_client::HoldersAnswer as Held;
use crate::procfs::unless_gone;

pub(super) fn holders(devnum: DevNum) -> Result<Value, ErrorAnswer> {
    let seen = read_all(devnum)?;
    let seen = if seen.clients.is_empty() { seen } else { read_all(devnum)?.lasting(&seen) };
    match seen {
        Held { open: 0, .. } => Err(ErrorAnswer(HelperCode::NotOpen, format!("no NBD server has {devnum} open"))),
        held => Ok(json!(held)),
    }
}

/// Sums what all servers have open of the disk.
fn read_all(devnum: DevNum) -> io::Result<Held> {
    let (servers, attachd) = (Servers::known()?, id_of("/etc/passwd", CALLER).ok());
    let mut sum = Held { open: 0, own: 0, exact: true, clients: Vec::new() };
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Other entries of /proc are no processes.
        let named_by_number = process.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
        if named_by_number && servers.has(&process)? {
            let its = read_process(&process, devnum, attachd)?;
            let clients = [sum.clients, its.clients].concat();
            sum = Held { open: sum.open + its.open, own: sum.own + its.own, exact: sum.exact && its.exact, clients };
        }
    }
    Ok(sum)
}

impl Held {
    /// Keeps only the clients that an earlier reading shows too. One reading is no snapshot: of a handshake of
    /// attachd it may show only the server's end, because the other end appeared or ended in the meantime. A client
    /// that came in between is not named, but it is not ignored either: the result says that the disk is open.
    fn lasting(mut self, before: &Self) -> Self {
        self.exact &= self.clients.iter().all(|client| before.clients.contains(client));
        self.clients.retain(|client| before.clients.contains(client));
        self.own = self.own.min(before.own);
        self
    }
}

/// Returns whether it is certain which clients use the disk. One process can serve many disks. The answer is certain
/// if the process has no other disk open, and either there is only one client or the disk is open once per client
/// (every server opens a disk once per connection).
fn is_exact(open: usize, others: usize, clients: usize) -> bool {
    open == 0 || others == 0 && (clients == 1 || clients == open)
}

/// Reads what this server has open of the disk.
///
/// A failed read is an error. If it were ignored, the answer could wrongly be that no client is connected.
fn read_process(process: &Path, devnum: DevNum, attachd: Option<u32>) -> io::Result<Held> {
    let (mut open, mut others, mut sockets) = (0, 0, BTreeSet::new());
    for descriptor in unless_gone(fs::read_dir(process.join("fd")))?.into_iter().flatten() {
        let Some(descriptor) = unless_gone(descriptor)? else { break };
        match unless_gone(kind_of(&descriptor.path()))?.flatten() {
            Some(DescriptorKind::Disk(number)) if number == devnum => open += 1,
            Some(DescriptorKind::Disk(_)) => others += 1,
            // The server's messages go to the journal through these sockets. A client's socket is standard input too.
            Some(DescriptorKind::Socket(_)) if ["1", "2"].map(OsStr::new).contains(&&*descriptor.file_name()) => {}
            Some(DescriptorKind::Socket(inode)) => drop(sockets.insert(inode)),
            None => {}
        }
    }
    if open == 0 {
        return Ok(Held { open, own: 0, exact: true, clients: Vec::new() });
    }
    let seen = connections(process, &sockets, attachd)?;
    // Connections of attachd's own that have opened the disk, and no others, count as nobody.
    let only_own = seen.complete && seen.clients.is_empty() && seen.own >= open;
    let (open, own) = if only_own { (0, 0) } else { (open, seen.own) };
    Ok(Held { open, own, exact: seen.complete && is_exact(open, others, seen.clients.len()), clients: seen.clients })
}

enum DescriptorKind {
    Disk(DevNum),
    Socket(u64),
}

/// Returns what a descriptor leads to. Nothing in this call can block on another host or process: the name comes from
/// the kernel, and so do the attributes (`DONT_SYNC`), even for a file on a network or FUSE file system.
fn kind_of(descriptor: &Path) -> io::Result<Option<DescriptorKind>> {
    let name = fs::read_link(descriptor)?.to_string_lossy().into_owned();
    if let Some(inode) = name.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix("]")) {
        return inode.parse().map(|inode| Some(DescriptorKind::Socket(inode))).map_err(io::Error::other);
    }
    if !name.starts_with('/') {
        return Ok(None);
    }
    let stat = statx(CWD, descriptor, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    let disk = DevNum { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
    let is_disk = FileType::from_raw_mode(stat.stx_mode.into()).is_block_device();
    Ok(is_disk.then_some(DescriptorKind::Disk(disk)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_exact_with_one_client_or_one_open_per_client_and_no_other_disk_open() {
        assert!(is_exact(1, 0, 1) && is_exact(2, 0, 2) && is_exact(2, 0, 1) && is_exact(0, 3, 2));
        assert!(!is_exact(1, 0, 2), "one of two");
        assert!(!is_exact(1, 0, 0), "open, but by nobody that can be seen");
        assert!(!is_exact(1, 1, 1), "the one client may be the other disk's, and this one about to be closed");
    }

    #[test]
    fn only_clients_seen_twice_are_named_and_the_disk_still_counts_as_open() {
        let held = |clients: &[&str]| Held {
            open: clients.len(),
            own: 0,
            exact: true,
            clients: clients.iter().map(ToString::to_string).collect(),
        };
        let stays = held(&["a", "b"]).lasting(&held(&["b", "a"]));
        assert_eq!((stays.open, stays.exact, stays.clients.len()), (2, true, 2), "the control");
        let came = held(&["a", "c"]).lasting(&held(&["a"]));
        assert_eq!((came.open, came.exact, came.clients), (2, false, vec!["a".to_owned()]));
        let began = held(&["c"]).lasting(&held(&["d"]));
        assert_eq!(
            (began.open, began.exact, began.clients.len()),
            (1, false, 0),
            "open, but by nobody who can be named"
        );
        assert_eq!(held(&[]).lasting(&held(&["d"])).open, 0, "it ended");
    }
}
