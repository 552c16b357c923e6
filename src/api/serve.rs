//! The accept loop, with a client's limits: connections, and the time and size of a request's head.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower::ServiceExt;

use super::connection::{Connection, ConnectionIo};
use super::error::{self, ApiError};
use super::listeners::{Listeners, Visitor};
use super::refusing::Refusing;
use super::shares::{HEAD_BYTES, HEADERS, Owner, Slots};
use super::tcp::Site;
use crate::budget::{self, ClientDescriptors};
use crate::reason::Code;
use crate::remote::NotTls;

/// The time limit for a request's head, idle time included.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long the daemon waits, when it stops, for requests that were already sent.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// The pause after the process ran out of descriptors; without a pause the loop would spin.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(200);

/// The client of a connection.
#[derive(Clone)]
pub(super) struct Peer {
    /// The user: from the Unix socket's credentials, or from the kernel's table of connections.
    pub(super) uid: Option<u32>,
    /// The connection.
    pub(super) connection: Arc<Connection>,
    /// Whose share of slots counts.
    pub(super) owner: Owner,
    /// The TCP listener; `None`: the Unix socket.
    pub(super) site: Option<Arc<Site>>,
}

/// Answers requests until `stop` changes, then lets running requests end. The caller limits how long that takes.
pub async fn serve(mut listeners: Listeners, router: axum::Router, mut stop: watch::Receiver<bool>) {
    let ClientDescriptors { served, waiting, .. } = budget::clients();
    let (slots, waiting) = (Arc::new(Slots::new(served)), Slots::new(waiting));
    let connections = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .half_close(false);
    loop {
        let arrival = tokio::select! {
            accepted = listeners.accept() => match accepted {
                Ok(arrival) => arrival,
                Err(error) => {
                    rest_after(&error).await;
                    continue;
                }
            },
            _ = stop.changed() => break,
        };
        let Visitor { connection: client, uid, owner, site } = match arrival {
            Ok(visitor) => visitor,
            Err((client, refusal)) => {
                client.refuse(&error::raw(&refusal));
                continue;
            }
        };
        let slot = slots.try_take(owner);
        let queued = if slot.is_none() { waiting.try_take(owner) } else { None };
        if slot.is_none() && queued.is_none() {
            client.refuse(&error::raw(&no_slot(slots.share(owner))));
            continue;
        }
        let peer = Peer { uid, connection: Arc::new(client), owner, site: site.map(Arc::new) };
        let (slots, watcher, mut stop) = (Arc::clone(&slots), connections.watcher(), stop.clone());
        let (http, router) = (http.clone(), router.clone());
        tokio::spawn(async move {
            let slot = if slot.is_some() {
                slot
            } else {
                tokio::select! {
                    slot = slots.take(owner) => slot,
                    _ = stop.changed() => return,
                }
            };
            drop(queued);
            let io = ConnectionIo::new(Arc::clone(&peer.connection));
            let remote = peer.site.as_ref().and_then(|site| site.remote.clone());
            match remote {
                None => talk(io, peer, router, &http, watcher).await,
                Some(remote) => {
                    let handshake = tokio::select! {
                        handshake = tokio::time::timeout(HEAD_LIMIT, remote.accept(io)) => handshake,
                        _ = stop.changed() => return,
                    };
                    match handshake {
                        Ok(Ok(io)) => talk(io, peer, router, &http, watcher).await,
                        Ok(Err(NotTls { is_http: true })) => peer.connection.refuse(&error::raw(&no_tls())),
                        Ok(Err(NotTls { is_http: false })) | Err(_) => {}
                    }
                }
            }
            drop(slot);
        });
    }
    // hyper would close a connection as idle if its request is sent but not read yet. So these requests get a moment.
    let _ = tokio::time::timeout(LAST_REQUESTS, slots.all_free()).await;
    connections.shutdown().await;
}

/// Answers one client's requests.
async fn talk(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: axum::Router,
    http: &http1::Builder,
    watcher: Watcher,
) {
    let service = router.map_request(move |mut request: axum::http::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    let connection = http.serve_connection(TokioIo::new(Refusing::new(io)), TowerToHyperService::new(service));
    // An error means that the client hung up, read nothing, or did not send HTTP; it has been answered as far as possible.
    let _ = watcher.watch(connection).await;
}

fn no_tls() -> ApiError {
    ApiError::of(Code::BadHttp, "this address takes TLS: use https://")
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
