//! Turns for writing into the store's file, for tables that are derived from the records and are in the same file.
//!
//! SQLite has one lock for all writers, and a writer that finds the lock taken sleeps for a millisecond or more. So
//! nobody except the store's own task takes the lock without a turn. The task gives a turn when no write of its own
//! waits, and continues when the turn is given back. A turn must be short: one small transaction, which waits for no
//! disk.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::StoreError;

/// How long others wait for a turn while there is always something to write.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// The sender of requests for turns. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns(mpsc::Sender<Ask>);

type Ask = oneshot::Sender<Turn>;

/// The store's own writer pauses while this value exists.
pub(crate) struct Turn {
    _given_back: oneshot::Sender<()>,
}

impl Turns {
    /// Waits for a turn, also as long as the store cannot be written. Fails when the store is closed.
    pub(super) async fn take(&self) -> Result<Turn, StoreError> {
        let (ask, turn) = oneshot::channel();
        self.0.send(ask).await.map_err(|_| StoreError::Closed)?;
        turn.await.map_err(|_| StoreError::Closed)
    }
}

/// The store's end of the requests.
pub(super) struct Given {
    asks: mpsc::Receiver<Ask>,
    /// The request that waits, and since when.
    waits: Option<(Ask, Instant)>,
}

impl Given {
    pub(super) fn new() -> (Turns, Self) {
        let (ask, asks) = mpsc::channel(1);
        (Turns(ask), Self { asks, waits: None })
    }

    /// Resolves when a turn is asked for, one at a time. Returns false when nobody is left who could ask.
    pub(super) async fn asked(&mut self) -> bool {
        if self.waits.is_some() {
            return std::future::pending().await;
        }
        self.waits = self.asks.recv().await.map(|ask| (ask, Instant::now()));
        self.waits.is_some()
    }

    /// Returns whether a request waits.
    pub(super) fn is_asked(&self) -> bool {
        self.waits.is_some()
    }

    /// Returns whether a request has waited for [`LONGEST_WAIT`].
    pub(super) fn is_overdue(&self) -> bool {
        self.waits.as_ref().is_some_and(|(_, since)| since.elapsed() >= LONGEST_WAIT)
    }

    /// Gives the turn, and returns a future that resolves when the turn is given back. `None` when nobody waits for
    /// it any more.
    pub(super) fn give(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let (ask, _) = self.waits.take()?;
        let (given_back, back) = oneshot::channel();
        ask.send(Turn { _given_back: given_back }).ok()?;
        // Dropping the turn closes the channel.
        Some(async move { drop(back.await) })
    }
}
