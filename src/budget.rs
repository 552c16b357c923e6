//! Who may have how many of the process's descriptors, so that what attachd does for others never takes those it needs to
//! read, to revoke and to keep its store.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Handshakes with the NBD server for the engine, at one time.
pub const HANDSHAKES: usize = 32;

/// Handshakes for whoever asks what a client would meet, at one time, whoever and however many ask.
pub const CHECKS: usize = 16;

/// Open at one time besides: the runtime's, the event sockets, the watches, the store's files on each of its connections,
/// questions to the helper with their watches, files that are just being read or written.
const OWN: usize = 256;

/// How many descriptors the clients of the API may have, by what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientDescriptors {
    /// Connections that are served.
    pub served: usize,
    /// Connections that wait for that.
    pub waiting: usize,
    /// Requests that stay open, whose clients are watched by one descriptor more each.
    pub watched: usize,
}

/// Where descriptors allow it.
const CLIENTS: ClientDescriptors = ClientDescriptors { served: 512, waiting: 512, watched: 256 };

/// With fewer, clients would be turned away all the time.
const FEWEST_CLIENTS: ClientDescriptors = ClientDescriptors { served: 16, waiting: 8, watched: 8 };

impl ClientDescriptors {
    const fn all(self) -> usize {
        self.served + self.waiting + self.watched
    }
}

/// Takes all descriptors that the service manager allows: its lower limit is for programs that use select(2). Says what is
/// too little.
pub fn take_all() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    let wanted = u64::try_from(CLIENTS.all() + HANDSHAKES + CHECKS + OWN).unwrap_or(u64::MAX);
    if let Some(limit) = maximum.filter(|limit| *limit < wanted) {
        let clients = clients().served;
        tracing::warn!(
            limit,
            clients,
            "fewer descriptors than the {wanted} attachd wants (LimitNOFILE=): fewer clients are let in"
        );
    }
    Ok(())
}

/// What the API's clients may have.
pub fn clients() -> ClientDescriptors {
    clients_of(getrlimit(Resource::Nofile).current)
}

fn clients_of(limit: Option<u64>) -> ClientDescriptors {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let left = limit.saturating_sub(HANDSHAKES + CHECKS + OWN);
    let left = left.min(CLIENTS.all());
    let share = |most: usize, fewest: usize| (left * most / CLIENTS.all()).max(fewest);
    ClientDescriptors {
        served: share(CLIENTS.served, FEWEST_CLIENTS.served),
        waiting: share(CLIENTS.waiting, FEWEST_CLIENTS.waiting),
        watched: share(CLIENTS.watched, FEWEST_CLIENTS.watched),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_is_left_and_never_what_attachd_needs() {
        assert_eq!(clients_of(None), CLIENTS);
        assert_eq!(clients_of(Some(524_288)), CLIENTS);
        assert!(clients_of(Some(1024)).served > CLIENTS.served / 2);
        for limit in [512, 700, 1024, 4096] {
            let limit_of_all = usize::try_from(limit).unwrap();
            assert!(clients_of(Some(limit)).all() + HANDSHAKES + CHECKS + OWN <= limit_of_all, "{limit}");
        }
        assert_eq!(clients_of(Some(64)), FEWEST_CLIENTS);
    }
}
