//! The NBD servers that attachd works with, in all of their modes, for benchmarks that compare them.

use std::fs;

use anyhow::{Context as _, Result};
use lab::Lab;
use lab::nbd_server::{Installed, MAIN, MAIN_SOCKET, NbdServer, NbdServerPerConnection, Release};

/// The address of each server.
pub(crate) const ADDRESS: &str = "127.0.0.1:10809";

/// A server in one of its modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// nbdkit over a folder of links.
    Nbdkit,
    /// One nbd-server (Debian 13's) that reads its files again at a signal. Debian 12's dies of the signal.
    Signalled,
    /// An nbd-server for each connection, which reads all files.
    PerConnection(Release),
}

/// The first is the one that the others are compared with.
pub(crate) const SERVER_KINDS: [ServerKind; 4] = [
    ServerKind::Nbdkit,
    ServerKind::Signalled,
    ServerKind::PerConnection(Release::Trixie),
    ServerKind::PerConnection(Release::Bookworm),
];

impl ServerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::Signalled => "nbd-server 3.26.1, signalled",
            Self::PerConnection(Release::Trixie) => "nbd-server 3.26.1, socket-activated",
            Self::PerConnection(Release::Bookworm) => "nbd-server 3.24, socket-activated",
        }
    }

    /// Returns whether a new connection costs a new process, which takes time.
    pub(crate) fn is_slow(self) -> bool {
        matches!(self, Self::PerConnection(_))
    }

    /// Prepares the server to be started in this lab.
    pub(crate) fn install(self, lab: &Lab) -> Result<Server> {
        let release = match self {
            Self::Nbdkit => return Ok(Server::Nbdkit),
            Self::Signalled => Release::Trixie,
            Self::PerConnection(release) => release,
        };
        let installed = Installed::new(lab, release)?;
        fs::write(MAIN, include_str!("../../packaging/nbd-server/signal.conf"))?;
        fs::write(MAIN_SOCKET, include_str!("../../packaging/nbd-server/socket.conf"))?;
        Ok(match self {
            Self::Signalled => Server::Signalled(NbdServer::new(installed.clone()), installed),
            _ => Server::PerConnection(None, installed),
        })
    }
}

/// A server of a lab. It ends with the lab.
pub(crate) enum Server {
    /// The lab itself keeps nbdkit.
    Nbdkit,
    Signalled(NbdServer, Installed),
    /// The listener on the port, while there is one.
    PerConnection(Option<NbdServerPerConnection>, Installed),
}

impl Server {
    pub(crate) fn start(&mut self, lab: &mut Lab) -> Result<()> {
        match self {
            Self::Nbdkit => lab.nbdkit_start(),
            Self::Signalled(server, _) => server.start(),
            Self::PerConnection(listening, installed) => {
                *listening = Some(NbdServerPerConnection::start(installed.clone())?);
                Ok(())
            }
        }
    }

    /// Frees the port for another server. Servers of single connections end with their clients.
    pub(crate) fn stop(&mut self, lab: &mut Lab) -> Result<()> {
        match self {
            Self::Nbdkit => lab.nbdkit_kill(),
            Self::Signalled(server, _) => server.kill(),
            Self::PerConnection(listening, _) => {
                *listening = None;
                Ok(())
            }
        }
    }

    /// Returns the lines for attachd's configuration.
    pub(crate) fn config(&self) -> Result<String> {
        let (mode, main, installed) = match self {
            Self::Nbdkit => return Ok(String::new()),
            Self::Signalled(_, installed) => ("signal", MAIN, installed),
            Self::PerConnection(_, installed) => ("socket", MAIN_SOCKET, installed),
        };
        let version = installed.package_version()?;
        let (_, version) = version.split_once(':').context("Debian's nbd has an epoch")?;
        Ok(format!(
            "[export]\nbackend = \"nbd-server\"\nmode = \"{mode}\"\nnbd_server_version = \"{version}\"\n\
             main_file = \"{main}\"\n"
        ))
    }
}
