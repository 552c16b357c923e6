//! Divides the process's descriptors, so that API clients never take those that attachd needs to read disks, to
//! revoke exports and to keep its store.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit of handshakes with the NBD server at one time, for the engine.
pub const HANDSHAKES: usize = 32;

/// The limit of handshakes at one time for checks of exports, for all callers together.
pub const CHECKS: usize = 16;

/// Descriptors for everything else: the runtime, the event sockets, the watches, the store's files on each of its
/// connections, requests to the helper with their watches, and files that are being read or written.
const OWN: usize = 256;

/// How many descriptors the API's clients may have, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientDescriptors {
    /// Connections that are served.
    pub served: usize,
    /// Connections that wait to be served.
    pub waiting: usize,
    /// Requests that stay open, each with one more descriptor that watches for the client's hang-up.
    pub watched: usize,
}

/// The shares, if there are enough descriptors.
const CLIENTS: ClientDescriptors = ClientDescriptors { served: 512, waiting: 512, watched: 256 };

/// The smallest shares. With fewer, clients would be refused all the time.
const FEWEST_CLIENTS: ClientDescriptors = ClientDescriptors { served: 16, waiting: 8, watched: 8 };

impl ClientDescriptors {
    const fn all(self) -> usize {
        self.served + self.waiting + self.watched
    }
}

/// Raises the limit of descriptors to the maximum that the service manager allows; the lower limit is for programs
/// that use select(2). Logs a warning if there are too few.
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

/// Returns the shares of the API's clients.
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
    fn clients_get_only_descriptors_that_attachd_does_not_need() {
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
