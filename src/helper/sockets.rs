//! Finds the clients of a server's sockets in the tables of the server's network namespace; the helper's own has no
//! network.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;

use crate::export::clients::{self, Role};
use crate::procfs::{table, unless_gone};

/// The connections of a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Connections {
    /// One name for each client, for every port and Unix socket.
    pub(super) clients: Vec<String>,
    /// The number of attachd's own handshakes.
    pub(super) own: usize,
    /// Whether a table shows every connection, and none of them is hung up but not closed yet.
    pub(super) complete: bool,
}

/// Returns the connections among a process's sockets, which are given by inode.
pub(super) fn connections(process: &Path, sockets: &BTreeSet<u64>, attachd: Option<u32>) -> io::Result<Connections> {
    let read = |name| unless_gone(table(&process.join(name))).map(Option::unwrap_or_default);
    // The second file is absent when the kernel has no IPv6.
    let tcp = [read("net/tcp")?, read("net/tcp6")?].concat();
    Ok(sum(sockets, &clients::roles(&String::from_utf8_lossy(&tcp), attachd), &unix(&read("net/unix")?)))
}

fn sum(sockets: &BTreeSet<u64>, tcp: &HashMap<u64, Role>, unix: &HashMap<u64, Option<String>>) -> Connections {
    let mut sum = Connections { complete: true, ..Connections::default() };
    for inode in sockets {
        match (tcp.get(inode), unix.get(inode)) {
            (Some(Role::Client(address)), _) => sum.clients.push(address.to_string()),
            (Some(Role::Own), _) => sum.own += 1,
            (Some(Role::Ended), _) => sum.complete = false,
            (None, Some(Some(client))) => sum.clients.push(client.clone()),
            (Some(Role::Listens), _) | (None, Some(None)) => {}
            // The socket was just closed, or no table shows its kind.
            (None, None) => {
                sum.complete = false;
                sum.clients.push("a connection that is neither TCP nor a Unix socket".to_owned());
            }
        }
    }
    sum
}

/// Parses `/proc/net/unix` into sockets by inode; a connected stream socket has a name for its client. (A user can
/// forge a line with a socket name that contains a line feed. At most that shows a client that does not exist.)
fn unix(table: &[u8]) -> HashMap<u64, Option<String>> {
    let mut sockets = HashMap::new();
    for line in table.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        let mut fields = line.split_whitespace();
        let [Some(kind), Some(state), Some(inode)] = [fields.nth(4), fields.next(), fields.next()] else { continue };
        let Ok(inode) = inode.parse() else { continue };
        let name = fields.next().map(|path| format!(" {}", path.escape_debug())).unwrap_or_default();
        // SOCK_STREAM or SOCK_SEQPACKET, in the state SS_CONNECTED.
        let connected = matches!(kind, "0001" | "0005") && state == "03";
        let client = connected.then(|| format!("a client on the Unix socket{name}"));
        let known = sockets.entry(inode).or_insert(None);
        *known = known.take().or(client);
    }
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: &[u8] = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
        0000000000000000: 00000002 00000000 00010000 0001 01 10 /run/nbd.sock\n\
        0000000000000000: 00000003 00000000 00000000 0001 03 11 /run/nbd.sock\n\
        0000000000000000: 00000003 00000000 00000000 0001 03 12\n\
        0000000000000000: 00000002 00000000 00000000 0002 01 13\n\
        0000000000000000: 00000003 00000000 00000000 0001 03 14 /run/\xff\n";

    fn of(sockets: &[u64], tcp: &[(u64, Role)]) -> Connections {
        sum(&sockets.iter().copied().collect(), &tcp.iter().cloned().collect(), &unix(UNIX))
    }

    #[test]
    fn clients_on_any_port_and_on_unix_sockets_are_named_and_listeners_and_our_own_are_not() {
        let address = |port: u16| Role::Client(([127, 0, 0, 1], port).into());
        let tcp = [(1, Role::Listens), (2, address(5)), (3, address(6)), (4, Role::Own)];
        let seen = of(&[1, 2, 3, 4, 10, 11, 12, 13, 14], &tcp);
        let names = ["127.0.0.1:5", "127.0.0.1:6"].map(str::to_owned).into_iter();
        let on_unix = [" /run/nbd.sock", "", " /run/\u{fffd}"].map(|name| format!("a client on the Unix socket{name}"));
        assert_eq!(seen, Connections { clients: names.chain(on_unix).collect(), own: 1, complete: true });
        assert_eq!(of(&[1, 10, 13], &tcp), Connections { complete: true, ..Connections::default() }, "the control");
    }

    #[test]
    fn an_unknown_or_closing_connection_is_not_taken_for_no_client() {
        assert!(!of(&[99], &[]).complete && of(&[99], &[]).clients.len() == 1);
        assert!(!of(&[1], &[(1, Role::Ended)]).complete);
    }

    #[test]
    fn a_forged_line_hides_no_client() {
        let forged = [UNIX, b"0000000000000000: 00000002 00000000 00000000 0002 01 11 x\n"].concat();
        assert_eq!(unix(&forged), unix(UNIX));
    }
}
