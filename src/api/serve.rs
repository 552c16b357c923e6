//! The accept loop, and what a client may take of it: connections, time for a request's head, its size.

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

use super::error::{self, ApiError};
use super::line::{Line, Wire};
use super::shares::{HEAD_BYTES, HEADERS, Places};
use crate::budget::{self, ClientDescriptors};
use crate::config;
use crate::reason::Code;

/// How long a connection may take for a request's head, idle time included.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long requests that are on their way when the daemon stops may take to arrive.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// Pause after the process ran out of descriptors: accepting again at once would spin.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(200);

/// Who is on the other side.
#[derive(Clone)]
pub(super) struct Peer {
    /// The user, from the socket's credentials.
    pub(super) uid: Option<u32>,
    /// The connection.
    pub(super) line: Arc<Line>,
}

/// The API's socket.
pub struct Listener {
    socket: UnixListener,
}

impl Listener {
    /// The socket systemd hands over, else one of our own at this path.
    pub fn open(path: &Path) -> io::Result<Self> {
        match sd_notify::listen_fds()?.next() {
            Some(fd) => Self::inherited(fd),
            None => Self::bind(path),
        }
    }

    fn inherited(fd: RawFd) -> io::Result<Self> {
        // SAFETY: systemd has opened this descriptor for this process (LISTEN_PID is ours) and nothing else here takes
        // it: this is called once, at the start.
        let socket = unsafe { std::os::unix::net::UnixListener::from_raw_fd(fd) };
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixListener::from_std(socket)? })
    }

    /// Binds the path, in place of a socket that a dead daemon left there, and of nothing else. Mode 0660: the group may ask.
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

/// Answers until `stop` changes, then lets running requests end; the caller bounds how long.
pub async fn serve(listener: Listener, router: axum::Router, mut stop: watch::Receiver<bool>) {
    let ClientDescriptors { served, waiting, .. } = budget::clients();
    let (places, waiting) = (Arc::new(Places::new(served)), Places::new(waiting));
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
        let line = Line::new(stream);
        let uid = line.uid();
        let place = places.try_take(uid);
        let turn = if place.is_none() { waiting.try_take(uid) } else { None };
        if place.is_none() && turn.is_none() {
            line.refuse(&error::raw(&no_place(places.share(uid))));
            continue;
        }
        let peer = Peer { uid, line: Arc::new(line) };
        let (places, watcher, mut stop) = (Arc::clone(&places), connections.watcher(), stop.clone());
        let (http, router) = (http.clone(), router.clone());
        tokio::spawn(async move {
            let place = if place.is_some() {
                place
            } else {
                tokio::select! {
                    place = places.take(uid) => place,
                    _ = stop.changed() => return,
                }
            };
            drop(turn);
            let wire = Wire::new(Arc::clone(&peer.line));
            let service = router.map_request(move |mut request: axum::http::Request<_>| {
                request.extensions_mut().insert(peer.clone());
                request
            });
            let connection = http.serve_connection(TokioIo::new(wire), TowerToHyperService::new(service));
            // A client that hangs up, takes nothing or sends what is not HTTP has been answered; nothing is left to do.
            let _ = watcher.watch(connection).await;
            drop(place);
        });
    }
    // hyper would close a connection whose request is on its way but not read yet, as if it were idle: give those a moment.
    let _ = tokio::time::timeout(LAST_REQUESTS, places.all_free()).await;
    connections.shutdown().await;
}

fn no_place(share: usize) -> ApiError {
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
