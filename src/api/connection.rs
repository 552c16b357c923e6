//! One client's connection. A client that reads nothing is disconnected after a time limit. A client's hang-up is
//! noticed whatever the client sent before.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::set_tcp_user_timeout;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep};

use crate::readable;

/// The time limit after which a client that reads nothing of its response is disconnected.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The same time limit for a stream of events, whose listener may be busy with other work.
const EVENTS_LIMIT: Duration = Duration::from_mins(5);

/// The number of reads of superfluous data before a connection is closed.
const READS_AT_THE_END: usize = 16;

/// The socket of a connection.
pub(super) enum Socket {
    /// Of the Unix socket.
    Unix(UnixStream),
    /// Of the TCP listener.
    Tcp(TcpStream),
}

impl Socket {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_read_ready(cx),
            Self::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_write_ready(cx),
            Self::Tcp(stream) => stream.poll_write_ready(cx),
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read(buffer),
            Self::Tcp(stream) => stream.try_read(buffer),
        }
    }

    fn try_write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write_vectored(buffers),
            Self::Tcp(stream) => stream.try_write_vectored(buffers),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// A connection, as its request handlers see it.
pub(super) struct Connection {
    socket: Socket,
    /// Seconds without progress after which the client is disconnected.
    limit: AtomicU64,
}

impl Connection {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, limit: AtomicU64::new(ANSWER_LIMIT.as_secs()) }
    }

    /// Sets the longer time limit of an event stream.
    pub(super) fn carries_events(&self) {
        self.limit.store(EVENTS_LIMIT.as_secs(), Ordering::Relaxed);
    }

    /// Watches for the client's hang-up. `None` if the watch cannot be made; then only hyper notices a hang-up.
    pub(super) fn watch(&self) -> Option<HangUp> {
        // The watch has a descriptor of its own, so that hyper does not miss a wake-up because of it.
        let own = rustix::io::fcntl_dupfd_cloexec(&self.socket, 0).ok()?;
        Some(HangUp(readable::register(own).ok()?))
    }

    /// Sends this response, and nothing more, without blocking.
    pub(super) fn refuse(&self, answer: &[u8]) {
        // The response is short and the socket's buffer is empty.
        let _ = rustix::net::send(&self.socket, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        read_away(&self.socket);
    }
}

impl Drop for Connection {
    /// Has the kernel drop soon what a client has not taken when its connection is closed. Over TCP it would keep that for
    /// some minutes, for as many closed connections as a client makes.
    fn drop(&mut self) {
        if let Socket::Tcp(stream) = &self.socket {
            let limit = u32::try_from(ANSWER_LIMIT.as_millis()).unwrap_or(u32::MAX);
            let _ = set_tcp_user_timeout(stream, limit);
        }
    }
}

/// Reads and drops unread data. Otherwise the client would see a connection error, possibly in place of the response.
/// Data that arrives later is not waited for.
fn read_away(socket: &Socket) {
    let mut unread = [0_u8; 16 * 1024];
    for _ in 0..READS_AT_THE_END {
        if !rustix::net::recv(socket, &mut unread, RecvFlags::DONTWAIT).is_ok_and(|(_, n)| n > 0) {
            return;
        }
    }
}

/// A watch for a client's hang-up. hyper notices a hang-up only when it has read everything, so not when the client
/// has sent more than its request.
pub(super) struct HangUp(AsyncFd<OwnedFd>);

impl HangUp {
    /// Waits until the client has hung up.
    async fn happened(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            if hung_up(self.0.get_ref()) {
                return;
            }
            ready.clear_ready();
        }
    }
}

/// Returns whether the client has hung up, or the connection is over.
pub(super) fn hung_up(socket: &impl AsFd) -> bool {
    let mut poll = [PollFd::new(socket, PollFlags::RDHUP)];
    let looked = rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_ok() && poll[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

/// The stream of a connection's bytes, with the time limit for a client that reads nothing.
pub(super) struct ConnectionIo {
    connection: Arc<Connection>,
    /// The timer, which runs only while the client reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl ConnectionIo {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, stalled: None }
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = &self.connection.socket;
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match socket.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.map(|n| buf.advance(n))),
            }
        }
    }
}

impl AsyncWrite for ConnectionIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Writes once; fails if the client has read nothing for too long.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if this.connection.socket.poll_write_ready(cx)?.is_pending() {
                let limit = Duration::from_secs(this.connection.limit.load(Ordering::Relaxed));
                let stalled = this.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
                ready!(stalled.as_mut().poll(cx));
                let text = format!("the client took nothing for {} s", limit.as_secs());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            match this.connection.socket.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    this.stalled = None;
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        rustix::net::shutdown(&self.connection.socket, Shutdown::Write)?;
        read_away(&self.connection.socket);
        Poll::Ready(Ok(()))
    }
}

/// Runs the future until it ends; `None` if the client hangs up first.
pub(super) async fn while_there<T>(hang_up: Option<&HangUp>, work: impl Future<Output = T>) -> Option<T> {
    let gone = async {
        match hang_up {
            Some(hang_up) => hang_up.happened().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = gone => None,
    }
}
