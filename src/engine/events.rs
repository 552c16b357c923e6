//! The stream of events: what happens to volumes, for everybody who listens.

use tokio::sync::broadcast;

use super::answers::{Event, SharedEvent};

/// Events a slow listener may lag behind before it misses some (and is told so).
const EVENTS: usize = 4096;

/// The stream.
pub(super) struct Events {
    /// `None` once the daemon is stopping.
    sender: Option<broadcast::Sender<SharedEvent>>,
    /// The number of the last.
    last: u64,
}

impl Events {
    /// A stream, and where to listen: that is weak, for the stream ends with the engine.
    pub(super) fn new() -> (Self, broadcast::WeakSender<SharedEvent>) {
        let (sender, _) = broadcast::channel(EVENTS);
        let listen = sender.downgrade();
        (Self { sender: Some(sender), last: 0 }, listen)
    }

    /// Tells everybody who listens; the event gets its number here.
    pub(super) fn tell(&mut self, event: impl FnOnce(u64) -> Event) {
        self.last += 1;
        let event = event(self.last);
        // Nobody listening is fine.
        if let Some(events) = &self.sender {
            let _ = events.send(event.into());
        }
    }

    /// No event is told any more.
    pub(super) fn end(&mut self) {
        self.sender = None;
    }
}
