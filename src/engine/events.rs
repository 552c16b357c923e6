//! The stream of events of volumes, for all subscribers.

use tokio::sync::broadcast;

use super::answers::{Event, SharedEvent};

/// How many events a slow subscriber may be behind before it misses some, and is notified of that.
const EVENTS: usize = 4096;

/// The stream.
pub(super) struct Events {
    /// `None` once the daemon is stopping.
    sender: Option<broadcast::Sender<SharedEvent>>,
    /// The number of the last event.
    last: u64,
}

impl Events {
    /// Returns a stream, and a weak sender for subscribing, because the stream ends with the engine.
    pub(super) fn new() -> (Self, broadcast::WeakSender<SharedEvent>) {
        let (sender, _) = broadcast::channel(EVENTS);
        let listen = sender.downgrade();
        (Self { sender: Some(sender), last: 0 }, listen)
    }

    /// Sends an event to all subscribers. The event gets its number here.
    pub(super) fn tell(&mut self, event: impl FnOnce(u64) -> Event) {
        self.last += 1;
        let event = event(self.last);
        // It is fine if nobody subscribes.
        if let Some(events) = &self.sender {
            let _ = events.send(event.into());
        }
    }

    /// Ends the stream. No event is sent any more.
    pub(super) fn end(&mut self) {
        self.sender = None;
    }
}
