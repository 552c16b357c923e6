//! Lists the clients of the NBD server: established connections to its port, without attachd's own handshakes.
//!
//! The kernel's table shows that a client is connected, but not to which export. So only the answer "no client at
//! all" is certain; for a single export any other answer is `unknown`.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::procfs;

/// Returns the remote addresses of the clients that are connected to `server` now. Blocks for milliseconds: the
/// kernel walks its whole table.
pub fn connected(server: SocketAddr) -> io::Result<Vec<String>> {
    connected_but(server, rustix::process::geteuid().as_raw())
}

/// As [`connected`], but leaves out the connections of the user `me` and not those of the caller.
pub fn connected_but(server: SocketAddr, me: u32) -> io::Result<Vec<String>> {
    let first = table()?;
    if clients(&first, server.port(), me).is_empty() {
        return Ok(Vec::new());
    }
    Ok(lasting(&first, &table()?, server.port(), me))
}

/// Returns who is connected in both of two tables, read one after the other. One table is no snapshot: of a handshake
/// of ours it may show only the server's end, because the handshake began or ended while the table was read. A client
/// that connects between the two reads may be missed. So a withdrawal asks again once no new client can connect.
fn lasting(first: &str, second: &str, port: u16, me: u32) -> Vec<String> {
    let mut lasting = clients(first, port, me);
    drop_own(&mut lasting, second, Some(me));
    let still = clients(second, port, me);
    let mut lasting: Vec<String> =
        lasting.into_keys().filter(|ends| still.contains_key(ends)).map(|ends| ends.remote.to_string()).collect();
    lasting.sort_unstable();
    lasting
}

fn table() -> io::Result<String> {
    let mut lines = procfs::table("/proc/self/net/tcp".as_ref())?;
    // Also for an IPv4 address, because the server may listen on both. The file is absent when the kernel has no
    // IPv6.
    lines.extend(procfs::table_if_any("/proc/self/net/tcp6".as_ref())?);
    Ok(String::from_utf8_lossy(&lines).into_owned())
}

/// The state `TCP_LISTEN`.
const LISTENS: &str = "0A";

/// Returns the users whose sockets listen at this address. Blocks for milliseconds.
pub fn listeners(server: SocketAddr) -> io::Result<Vec<u32>> {
    let here = |ends: &Ends| {
        ends.local.port() == server.port() && (ends.local.ip() == server.ip() || ends.local.ip().is_unspecified())
    };
    let table = table()?;
    let listening = sockets(&table).filter(|socket| socket.state == LISTENS && here(&socket.ends));
    let users: BTreeSet<u32> = listening.map(|socket| socket.uid).collect();
    Ok(users.into_iter().collect())
}

/// The role of one socket of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// A listening socket.
    Listens,
    /// A client's connection, from this address.
    Client(SocketAddr),
    /// A handshake of attachd itself.
    Own,
    /// The client has hung up. The server has not closed the connection yet and may still work on its last requests.
    Ended,
}

/// Returns the role of each socket in a table, by inode, as seen from the server's end.
pub(crate) fn roles(table: &str, me: Option<u32>) -> HashMap<u64, Role> {
    let others: HashMap<Ends, Socket> = sockets(table).map(|socket| (socket.ends.turned(), socket)).collect();
    let role = |socket: &Socket| match others.get(&socket.ends) {
        _ if socket.state == LISTENS => Role::Listens,
        Some(other) if socket.established() && other.established() && Some(other.uid) == me => Role::Own,
        Some(other) if !other.established() => Role::Ended,
        _ if !socket.established() => Role::Ended,
        _ => Role::Client(socket.ends.remote),
    };
    sockets(table).map(|socket| (socket.inode, role(&socket))).collect()
}

fn clients(table: &str, port: u16, me: u32) -> HashMap<Ends, u64> {
    established(table, |ends| ends.local.port() == port, Some(me))
}

/// Returns the established connections with the inodes of their sockets.
fn established(table: &str, wanted: impl Fn(&Ends) -> bool, me: Option<u32>) -> HashMap<Ends, u64> {
    let found = sockets(table).filter(|socket| socket.established() && wanted(&socket.ends));
    let mut found = found.map(|socket| (socket.ends, socket.inode)).collect();
    drop_own(&mut found, table, me);
    found
}

/// Drops the connections whose other end is on this host and belongs to `me` or has hung up. (One end may be read
/// before the hang-up and the other end after it.)
fn drop_own(connections: &mut HashMap<Ends, u64>, table: &str, me: Option<u32>) {
    for other in sockets(table).filter(|other| !other.established() || Some(other.uid) == me) {
        connections.remove(&other.ends.turned());
    }
}

/// A connection, as one of its ends shows it.
#[derive(PartialEq, Eq, Hash)]
struct Ends {
    local: SocketAddr,
    remote: SocketAddr,
}

impl Ends {
    /// Returns the same connection as the other end shows it.
    fn turned(&self) -> Self {
        Self { local: self.remote, remote: self.local }
    }
}

/// One line of the table.
struct Socket<'a> {
    ends: Ends,
    state: &'a str,
    uid: u32,
    inode: u64,
}

impl Socket<'_> {
    fn established(&self) -> bool {
        /// The state `TCP_ESTABLISHED`.
        const ESTABLISHED: &str = "01";
        self.state == ESTABLISHED
    }
}

fn sockets(table: &str) -> impl Iterator<Item = Socket<'_>> {
    table.lines().filter_map(parse)
}

fn parse(line: &str) -> Option<Socket<'_>> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, _, _, _, uid, _, inode, ..] = fields[..] else { return None };
    Some(Socket {
        ends: Ends { local: end(local)?, remote: end(remote)? },
        state,
        uid: uid.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

/// Parses address and port. If a socket listens on both IPv4 and IPv6, both ends of an IPv4 client's connection are
/// shown as IPv4-mapped IPv6 addresses.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    Some(SocketAddr::new(address_of(address)?, u16::from_str_radix(port, 16).ok()?))
}

/// Parses an address, which the kernel writes as words in the host's byte order.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let bytes = (0..hex.len()).step_by(8).map(word).collect::<Option<Vec<_>>>()?.concat();
    match (<[u8; 4]>::try_from(&*bytes), <[u8; 16]>::try_from(&*bytes)) {
        (Ok(v4), _) => Some(v4.into()),
        (_, Ok(v6)) => Some(IpAddr::from(v6).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(table: &str, port: u16, me: u32) -> Vec<String> {
        let clients = super::clients(table, port, me);
        let mut clients: Vec<String> = clients.into_keys().map(|ends| ends.remote.to_string()).collect();
        clients.sort_unstable();
        clients
    }

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
        let of_nbdkit = |me, inode| roles(&table, me)[&inode].clone();
        let client = |port| Role::Client(SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(
            [1, 2, 4, 6].map(|inode| of_nbdkit(Some(997), inode)),
            [Role::Listens, client(54321), Role::Own, Role::Ended]
        );
        assert_eq!(of_nbdkit(None, 4), client(54322), "the control");
    }

    /// The kernel walks its table while connections come and go, so the line of one end may be older than that of the
    /// other.
    #[test]
    fn a_connection_that_is_closed_while_the_table_is_read_is_no_client() {
        let server = "0: 0100007F:2A39 0100007F:D431 01 00000000:00000000 00:00000000 00000000 998 0 1\n";
        let closing =
            |state| format!("1: 0100007F:D431 0100007F:2A39 {state} 00000000:00000000 00:00000000 00000000 0 0 0\n");
        let none: [&str; 0] = [];
        for state in ["04", "05", "06"] {
            assert_eq!(clients(&format!("{HEAD}{server}{}", closing(state)), 10809, 997), none, "{state}");
        }
        assert_eq!(clients(&format!("{HEAD}{server}"), 10809, 997), ["127.0.0.1:54321"]);
    }

    /// A socket that is closed with unread data, or that the other end closes first, leaves no line behind.
    #[test]
    fn a_connection_that_began_or_ended_while_a_table_was_read_is_no_client() {
        let server =
            format!("{HEAD}0: 0100007F:2A39 0100007F:D431 01 00000000:00000000 00:00000000 00000000 998 0 1\n");
        let own = format!("{server}1: 0100007F:D431 0100007F:2A39 01 00000000:00000000 00:00000000 00000000 997 0 2\n");
        let none: [&str; 0] = [];
        assert_eq!(lasting(&server, &own, 10809, 997), none, "it began");
        assert_eq!(lasting(&server, HEAD, 10809, 997), none, "it ended");
        assert_eq!(lasting(&server, &server, 10809, 997), ["127.0.0.1:54321"], "the control: a client that stays");
    }

    #[test]
    fn our_own_handshake_is_known_by_both_its_ends_also_at_a_server_that_listens_on_ipv6() {
        let mapped = |port| format!("0000000000000000FFFF00000100007F:{port}");
        let table = format!(
            "{HEAD}\
             0: {} {} 01 00000000:00000000 00:00000000 00000000 998 0 1\n\
             1: 0100007F:D431 0100007F:2A39 01 00000000:00000000 00:00000000 00000000 997 0 2\n\
             2: 0200000A:2A39 0100000A:D431 01 00000000:00000000 00:00000000 00000000 998 0 3\n",
            mapped("2A39"),
            mapped("D431")
        );
        assert_eq!(clients(&table, 10809, 997), ["10.0.0.1:54321"], "another host's client with the same port");
        assert_eq!(clients(&table, 10809, 0), ["10.0.0.1:54321", "127.0.0.1:54321"]);
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
