//! Explains why no server answers at the NBD port: which user listens there, and how many clients are connected.

use std::net::SocketAddr;

use super::clients;
use crate::accounts;

/// The number of clients from which on the explanation gives their number, because a server that hangs up may be
/// full.
const MANY: usize = 64;

/// Describes what is found at the port; empty if there is nothing to explain. Blocks for milliseconds.
pub fn found(server: SocketAddr) -> String {
    let Ok(listeners) = clients::listeners(server) else { return String::new() };
    let connected = clients::connected(server).map_or(0, |clients| clients.len());
    let names: Vec<String> = listeners.iter().map(|uid| accounts::name_of(*uid)).collect();
    words(&names, connected)
}

fn words(listeners: &[String], connected: usize) -> String {
    let who = match listeners {
        [] => "nobody listens there".to_owned(),
        // The listener is systemd's, which holds the port for its services.
        [root] if root == "root" => String::new(),
        users => format!("what listens there belongs to {}", users.join(", ")),
    };
    let full = (connected >= MANY).then(|| format!("{connected} clients are connected, it may be full"));
    [who].into_iter().chain(full).filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_described_only_when_that_explains_something() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(words(&[], 0), "nobody listens there");
        assert_eq!(words(&names(&["root"]), 3), "");
        assert_eq!(words(&names(&["alice"]), 0), "what listens there belongs to alice");
        assert_eq!(words(&names(&["root"]), 300), "300 clients are connected, it may be full");
    }

    #[test]
    fn a_listener_of_this_user_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(clients::listeners(address).unwrap(), [rustix::process::geteuid().as_raw()]);
        drop(listener);
        assert!(clients::listeners(address).unwrap().is_empty());
    }
}
