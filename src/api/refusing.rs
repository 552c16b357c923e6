//! Replaces the refusals of hyper's HTTP parser, which have no body, by errors like every other.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error;

/// The stream that hyper reads from and writes to.
pub(super) struct Refusing<S> {
    stream: S,
    /// attachd's error in place of the parser's response, and how many of its bytes are written.
    refusal: Option<(Vec<u8>, usize)>,
}

impl<S: AsyncWrite + Unpin> Refusing<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, refusal: None }
    }

    /// Writes attachd's error, and then reports to hyper that the parser's response was written.
    fn poll_refusal(&mut self, cx: &mut Context<'_>, offered: usize) -> Poll<io::Result<usize>> {
        while let Some((text, written)) = &mut self.refusal
            && *written < text.len()
        {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &text[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *written += more,
            }
        }
        self.refusal = None;
        Poll::Ready(Ok(offered))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Refusing<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Refusing<S> {
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
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
