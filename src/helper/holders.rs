//! `holders <maj:min>`: the NBD clients that have a disk open, from the open files of the NBD servers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use serde_json::{Value, json};

use super::servers::Servers;
use super::sockets::connections;
use super::{CALLER, Refusal};
use crate::accounts::id_of;
use crate::device::DevNum;
use crate::procfs::unless_gone;

pub(super) fn holders(devnum: DevNum) -> Result<Value, Refusal> {
    let (servers, attachd) = (Servers::known()?, id_of("/etc/passwd", CALLER).ok());
    let mut sum = Held { open: 0, exact: true, clients: Vec::new() };
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // What else is there is no process.
        let named_by_number = process.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit));
        if named_by_number && servers.has(&process)? {
            let its = look_at(&process, devnum, attachd)?;
            sum = Held { open: sum.open + its.open, exact: sum.exact && its.exact, ..sum };
            sum.clients.extend(its.clients);
        }
    }
    let Held { open, exact, clients } = sum;
    if open == 0 {
        return Err(Refusal("NOT_OPEN", format!("no NBD server has {devnum} open")));
    }
    Ok(json!({ "open": open, "clients": clients, "exact": exact }))
}

/// How a disk is held by a server.
struct Held {
    /// So often.
    open: usize,
    /// Its clients are this disk's for certain.
    exact: bool,
    clients: Vec<String>,
}

/// One process can serve many disks: which of its clients uses this one is certain when it has no other open, and there is
/// only one client, or each of them has it open (every server here opens the disk once per connection).
fn is_exact(open: usize, others: usize, clients: usize) -> bool {
    open == 0 || others == 0 && (clients == 1 || clients == open)
}

/// What this server has open of the disk.
///
/// What cannot be read is an error: taken for nothing, it would mean that nobody is connected.
fn look_at(process: &Path, devnum: DevNum, attachd: Option<u32>) -> io::Result<Held> {
    let (mut open, mut others, mut sockets) = (0, 0, Vec::new());
    for descriptor in unless_gone(fs::read_dir(process.join("fd")))?.into_iter().flatten() {
        let Some(descriptor) = unless_gone(descriptor)? else { break };
        match unless_gone(kind_of(&descriptor.path()))? {
            Some(Kind::Disk(number)) if number == devnum => open += 1,
            Some(Kind::Disk(_)) => others += 1,
            // What a server says goes to the journal by these; a client that is there is on its input as well.
            Some(Kind::Socket(_)) if ["1", "2"].map(OsStr::new).contains(&&*descriptor.file_name()) => {}
            Some(Kind::Socket(inode)) => sockets.push(inode),
            Some(Kind::Other) | None => {}
        }
    }
    if open == 0 {
        return Ok(Held { open, exact: true, clients: Vec::new() });
    }
    let seen = connections(process, &sockets, attachd)?;
    // Only attachd is connected, which asks about a disk it has just had opened itself.
    let only_own = seen.complete && seen.clients.is_empty() && seen.own >= open;
    let open = if only_own { 0 } else { open };
    Ok(Held { open, exact: seen.complete && is_exact(open, others, seen.clients.len()), clients: seen.clients })
}

enum Kind {
    Disk(DevNum),
    Socket(u64),
    Other,
}

/// What a descriptor leads to. Nobody is asked who could keep the answer back: its name is the kernel's, and so is what is
/// read of a file (`DONT_SYNC`), also where it lies on another host or in a file system that a process serves.
fn kind_of(descriptor: &Path) -> io::Result<Kind> {
    let name = match fs::read_link(descriptor) {
        // A path that is too long to be read may lead to a disk too.
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => Path::new("/").to_owned(),
        name => name?,
    };
    let name = name.as_os_str().as_bytes();
    if let Some(inode) = name.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]")) {
        let inode = str::from_utf8(inode).ok().and_then(|inode| inode.parse().ok());
        return inode.map(Kind::Socket).ok_or_else(|| io::Error::other("a socket without a number"));
    }
    if !name.starts_with(b"/") {
        return Ok(Kind::Other);
    }
    let stat = statx(CWD, descriptor, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::BlockDevice => Kind::Disk(DevNum { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }),
        _ => Kind::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_a_disk_is_exact_with_one_client_or_when_each_has_it_open_and_no_other_disk_is() {
        assert!(is_exact(1, 0, 1) && is_exact(2, 0, 2) && is_exact(2, 0, 1) && is_exact(0, 3, 2));
        assert!(!is_exact(1, 0, 2), "one of two");
        assert!(!is_exact(1, 0, 0), "open, but by nobody that can be seen");
        assert!(!is_exact(1, 1, 1), "the one client may be the other disk's, and this one about to be closed");
    }
}
