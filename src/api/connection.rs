//! One client's connection. A client that reads nothing is disconnected after a time limit. A client's hang-up is
//! noticed whatever the client sent before. A request that hyper's HTTP parser refuses gets an error with a body,
//! like every other error.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

use super::error;
use crate::readable;

/// The time limit after which a client that reads nothing of its response is disconnected.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The same time limit for a stream of events, whose listener may be busy with other work.
const EVENTS_LIMIT: Duration = Duration::from_mins(5);

/// The number of reads of superfluous data before a connection is closed.
const READS_AT_THE_END: usize = 16;

/// A connection, as its request handlers see it.
pub(super) struct Connection {
    stream: UnixStream,
    /// Seconds without progress after which the client is disconnected.
    limit: AtomicU64,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, limit: AtomicU64::new(ANSWER_LIMIT.as_secs()) }
    }

    /// Returns the user of the client process.
    pub(super) fn uid(&self) -> Option<u32> {
        self.stream.peer_cred().ok().map(|credentials| credentials.uid())
    }

    /// Sets the longer time limit of an event stream.
    pub(super) fn carries_events(&self) {
        self.limit.store(EVENTS_LIMIT.as_secs(), Ordering::Relaxed);
    }

    /// Watches for the client's hang-up. `None` if the watch cannot be made; then only hyper notices a hang-up.
    pub(super) fn watch(&self) -> Option<HangUp> {
        // The watch has a descriptor of its own, so that hyper does not miss a wake-up because of it.
        let own = rustix::io::fcntl_dupfd_cloexec(&self.stream, 0).ok()?;
        Some(HangUp(readable::register(own).ok()?))
    }

    /// Sends this response and closes the connection, without blocking.
    pub(super) fn refuse(self, answer: &[u8]) {
        // The response is short and the socket's buffer is empty.
        let _ = rustix::net::send(&self.stream, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
        read_away(&self.stream);
    }
}

/// Reads and drops unread data. Otherwise the client would see a connection error, possibly in place of the response.
/// Data that arrives later is not waited for.
fn read_away(stream: &UnixStream) {
    let mut unread = [0_u8; 16 * 1024];
    for _ in 0..READS_AT_THE_END {
        if !rustix::net::recv(stream, &mut unread, RecvFlags::DONTWAIT).is_ok_and(|(_, n)| n > 0) {
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

fn hung_up(socket: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(socket, PollFlags::RDHUP)];
    let looked = rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    looked.is_ok() && poll[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

/// The stream that hyper reads from and writes to.
pub(super) struct ConnectionIo {
    connection: Arc<Connection>,
    /// The timer, which runs only while the client reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// attachd's error in place of the parser's response, and how many of its bytes are written.
    refusal: Option<(Vec<u8>, usize)>,
}

impl ConnectionIo {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, stalled: None, refusal: None }
    }

    /// Writes once; fails if the client has read nothing for too long.
    fn poll_once(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.connection.stream.poll_write_ready(cx)?.is_pending() {
                let limit = Duration::from_secs(self.connection.limit.load(Ordering::Relaxed));
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
                ready!(stalled.as_mut().poll(cx));
                let text = format!("the client took nothing for {} s", limit.as_secs());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            match write(&self.connection.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.stalled = None;
                    return Poll::Ready(done);
                }
            }
        }
    }

    /// Writes attachd's error, and then reports to hyper that the parser's response was written.
    fn poll_refusal(&mut self, cx: &mut Context<'_>, offered: usize) -> Poll<io::Result<usize>> {
        while let Some((text, written)) = self.refusal.take() {
            if written == text.len() {
                return Poll::Ready(Ok(offered));
            }
            let step = self.poll_once(cx, |stream| stream.try_write(&text[written..]));
            let more = if let Poll::Ready(Ok(n)) = step { n } else { 0 };
            self.refusal = Some((text, written + more));
            ready!(step)?;
        }
        Poll::Ready(Ok(offered))
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.connection.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buf.initialize_unfilled()) {
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

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refusal.is_none()
            && let Some(refusal) = bufs.first().and_then(|head| error::of_the_parser(head))
        {
            this.refusal = Some((refusal, 0));
        }
        if this.refusal.is_some() {
            return this.poll_refusal(cx, bufs.iter().map(|buf| buf.len()).sum());
        }
        this.poll_once(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        rustix::net::shutdown(&self.connection.stream, Shutdown::Write)?;
        read_away(&self.connection.stream);
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
