//! What all tasks of operations share: the tools, the open operations, and who follows them.

use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::sync::{Mutex, Semaphore, broadcast};

use super::registry::{Entry, Registry};
use super::tools::{Host, OwnVm, Records};
use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::operation::{Operation, Placeholder};

/// The number of calls to CloudStack that run at one time. More would only wait there.
const CALLS_AT_ONCE: usize = 16;

/// How many changes a subscriber may be behind.
const NEWS: usize = 256;

/// What operations work with.
pub struct Tools {
    /// CloudStack; `None`: attachd works without it.
    pub cloud: Option<Arc<dyn Cloud>>,
    /// This host's volumes.
    pub host: Arc<dyn Host>,
    /// The store.
    pub records: Arc<dyn Records>,
    /// Finds out which VM this host is.
    pub own_vm: Arc<dyn OwnVm>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

pub(super) struct Core {
    pub(super) tools: Tools,
    registry: std::sync::Mutex<Registry>,
    /// Requests are accepted one after the other, so that two equal ones become one operation.
    pub(super) accepting: Arc<Mutex<()>>,
    pub(super) news: broadcast::Sender<Arc<Operation>>,
    /// The permits for calls to CloudStack.
    pub(super) calls: Semaphore,
}

impl Core {
    pub(super) fn new(tools: Tools, last_number: u64, placeholders: Vec<Placeholder>) -> Arc<Self> {
        let (news, _) = broadcast::channel(NEWS);
        let registry = std::sync::Mutex::new(Registry::new(last_number, placeholders));
        Arc::new(Self { tools, registry, accepting: Arc::default(), news, calls: Semaphore::new(CALLS_AT_ONCE) })
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the present state of an operation to all subscribers.
    pub(super) fn tell(&self, entry: &Entry) {
        // An error means that there are none.
        let _ = self.news.send(entry.operation());
    }
}
