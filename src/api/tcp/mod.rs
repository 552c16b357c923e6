//! The TCP listener for callers that know no Unix socket. It is off by default.
//!
//! On an address that only this host can reach, [`table`] tells which user has the other end of each connection, and
//! [`members`] which users may come in. Everybody else is refused before anything is read. On any other address callers
//! need TLS, and with each request a token (`src/remote.rs`). [`admit`] judges each request, and keeps browsers out.

mod admit;
mod members;
mod table;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_socket_send_buffer_size, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
    set_tcp_nodelay,
};
use tokio::net::{TcpListener, TcpStream};

use super::error::ApiError;
use super::shares::Owner;
use crate::accounts::name_of;
use crate::config::{ApiSettings, is_loopback};
use crate::reason::Code;
use crate::remote::{Remote, RemoteKeys};
pub(super) use admit::admit;
use members::Members;
use table::{Table, UserUnknown};

/// The connections that may wait until attachd accepts them. When the queue is full, the kernel drops who connects next, and
/// that caller tries again only after a second.
const QUEUE: i32 = 1024;

/// How much of its answers the kernel keeps for one client, in bytes; it counts twice as much. By itself it would go up to 4 MB,
/// for each client that does not read.
const UNREAD: usize = 128 * 1024;

/// How long a caller on another host may be silent before the kernel asks whether it is there, and how often it asks.
const SILENT: Duration = Duration::from_secs(30);
const ASKED: (u32, Duration) = (3, Duration::from_secs(10));

/// A TCP listener, and who may come in at it.
pub(super) struct TcpDoor {
    listener: TcpListener,
    address: SocketAddr,
    guard: Guard,
}

/// Who may come in.
enum Guard {
    /// Users of this host.
    Users(Table, Members),
    /// Whoever has the token.
    Token(Remote),
}

/// The listener at which a request came, and what it may say.
pub(super) struct Site {
    /// The listener's address.
    address: IpAddr,
    /// TLS and the token, if callers need these.
    pub(super) remote: Option<Arc<RemoteKeys>>,
}

/// A caller who may connect.
pub(super) struct Admitted {
    /// The user of this host.
    pub(super) uid: Option<u32>,
    pub(super) owner: Owner,
    pub(super) site: Site,
}

impl TcpDoor {
    /// Opens a listener at the address.
    pub(super) fn bind(address: SocketAddr, settings: &ApiSettings) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        rustix::net::listen(&listener, QUEUE)?;
        Self::new(listener, settings)
    }

    /// Takes a listener that systemd has opened.
    pub(super) fn inherited(listener: OwnedFd, settings: &ApiSettings) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(listener);
        let address = listener.local_addr()?;
        Self::new(listener, settings).map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
    }

    fn new(listener: std::net::TcpListener, settings: &ApiSettings) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let guard = match &settings.remote {
            _ if is_loopback(address.ip()) => Guard::Users(Table::open(address)?, Members::new(&settings.tcp_uids)),
            Some(files) => Guard::Token(Remote::new(files.clone()).map_err(io::Error::other)?),
            None => {
                let why = "other hosts can reach this address, so it needs tls_certificate and token_file in [api]";
                return Err(io::Error::other(why));
            }
        };
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)?, address, guard })
    }

    /// Returns TLS and the token, if callers need these.
    pub(super) fn remote(&self) -> Option<&Remote> {
        match &self.guard {
            Guard::Users(..) => None,
            Guard::Token(remote) => Some(remote),
        }
    }

    /// Returns the listener's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the next connection.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let accepted = std::task::ready!(self.listener.poll_accept(cx));
        Poll::Ready(accepted.map(|(stream, theirs)| {
            // An answer goes out at once. What cannot be set is no reason to refuse.
            let _ = (set_tcp_nodelay(&stream, true), set_socket_send_buffer_size(&stream, UNREAD));
            if self.remote().is_some() {
                let _ = watch_for_silence(&stream);
            }
            (stream, theirs)
        }))
    }

    /// Returns who has connected, if this caller may. Of a caller with a token that is known with each request.
    ///
    /// A connection cannot get another user: the row is of the very socket that was connected. But a connection that is
    /// over can leave its addresses to another user's, so the caller must look afterwards whether it is over.
    pub(super) fn judge(&mut self, stream: &TcpStream, theirs: SocketAddr) -> Result<Admitted, ApiError> {
        let ours = stream.local_addr().unwrap_or(self.address);
        let address = ours.ip();
        let (table, members) = match &mut self.guard {
            Guard::Users(table, members) => (table, members),
            Guard::Token(remote) => {
                let owner = Owner::Address(theirs.ip().to_canonical());
                return Ok(Admitted { uid: None, owner, site: Site { address, remote: Some(remote.current()) } });
            }
        };
        let uid = table.user_of(ours, theirs).map_err(|unknown| not_known(&unknown))?;
        match members.has(uid) {
            Ok(true) => Ok(Admitted { uid: Some(uid), owner: Owner::User(uid), site: Site { address, remote: None } }),
            Ok(false) => Err(not_let_in(uid)),
            Err(error) => {
                let text = format!("whether the user {uid} is in the group attachd is not known: {error}");
                Err(ApiError::failed_for_now(text))
            }
        }
    }

    /// The refusal of a connection that is over.
    pub(super) fn over() -> ApiError {
        not_known(&UserUnknown::Closed)
    }
}

/// Has the kernel end a connection whose other host has vanished.
fn watch_for_silence(stream: &TcpStream) -> rustix::io::Result<()> {
    let (times, apart) = ASKED;
    set_tcp_keepidle(stream, SILENT)?;
    set_tcp_keepintvl(stream, apart)?;
    set_tcp_keepcnt(stream, times)?;
    set_socket_keepalive(stream, true)
}

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
