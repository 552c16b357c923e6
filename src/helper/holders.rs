//! `holders <maj:min>`: the NBD clients that have a disk open, from the open files of the NBD servers.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::Refusal;
use crate::device::DevNum;
use crate::export::clients;

/// The programs that serve. Every process of theirs counts, whoever's child it is: an nbd-server that was started by a
/// socket, or that has survived its main process, is in no pid file. A stranger of that name has no disk open.
const SERVERS: [&str; 2] = ["nbdkit", "nbd-server"];

/// What one process has to do with the disk.
#[derive(Debug, Default)]
struct Server {
    /// Its open descriptors of the disk.
    open: usize,
    /// The remote ends of its connections.
    clients: Vec<String>,
}

impl Server {
    /// One process can serve many disks: which of its clients uses this one is certain when there is only one client, or
    /// when each of them has it open (every server here opens the disk once per connection).
    fn is_exact(&self) -> bool {
        self.clients.len() == 1 || self.clients.len() == self.open
    }
}

pub(super) fn holders(devnum: DevNum) -> Result<Value, Refusal> {
    let mut servers = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        if SERVERS.contains(&comm.trim_end()) {
            servers.push(look_at(&process, devnum)?);
        }
    }
    servers.retain(|server| server.open > 0);
    if servers.is_empty() {
        return Err(Refusal::new("NOT_OPEN", format!("no NBD server has {devnum} open")));
    }
    let exact = servers.iter().all(Server::is_exact);
    let open: usize = servers.iter().map(|server| server.open).sum();
    let clients: Vec<String> = servers.into_iter().flat_map(|server| server.clients).collect();
    Ok(json!({ "open": open, "clients": clients, "exact": exact }))
}

/// What cannot be read is an error: taken for nothing, it would mean that nobody is connected.
fn look_at(process: &Path, devnum: DevNum) -> io::Result<Server> {
    let mut server = Server::default();
    let mut sockets = Vec::new();
    let Some(descriptors) = unless_gone(fs::read_dir(process.join("fd")))? else { return Ok(server) };
    for descriptor in descriptors {
        let Some(descriptor) = unless_gone(descriptor)? else { return Ok(Server::default()) };
        let Some(stat) = unless_gone(rustix::fs::stat(descriptor.path()).map_err(io::Error::from))? else { continue };
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::BlockDevice if DevNum::from_raw(stat.st_rdev) == devnum => server.open += 1,
            rustix::fs::FileType::Socket => sockets.push(stat.st_ino),
            _ => {}
        }
    }
    if server.open > 0 {
        // The server's own tables: this program has no network, so its own are empty.
        let tcp = unless_gone(fs::read_to_string(process.join("net/tcp")))?.unwrap_or_default();
        // Absent when the kernel has no IPv6.
        let tcp6 = unless_gone(fs::read_to_string(process.join("net/tcp6")))?.unwrap_or_default();
        let remotes = clients::remotes(&(tcp + &tcp6));
        server.clients = sockets.iter().filter_map(|inode| remotes.get(inode).cloned()).collect();
    }
    Ok(server)
}

/// `None` when the process, or its descriptor, has gone meanwhile.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(io::Error::other(format!("cannot see an NBD server's open files: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_a_disk_is_exact_with_one_client_or_when_each_has_it_open() {
        let exact = |open, clients| Server { open, clients: vec![String::new(); clients] }.is_exact();
        assert!(exact(1, 1) && exact(2, 2) && exact(2, 1));
        assert!(!exact(1, 2), "one of two");
        assert!(!exact(1, 0), "open, but by nobody that can be seen");
    }
}
