//! The accept loop, with a client's limits: connections, and the time and size of a request's head.

use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tower::ServiceExt;

use super::connection::{Connection, ConnectionIo};
use super::error::{self, ApiError};
use super::shares::{HEAD_BYTES, HEADERS, Slots};
use crate::budget::{self, ClientDescriptors};
use crate::config;
use crate::reason::Code;

/// The time limit for a request's head, idle time included.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long the daemon waits, when it stops, for requests that were already sent.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// The pause after the process ran out of descriptors; without a pause the loop would spin.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(200);

/// The client of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    /// The user, from the socket's credentials.
    pub(super) uid: Option<u32>,
    /// The connection.
    pub(super) connection: Arc<Connection>,
}

/// The API's listening socket.
pub struct Listener {
    socket: UnixListener,
}

impl Listener {
    /// Takes the socket from systemd, or else binds this path.
    pub fn open(path: &Path) -> io::Result<Self> {
        match sd_notify::listen_fds()?.next() {
            Some(fd) => Self::inherited(fd),
            None => Self::bind(path),
        }
    }

    fn inherited(fd: RawFd) -> io::Result<Self> {
        // SAFETY: systemd has opened this descriptor for this process (LISTEN_PID is this process), and nothing else
        // takes it: this function is called once, at the start.
        let socket = unsafe { std::os::unix::net::UnixListener::from_raw_fd(fd) };
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixListener::from_std(socket)? })
    }

    /// Binds the path. Replaces a socket that a dead daemon left there, and nothing else. Mode 0660, so the group may
    /// connect.
    fn bind(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        match config::is_dead_socket_of(path, rustix::process::geteuid().as_raw()) {
            Ok(()) => std::fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self { socket })
    }
}

/// Answers requests until `stop` changes, then lets running requests end. The caller limits how long that takes.
pub async fn serve(listener: Listener, router: axum::Router, mut stop: watch::Receiver<bool>) {
    let ClientDescriptors { served, waiting, .. } = budget::clients();
    let (slots, waiting) = (Arc::new(Slots::new(served)), Slots::new(waiting));
    let connections = hyper_util::server::graceful::GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .half_close(false);
    loop {
        let stream = tokio::select! {
            accepted = listener.socket.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    rest_after(&error).await;
                    continue;
                }
            },
            _ = stop.changed() => break,
        };
        let client = Connection::new(stream);
        let uid = client.uid();
        let slot = slots.try_take(uid);
        let queued = if slot.is_none() { waiting.try_take(uid) } else { None };
        if slot.is_none() && queued.is_none() {
            client.refuse(&error::raw(&no_slot(slots.share(uid))));
            continue;
        }
        let peer = Peer { uid, connection: Arc::new(client) };
        let (slots, watcher, mut stop) = (Arc::clone(&slots), connections.watcher(), stop.clone());
        let (http, router) = (http.clone(), router.clone());
        tokio::spawn(async move {
            let slot = if slot.is_some() {
                slot
            } else {
                tokio::select! {
                    slot = slots.take(uid) => slot,
                    _ = stop.changed() => return,
                }
            };
            drop(queued);
            let io = ConnectionIo::new(Arc::clone(&peer.connection));
            let service = router.map_request(move |mut request: axum::http::Request<_>| {
                request.extensions_mut().insert(peer.clone());
                request
            });
            let connection = http.serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
            // An error means that the client hung up, read nothing, or did not send HTTP; it has been answered as far
            // as possible.
            let _ = watcher.watch(connection).await;
            drop(slot);
        });
    }
    // hyper would close a connection as idle if its request is sent but not read yet. So these requests get a moment.
    let _ = tokio::time::timeout(LAST_REQUESTS, slots.all_free()).await;
    connections.shutdown().await;
}

fn no_slot(share: usize) -> ApiError {
    let text = format!(
        "this user already has its share of {share} connections, and as many wait, or all are in use; close some"
    );
    ApiError::of(Code::TooManyConnections, text)
}

async fn rest_after(error: &io::Error) {
    let errno = Errno::from_io_error(error);
    if matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) {
        tracing::warn!(%error, "cannot accept a connection; trying again shortly");
        tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
    } else {
        tracing::debug!(%error, "a connection ended before it was accepted");
    }
}
