//! Asks the kernel's table of connections which user has the other end of a connection from this host.
//!
//! The kernel is asked for one socket by its exact addresses (netlink `sock_diag`), which takes a few microseconds
//! however many connections there are, and never waits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The size limit of one of the kernel's answers.
const ANSWER: usize = 8192;

/// Answers that came late and are dropped, at most, before the kernel counts as silent.
const LATE: usize = 16;

/// In a request: any socket, whatever its cookie.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The kernel's table of connections in this network namespace.
pub(super) struct Table {
    netlink: OwnedFd,
    sequence: u32,
}

/// One end of a connection, as the table shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    state: u8,
    uid: u32,
    inode: u32,
}

/// Why the user at the other end is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserUnknown {
    /// The other end is not on this host, or not in this network namespace.
    #[error("the other end of the connection is no socket of this host's")]
    Elsewhere,
    /// The other end is closed, or is being closed.
    #[error("the other end of the connection is closed already")]
    Closed,
    /// The table cannot be read.
    #[error("the kernel's table of connections cannot be read: {0}")]
    Unread(io::Error),
}

impl Table {
    /// Opens the table, and checks with a listening socket's own address that the kernel answers: if the kernel has no
    /// `tcp_diag`, it says of every socket that there is none.
    pub(super) fn open(listener: SocketAddr) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let netlink = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG))?;
        // A socket that is connected to the kernel takes messages from nobody else.
        rustix::net::connect(&netlink, &SocketAddrNetlink::new(0, 0))?;
        let mut table = Self { netlink, sequence: 0 };
        let nobody = SocketAddr::new(listener.ip(), 0);
        match table.row(listener, nobody)? {
            Some(Row { state: TCP_LISTEN, .. }) => Ok(table),
            _ => Err(io::Error::other("the kernel does not show TCP connections (its module tcp_diag is missing)")),
        }
    }

    /// Returns the user of the socket at the other end of a connection. `ours` and `theirs` are its addresses as
    /// attachd's end has them.
    pub(super) fn user_of(&mut self, ours: SocketAddr, theirs: SocketAddr) -> Result<u32, UserUnknown> {
        judge(self.row(theirs, ours).map_err(UserUnknown::Unread)?)
    }

    /// Returns the row of the socket with this local and this remote address, if there is one.
    fn row(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Row>> {
        self.sequence = self.sequence.wrapping_add(1);
        // A socket for IPv6 that has IPv4 addresses (mapped) is found by these, like one for IPv4.
        let (local, remote) = (canonical(local), canonical(remote));
        rustix::net::send(&self.netlink, &request(local, remote, self.sequence), SendFlags::empty())?;
        let mut answer = [0; ANSWER];
        for _ in 0..LATE {
            // The kernel answers before `send` returns.
            let (length, _) = rustix::net::recv(&self.netlink, &mut answer, RecvFlags::DONTWAIT)?;
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(&answer[..length]);
            let message = message.map_err(|error| io::Error::other(format!("not understood: {error}")))?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            return match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    Ok(is_exactly(&found.header, local, remote).then(|| Row::from(&found.header)))
                }
                NetlinkPayload::Error(error) => match error.to_io() {
                    error if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    error => Err(error),
                },
                _ => Err(io::Error::other("another answer than was asked for")),
            };
        }
        Err(io::Error::other("no answer"))
    }
}

/// Only an established row with an inode says whose the connection is: of a socket that no process has any more, many
/// kernels show the user 0, and all show the inode 0.
fn judge(row: Option<Row>) -> Result<u32, UserUnknown> {
    match row {
        Some(Row { state: TCP_ESTABLISHED, uid, inode }) if inode != 0 => Ok(uid),
        // In place of a connection that is not there the kernel shows who listens at that address.
        None | Some(Row { state: TCP_LISTEN, .. }) => Err(UserUnknown::Elsewhere),
        Some(_) => Err(UserUnknown::Closed),
    }
}

impl From<&InetResponseHeader> for Row {
    fn from(header: &InetResponseHeader) -> Self {
        Self { state: header.state, uid: header.uid, inode: header.inode }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns whether the row is of this very pair of addresses, or of who listens at the local one.
fn is_exactly(header: &InetResponseHeader, local: SocketAddr, remote: SocketAddr) -> bool {
    let id = &header.socket_id;
    let there = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
    let other = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
    (there == local && other == remote) || header.state == TCP_LISTEN
}

fn request(local: SocketAddr, remote: SocketAddr, sequence: u32) -> Vec<u8> {
    let family = match local.ip() {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    };
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: local.ip(),
        destination_address: remote.ip(),
        interface_id: 0,
        cookie: ANY_COOKIE,
    };
    let (extensions, states) = (ExtensionFlags::empty(), StateFlags::all());
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut header = NetlinkHeader::default();
    (header.flags, header.sequence_number) = (NLM_F_REQUEST, sequence);
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// Returns a client's end and the server's end of a connection.
    fn connection(bind: &str, connect: impl Fn(u16) -> String) -> (Table, TcpStream, TcpStream) {
        let listener = TcpListener::bind(bind).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(connect(address.port())).unwrap();
        (Table::open(address).unwrap(), client, listener.accept().unwrap().0)
    }

    fn asked(table: &mut Table, server: &TcpStream) -> Result<u32, UserUnknown> {
        table.user_of(server.local_addr().unwrap(), server.peer_addr().unwrap())
    }

    #[test]
    fn the_user_of_the_other_end_is_known_over_ipv4_ipv6_and_mapped_addresses() {
        for (bind, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.1:0", "[::ffff:127.0.0.1]"),
            ("[::1]:0", "[::1]"),
            ("[::]:0", "127.0.0.1"),
            ("[::]:0", "[::1]"),
        ] {
            let (mut table, _client, server) = connection(bind, |port| format!("{connect}:{port}"));
            assert_eq!(asked(&mut table, &server).unwrap(), me(), "{connect} to {bind}");
        }
    }

    #[test]
    fn it_is_the_row_of_the_other_end_and_not_of_this_one() {
        let (mut table, client, server) = connection("127.0.0.1:0", |port| format!("127.0.0.1:{port}"));
        drop(client);
        let (ours, theirs) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        let own = table.row(ours, theirs).unwrap().unwrap();
        assert!(own.inode != 0 && own.uid == me(), "the control: attachd's own end is whole");
        assert!(table.user_of(ours, theirs).is_err());
    }

    #[test]
    fn a_socket_that_no_process_has_is_nobodys_whatever_user_the_kernel_shows() {
        let (mut table, mut client, server) = connection("127.0.0.1:0", |port| format!("127.0.0.1:{port}"));
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(asked(&mut table, &server).unwrap(), me(), "the control");
        drop(client);
        let row = table.row(server.peer_addr().unwrap(), server.local_addr().unwrap()).unwrap().unwrap();
        assert_eq!(row.inode, 0, "the trap: the user is shown as 0, or as it was");
        assert!(matches!(asked(&mut table, &server), Err(UserUnknown::Closed)));
    }

    #[test]
    fn only_an_established_row_with_an_inode_is_believed() {
        let row = |state, inode| Some(Row { state, uid: 0, inode });
        assert!(matches!(judge(row(TCP_ESTABLISHED, 7)), Ok(0)), "the control");
        assert!(matches!(judge(row(TCP_ESTABLISHED, 0)), Err(UserUnknown::Closed)));
        assert!(matches!(judge(row(TCP_LISTEN, 7)), Err(UserUnknown::Elsewhere)));
        assert!(matches!(judge(None), Err(UserUnknown::Elsewhere)));
        for state in 2..=12 {
            assert!(judge(row(state, 7)).is_err(), "{state}");
        }
    }

    #[test]
    fn a_connection_that_is_not_there_is_elsewhere() {
        let (mut table, _client, server) = connection("127.0.0.1:0", |port| format!("127.0.0.1:{port}"));
        for theirs in ["192.0.2.1:7", "127.0.0.1:1", "[2001:db8::1]:7"] {
            let asked = table.user_of(server.local_addr().unwrap(), theirs.parse().unwrap());
            assert!(matches!(asked, Err(UserUnknown::Elsewhere)), "{theirs}: {asked:?}");
        }
    }
}
