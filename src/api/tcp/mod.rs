//! The TCP listener for callers that know no Unix socket. It is off by default.
//!
//! On an address that only this host can reach, [`table`] tells which user has the other end of each connection, and
//! [`members`] which users may come in. Everybody else is refused before anything is read. [`browser`] keeps browsers
//! out.

mod browser;
mod members;
mod table;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use rustix::net::sockopt::set_tcp_nodelay;
use tokio::net::{TcpListener, TcpStream};

use super::error::ApiError;
use crate::accounts::name_of;
use crate::config::{ApiSettings, is_loopback};
use crate::reason::Code;
pub(super) use browser::refuse as refuse_browsers;
use members::Members;
use table::{Table, UserUnknown};

/// A TCP listener, and who may come in at it.
pub(super) struct TcpDoor {
    listener: TcpListener,
    address: SocketAddr,
    table: Table,
    members: Members,
}

impl TcpDoor {
    /// Opens a listener at the address.
    pub(super) fn bind(address: SocketAddr, settings: &ApiSettings) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        Self::new(listener, settings)
    }

    /// Takes a listener that systemd has opened.
    pub(super) fn inherited(listener: OwnedFd, settings: &ApiSettings) -> io::Result<Self> {
        Self::new(listener.into(), settings)
    }

    fn new(listener: std::net::TcpListener, settings: &ApiSettings) -> io::Result<Self> {
        let address = listener.local_addr()?;
        if !is_loopback(address.ip()) {
            return Err(io::Error::other("other hosts can reach this address"));
        }
        listener.set_nonblocking(true)?;
        let (table, members) = (Table::open(address)?, Members::new(&settings.tcp_uids));
        Ok(Self { listener: TcpListener::from_std(listener)?, address, table, members })
    }

    /// Returns the listener's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the next connection.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let accepted = std::task::ready!(self.listener.poll_accept(cx));
        Poll::Ready(accepted.map(|(stream, theirs)| {
            // An answer goes out at once; if that cannot be set, only later.
            let _ = set_tcp_nodelay(&stream, true);
            (stream, theirs)
        }))
    }

    /// Returns the user at the other end of a connection, if this user may come in.
    ///
    /// A connection cannot get another user: the row is of the very socket that was connected. But a connection that is
    /// over can leave its addresses to another user's, so the caller must look afterwards whether it is over.
    pub(super) fn judge(&mut self, stream: &TcpStream, theirs: SocketAddr) -> Result<u32, ApiError> {
        let uid = self.table.user_of(stream.local_addr().unwrap_or(self.address), theirs);
        let uid = uid.map_err(|unknown| not_known(&unknown))?;
        match self.members.has(uid) {
            Ok(true) => Ok(uid),
            Ok(false) => Err(not_let_in(uid)),
            Err(error) => Err(ApiError::failed_for_now(format!(
                "whether the user {uid} is in the group attachd is not known: {error}"
            ))),
        }
    }

    /// The refusal of a connection that is over.
    pub(super) fn over() -> ApiError {
        not_known(&UserUnknown::Closed)
    }
}

/// The address of a listener, for what a request may name as its host.
pub(super) type Site = IpAddr;

fn not_let_in(uid: u32) -> ApiError {
    let text = format!(
        "{} may not use this API: add it to the group attachd (`usermod -aG attachd`), or its number {uid} to [api] \
         tcp_uids and restart attachd",
        name_of(uid)
    );
    ApiError::of(Code::NotLetIn, text)
}

fn not_known(unknown: &UserUnknown) -> ApiError {
    match unknown {
        UserUnknown::Unread(_) => ApiError::failed_for_now(format!("who connects is not known: {unknown}")),
        UserUnknown::Closed | UserUnknown::Elsewhere => {
            let text = format!(
                "who connects is not known: {unknown}. Connect from this host itself, and keep the connection open \
                 until the answer is there"
            );
            ApiError::of(Code::NotLetIn, text)
        }
    }
}
