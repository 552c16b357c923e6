//! Who is connected to the NBD server: established connections to its port, attachd's own handshakes left out.
//!
//! The table tells that a client is connected, not to which export. None at all is the certain answer; anything else is
//! `unknown` for a single export.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;

use crate::procfs;

/// The remote addresses of clients connected to `server` now. Blocks for milliseconds: the kernel walks its whole table.
pub fn connected(server: SocketAddr) -> io::Result<Vec<String>> {
    let me = rustix::process::geteuid().as_raw();
    let mut lines = procfs::table("/proc/self/net/tcp".as_ref())?;
    // Also for an IPv4 address: whoever holds the port may listen on both. Absent when the kernel has no IPv6.
    lines.push_str(&procfs::table("/proc/self/net/tcp6".as_ref()).unwrap_or_default());
    Ok(clients(&lines, server.port(), me))
}

/// The remote end of each established connection in a table, by the inode of its socket, `me`'s own handshakes left out.
pub(crate) fn remotes(table: &str, me: Option<u32>) -> HashMap<u64, String> {
    let sockets: Vec<(u64, Socket)> = table
        .lines()
        .filter_map(|line| Some((line.split_whitespace().nth(9)?.parse().ok()?, parse(line)?)))
        .filter(|(_, socket)| socket.established)
        .collect();
    // The other end of a connection on this host is in the table as well, with whose it is.
    let own: HashSet<&(String, u16)> =
        sockets.iter().filter(|(_, socket)| Some(socket.uid) == me).map(|(_, socket)| &socket.local).collect();
    let others = sockets.iter().filter(|(_, socket)| !own.contains(&socket.remote));
    others.map(|(inode, socket)| (*inode, format!("{}:{}", readable(&socket.remote.0), socket.remote.1))).collect()
}

/// One line of the table.
struct Socket {
    local: (String, u16),
    remote: (String, u16),
    established: bool,
    uid: u32,
}

fn clients(table: &str, port: u16, me: u32) -> Vec<String> {
    let sockets: Vec<Socket> = table.lines().filter_map(parse).filter(|socket| socket.established).collect();
    let own: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.remote.1 == port && socket.uid == me)
        .map(|socket| socket.local.1)
        .collect();
    sockets
        .iter()
        .filter(|socket| socket.local.1 == port && !own.contains(&socket.remote.1))
        .map(|socket| format!("{}:{}", readable(&socket.remote.0), socket.remote.1))
        .collect()
}

fn parse(line: &str) -> Option<Socket> {
    /// `TCP_ESTABLISHED`.
    const ESTABLISHED: &str = "01";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, _, _, _, uid, ..] = fields[..] else { return None };
    let end = |text: &str| {
        let (address, port) = text.split_once(':')?;
        Some((address.to_owned(), u16::from_str_radix(port, 16).ok()?))
    };
    Some(Socket { local: end(local)?, remote: end(remote)?, established: state == ESTABLISHED, uid: uid.parse().ok()? })
}

/// The kernel writes addresses as words in the host's byte order.
fn readable(hex: &str) -> String {
    let bytes = |word: &str| u32::from_str_radix(word, 16).map(u32::to_ne_bytes).ok();
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8).map(|n| bytes(&hex[n * 8..n * 8 + 8])).collect();
    let all = words.unwrap_or_default().concat();
    if let Ok(v4) = <[u8; 4]>::try_from(&*all) {
        std::net::Ipv4Addr::from(v4).to_string()
    } else if let Ok(v6) = <[u8; 16]>::try_from(&*all) {
        format!("[{}]", std::net::Ipv6Addr::from(v6))
    } else {
        hex.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    #[test]
    fn clients_are_listed_without_listeners_closed_ones_and_our_own_handshakes() {
        let table = format!(
            "{HEAD}\
             0: 0100007F:2A39 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998 0 1\n\
             1: 0100007F:2A39 0100007F:D431 01 00000000:00000000 00:00000000 00000000   998 0 2\n\
             2: 0100007F:D431 0100007F:2A39 01 00000000:00000000 00:00000000 00000000     0 0 3\n\
             3: 0100007F:2A39 0100007F:D432 01 00000000:00000000 00:00000000 00000000   998 0 4\n\
             4: 0100007F:D432 0100007F:2A39 01 00000000:00000000 00:00000000 00000000   997 0 5\n\
             5: 0100007F:2A39 0100007F:D433 08 00000000:00000000 00:00000000 00000000   998 0 6\n\
             6: 0100007F:1F90 0100007F:D434 01 00000000:00000000 00:00000000 00000000     0 0 7\n"
        );
        assert_eq!(clients(&table, 10809, 997), ["127.0.0.1:54321"]);
        let of_nbdkit = |me| {
            let mut inodes: Vec<u64> =
                remotes(&table, me).into_keys().filter(|inode| [1, 2, 4, 6].contains(inode)).collect();
            inodes.sort_unstable();
            inodes
        };
        assert_eq!(remotes(&table, None)[&2], "127.0.0.1:54321");
        assert_eq!(of_nbdkit(None), [2, 4], "neither the listener nor the client that has hung up");
        assert_eq!(of_nbdkit(Some(997)), [2], "nor our own handshake");
    }

    #[test]
    fn an_ipv6_client_is_listed_readably() {
        let ends = "00000000000000000000000001000000:2A39 00000000000000000000000001000000:D431";
        let table = format!("{HEAD} 0: {ends} 01 00000000:00000000 00:00000000 00000000 998 0 2\n");
        assert_eq!(clients(&table, 10809, 997), ["[::1]:54321"]);
    }

    #[test]
    fn garbage_is_passed_over() {
        assert!(clients("x\n\n1 2 3 4 5 6 7 8\n0: zz:yy 00:00 01 0 0 0 0 0\n", 10809, 0).is_empty());
    }
}
