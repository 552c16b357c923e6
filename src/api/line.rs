//! One client's connection: no answer is offered for ever to a client that takes nothing, a client that goes is noticed
//! whatever it has sent before, and what the parser of HTTP refuses has a body as every other refusal.

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

/// A client that takes nothing of its answer for so long is cut.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The same for the stream of events, whose listener has something else to do now and then.
const EVENTS_LIMIT: Duration = Duration::from_mins(5);

/// How often something is read of what a client has sent too much.
const READS_AT_THE_END: usize = 16;

/// A connection, as its requests know it.
pub(super) struct Line {
    stream: UnixStream,
    /// Seconds without any progress after which it is cut.
    limit: AtomicU64,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, limit: AtomicU64::new(ANSWER_LIMIT.as_secs()) }
    }

    /// The user on the other side.
    pub(super) fn uid(&self) -> Option<u32> {
        self.stream.peer_cred().ok().map(|credentials| credentials.uid())
    }

    /// From now on it carries a stream of events.
    pub(super) fn carries_events(&self) {
        self.limit.store(EVENTS_LIMIT.as_secs(), Ordering::Relaxed);
    }

    /// Watches for the client's hanging up. `None` where that cannot be watched: hyper alone does then.
    pub(super) fn watch(&self) -> Option<HangUp> {
        // A descriptor of its own: what wakes its waiter must not make hyper miss anything.
        let own = rustix::io::fcntl_dupfd_cloexec(&self.stream, 0).ok()?;
        Some(HangUp(readable::register(own).ok()?))
    }

    /// Says this and hangs up, without waiting for anything.
    pub(super) fn refuse(self, answer: &[u8]) {
        // The answer is short and the socket's buffer empty.
        let _ = rustix::net::send(&self.stream, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
        read_away(&self.stream);
    }
}

/// What is left unread at the end would reach the client as an error, and it could take that for the answer. It may go on
/// sending: what comes later is not waited for.
fn read_away(stream: &UnixStream) {
    let mut unread = [0_u8; 16 * 1024];
    for _ in 0..READS_AT_THE_END {
        if !rustix::net::recv(stream, &mut unread, RecvFlags::DONTWAIT).is_ok_and(|(_, n)| n > 0) {
            return;
        }
    }
}

/// A client's hanging up. hyper notices it by itself only while nothing is left to read: not when the client has sent
/// more than its request.
pub(super) struct HangUp(AsyncFd<OwnedFd>);

impl HangUp {
    /// Returns when it has happened.
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

/// What hyper reads from and writes to.
pub(super) struct Wire {
    line: Arc<Line>,
    /// Runs only while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// The refusal that is written in place of the parser's, and how much of it is.
    refusal: Option<(Vec<u8>, usize)>,
}

impl Wire {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line, stalled: None, refusal: None }
    }

    /// Writes once; fails when the client takes nothing for too long.
    fn poll_once(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.line.stream.poll_write_ready(cx)?.is_pending() {
                let limit = Duration::from_secs(self.line.limit.load(Ordering::Relaxed));
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
                ready!(stalled.as_mut().poll(cx));
                let text = format!("the client took nothing for {} s", limit.as_secs());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            match write(&self.line.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.stalled = None;
                    return Poll::Ready(done);
                }
            }
        }
    }

    /// Writes our refusal in the parser's place, and then says that the parser's was written.
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

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.line.stream;
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.map(|n| buf.advance(n))),
            }
        }
    }
}

impl AsyncWrite for Wire {
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
        rustix::net::shutdown(&self.line.stream, Shutdown::Write)?;
        read_away(&self.line.stream);
        Poll::Ready(Ok(()))
    }
}

/// The work, if its client stays until it is done.
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
