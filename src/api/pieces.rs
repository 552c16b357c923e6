//! The body of a long answer: given piece by piece, and after each piece everything else that waits gets its turn. In
//! one piece, a client that reads fast would keep the runtime's thread busy with this answer alone for milliseconds.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// The size limit of a piece, in bytes: the kernel takes one in some microseconds.
const PIECE: usize = 64 * 1024;

/// A body that keeps something until the last piece is sent, or the client is gone.
pub(super) struct Pieces<K> {
    rest: Bytes,
    /// The others have had their turn since the last piece.
    waited: bool,
    kept: Arc<K>,
}

/// A piece that keeps it too: hyper takes some pieces before it has sent them, and drops each when that is done.
struct Piece<K> {
    bytes: Bytes,
    _kept: Arc<K>,
}

impl<K> AsRef<[u8]> for Piece<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<K> Pieces<K> {
    /// Returns a body of these bytes that keeps `kept`.
    pub(super) fn new(bytes: Bytes, kept: K) -> Self {
        Self { rest: bytes, waited: true, kept: Arc::new(kept) }
    }
}

impl<K: Send + Sync + 'static> Body for Pieces<K> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waited = false;
        let size = self.rest.len().min(PIECE);
        let piece = Piece { bytes: self.rest.split_to(size), _kept: Arc::clone(&self.kept) };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Returns the pieces, and how often the others had their turn meanwhile.
    fn read(body: &mut Pieces<Arc<()>>) -> (Vec<Bytes>, u32) {
        let (mut pieces, mut turns) = (Vec::new(), 0);
        loop {
            match Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(frame)) => pieces.push(frame.unwrap().into_data().unwrap()),
                Poll::Ready(None) => return (pieces, turns),
                Poll::Pending => turns += 1,
            }
        }
    }

    #[test]
    fn a_long_body_lets_the_others_in_after_each_piece_and_a_short_one_goes_at_once() {
        let long: Vec<u8> = (0..=255).cycle().take(3 * PIECE + 1).collect();
        for (bytes, expected) in [(long, 4_usize), (vec![7; PIECE], 1), (Vec::new(), 0)] {
            let mut body = Pieces::new(bytes.clone().into(), Arc::default());
            assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64), "the client is told the length");
            let (pieces, turns) = read(&mut body);
            assert_eq!((pieces.len(), turns), (expected, expected.saturating_sub(1).try_into().unwrap()));
            assert_eq!(pieces.concat(), bytes);
            assert!(body.is_end_stream());
        }
    }

    #[test]
    fn what_a_body_keeps_is_kept_until_the_last_piece_is_sent() {
        let kept = Arc::new(());
        let mut body = Pieces::new(vec![7; PIECE + 1].into(), Arc::clone(&kept));
        let (mut pieces, _) = read(&mut body);
        drop(body);
        assert_eq!((pieces.len(), Arc::strong_count(&kept)), (2, 2), "not sent yet");
        pieces.remove(0);
        assert_eq!(Arc::strong_count(&kept), 2);
        pieces.remove(0);
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
