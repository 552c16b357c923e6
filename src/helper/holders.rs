//! `holders <maj:min>`: the NBD clients that have a disk open, from the open files of the NBD servers.

use std::collections::HashMap;
use std::path::Path;
use std::{fs, io};

use rustix::fs::FileType;
use serde_json::{Value, json};

use super::{CALLER, Refusal};
use crate::accounts::id_of;
use crate::device::DevNum;
use crate::export::clients;
use crate::procfs::unless_gone;

/// The programs that serve. Every process of theirs counts, whoever's child it is: an nbd-server that was started by a
/// socket, or that has survived its main process, is in no pid file. A stranger of that name has no disk open.
const SERVERS: [&str; 2] = ["nbdkit", "nbd-server"];

pub(super) fn holders(devnum: DevNum) -> Result<Value, Refusal> {
    let (mut open, mut clients, mut exact) = (0, Vec::new(), true);
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if SERVERS.contains(&comm.trim_end()) {
            let (its_open, its_exact, its_clients) = look_at(&process, devnum)?;
            open += its_open;
            exact &= its_exact;
            clients.extend(its_clients);
        }
    }
    if open == 0 {
        return Err(Refusal("NOT_OPEN", format!("no NBD server has {devnum} open")));
    }
    Ok(json!({ "open": open, "clients": clients, "exact": exact }))
}

/// One process can serve many disks: which of its clients uses this one is certain when it has no other open, and there is
/// only one client, or each of them has it open (every server here opens the disk once per connection).
fn is_exact(open: usize, others: usize, clients: usize) -> bool {
    open == 0 || others == 0 && (clients == 1 || clients == open)
}

/// How often this server has the disk open, whether its clients are this disk's for certain, and, if it has it open at all, the
/// remote ends of its connections, attachd's own left out.
///
/// What cannot be read is an error: taken for nothing, it would mean that nobody is connected.
fn look_at(process: &Path, devnum: DevNum) -> io::Result<(usize, bool, Vec<String>)> {
    let (mut open, mut others, mut sockets) = (0, 0, Vec::new());
    for descriptor in unless_gone(fs::read_dir(process.join("fd")))?.into_iter().flatten() {
        let Some(descriptor) = unless_gone(descriptor)? else { break };
        let Some(stat) = unless_gone(rustix::fs::stat(descriptor.path()).map_err(Into::into))? else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice if DevNum::from_raw(stat.st_rdev) == devnum => open += 1,
            FileType::BlockDevice => others += 1,
            FileType::Socket => sockets.push(stat.st_ino),
            _ => {}
        }
    }
    if open == 0 {
        return Ok((0, true, Vec::new()));
    }
    // The server's own tables: this program has no network. The second is absent when the kernel has no IPv6.
    let table = |name| unless_gone(fs::read_to_string(process.join(name))).map(Option::unwrap_or_default);
    let (table, attachd) = (table("net/tcp")? + &table("net/tcp6")?, id_of("/etc/passwd", CALLER).ok());
    let among =
        |remotes: HashMap<u64, String>| sockets.iter().filter_map(|inode| remotes.get(inode).cloned()).collect();
    let (all, clients): (Vec<_>, Vec<_>) =
        (among(clients::remotes(&table, None)), among(clients::remotes(&table, attachd)));
    // Only attachd is connected, which asks about a disk it has just had opened itself.
    let open = if clients.is_empty() && all.len() >= open { 0 } else { open };
    Ok((open, is_exact(open, others, clients.len()), clients))
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
