//! Turns at writing into the store's file, for what is derived from the truth and lies in the same file.
//!
//! SQLite has one lock for all who write, and who finds it taken sleeps for a millisecond or more. So nobody but the store's
//! own task takes it without having asked: the task gives a turn when no write of its own waits, and goes on when it is
//! given back. A turn is to be short: one small transaction, which waits for no disk.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::StoreError;

/// How long others are left waiting for a turn while there is always something to write.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Where turns are asked for. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns(mpsc::Sender<Ask>);

type Ask = oneshot::Sender<Turn>;

/// While it is held the store's own writer keeps still.
pub(crate) struct Turn {
    _given_back: oneshot::Sender<()>,
}

impl Turns {
    /// Waits for a turn: as long as the store cannot be written, too. An error: the store is closed.
    pub(super) async fn take(&self) -> Result<Turn, StoreError> {
        let (ask, turn) = oneshot::channel();
        self.0.send(ask).await.map_err(|_| StoreError::Closed)?;
        turn.await.map_err(|_| StoreError::Closed)
    }
}

/// The store's side.
pub(super) struct Given {
    asks: mpsc::Receiver<Ask>,
    /// Asked for, and since when.
    waits: Option<(Ask, Instant)>,
}

impl Given {
    pub(super) fn new() -> (Turns, Self) {
        let (ask, asks) = mpsc::channel(1);
        (Turns(ask), Self { asks, waits: None })
    }

    /// Resolves when a turn is asked for, one at a time; false: nobody is left who could.
    pub(super) async fn asked(&mut self) -> bool {
        if self.waits.is_some() {
            return std::future::pending().await;
        }
        self.waits = self.asks.recv().await.map(|ask| (ask, Instant::now()));
        self.waits.is_some()
    }

    /// Whether somebody waits.
    pub(super) fn is_asked(&self) -> bool {
        self.waits.is_some()
    }

    /// Whether somebody has waited for long.
    pub(super) fn is_overdue(&self) -> bool {
        self.waits.as_ref().is_some_and(|(_, since)| since.elapsed() >= LONGEST_WAIT)
    }

    /// Gives the turn; resolves when it is given back. False when nobody wanted it any more.
    pub(super) fn give(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let (ask, _) = self.waits.take()?;
        let (given_back, back) = oneshot::channel();
        ask.send(Turn { _given_back: given_back }).ok()?;
        // It is dropped, which closes the channel.
        Some(async move { drop(back.await) })
    }
}
