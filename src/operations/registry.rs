//! The operations that are not settled, in memory: which operation waits for which, and who follows them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::identity::{OperationId, VolumeId};
use crate::operation::{IdempotencyKey, Operation, Placeholder, Request};

/// All operations that are not settled.
pub(super) struct Registry {
    last_number: u64,
    entries: HashMap<OperationId, Arc<Entry>>,
    /// The operations of each volume, in the order in which they came. Only the first is carried out.
    queues: HashMap<VolumeId, BTreeMap<u64, OperationId>>,
    placeholders: BTreeMap<VolumeId, Placeholder>,
}

/// One operation that is not settled.
pub(super) struct Entry {
    current: watch::Sender<Arc<Operation>>,
    called_off: AtomicBool,
    /// When CloudStack said that it has attached the volume to this host, as long as it says so.
    attached: Mutex<Option<Timestamp>>,
    task: Mutex<Option<AbortHandle>>,
    /// Wakes the operation's task.
    pub(super) wake: Notify,
}

impl Entry {
    /// Returns the operation as it is on record.
    pub(super) fn operation(&self) -> Arc<Operation> {
        Arc::clone(&self.current.borrow())
    }

    /// Sets the operation as it is on record from now on.
    pub(super) fn publish(&self, operation: Operation) {
        self.current.send_replace(Arc::new(operation));
    }

    /// Follows the operation's changes.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Operation>> {
        self.current.subscribe()
    }

    /// Asks the operation's task to cancel it.
    pub(super) fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }

    /// Notes that CloudStack says now that it has attached the volume to this host, or `None`: that it does not. Returns whether
    /// that has changed.
    pub(super) fn attached(&self, now: Option<Timestamp>) -> bool {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = attached.is_some() != now.is_some();
        if changed {
            *attached = now;
        }
        changed
    }

    /// Since when CloudStack says so.
    pub(super) fn attached_since(&self) -> Option<Timestamp> {
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    pub(super) fn new(last_number: u64, placeholders: Vec<Placeholder>) -> Self {
        let placeholders = placeholders.into_iter().map(|placeholder| (placeholder.volume, placeholder)).collect();
        Self { last_number, entries: HashMap::new(), queues: HashMap::new(), placeholders }
    }

    /// Returns a number that no operation has had.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Adds an operation.
    pub(super) fn insert(&mut self, operation: Arc<Operation>) -> Arc<Entry> {
        let (id, number, volume) = (operation.id, operation.number, operation.volume);
        let current = watch::Sender::new(operation);
        let entry = Arc::new(Entry {
            current,
            called_off: AtomicBool::new(false),
            attached: Mutex::default(),
            task: Mutex::default(),
            wake: Notify::new(),
        });
        self.entries.insert(id, Arc::clone(&entry));
        if let Some(volume) = volume {
            self.queues.entry(volume).or_default().insert(number, id);
        }
        entry
    }

    /// Removes an operation that is settled. The operations of its volume that wait are woken.
    pub(super) fn remove(&mut self, operation: &Operation) {
        self.entries.remove(&operation.id);
        let Some(volume) = operation.volume else { return };
        if let Some(queue) = self.queues.get_mut(&volume) {
            queue.remove(&operation.number);
            for waiting in queue.values().filter_map(|id| self.entries.get(id)) {
                waiting.wake.notify_one();
            }
            if queue.is_empty() {
                self.queues.remove(&volume);
            }
        }
    }

    /// Returns whether no operation of the volume is open.
    pub(super) fn is_free(&self, volume: VolumeId) -> bool {
        !self.queues.contains_key(&volume)
    }

    /// Adds an operation to the queue of its volume, which has become known.
    pub(super) fn volume_known(&mut self, operation: &Operation) {
        if let Some(volume) = operation.volume {
            self.queues.entry(volume).or_default().insert(operation.number, operation.id);
        }
    }

    /// Returns the operation of the same volume that goes first.
    pub(super) fn before(&self, operation: &Operation) -> Option<OperationId> {
        let queue = self.queues.get(&operation.volume?)?;
        queue.first_key_value().filter(|(number, _)| **number < operation.number).map(|(_, id)| *id)
    }

    /// Sets the task of an operation, which [`Self::stop`] ends.
    pub(super) fn carried_out_by(&mut self, id: OperationId, task: AbortHandle) {
        // The task may have ended already.
        if let Some(entry) = self.entries.get(&id) {
            *entry.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        }
    }

    /// Ends all tasks where they are.
    pub(super) fn stop(&mut self) {
        for (_, entry) in self.entries.drain() {
            if let Some(task) = entry.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
                task.abort();
            }
        }
    }

    /// Returns the entry of an operation that is not settled.
    pub(super) fn entry(&self, id: OperationId) -> Option<Arc<Entry>> {
        self.entries.get(&id).map(Arc::clone)
    }

    /// Returns the open operation that has the same request.
    pub(super) fn same(&self, request: &Request) -> Option<Arc<Operation>> {
        let same = |operation: &Arc<Operation>| operation.is_asked_again_by(request);
        match request.volume() {
            // Only the last of the volume's queue counts: after attach and detach, another attach is a new wish.
            Some(volume) => {
                let last = self.queues.get(&volume)?.last_key_value()?.1;
                self.entries.get(last).map(|entry| entry.operation()).filter(same)
            }
            None => self.entries.values().map(|entry| entry.operation()).find(same),
        }
    }

    /// Returns the operation to which this user gave this idempotency key.
    pub(super) fn keyed(&self, uid: Option<u32>, key: &IdempotencyKey) -> Option<Arc<Operation>> {
        let all = self.entries.values().map(|entry| entry.operation());
        all.into_iter().find(|operation| operation.uid == uid && operation.key.as_ref() == Some(key))
    }

    /// Returns all operations that have not ended.
    pub(super) fn all_open(&self) -> Vec<Arc<Operation>> {
        let all = self.entries.values().map(|entry| entry.operation());
        all.filter(|operation| !operation.state.is_ended()).collect()
    }

    /// Returns how many operations are not settled, and how many of these are this user's.
    pub(super) fn open(&self, uid: Option<u32>) -> (usize, usize) {
        let own = self.entries.values().filter(|entry| entry.current.borrow().uid == uid).count();
        (self.entries.len(), own)
    }

    /// Returns every placeholder.
    pub(super) fn placeholders(&self) -> Vec<Placeholder> {
        self.placeholders.values().cloned().collect()
    }

    /// Returns the placeholder of a volume.
    pub(super) fn placeholder(&self, volume: VolumeId) -> Option<&Placeholder> {
        self.placeholders.get(&volume)
    }

    /// Sets or removes the placeholder of a volume.
    pub(super) fn place(&mut self, volume: VolumeId, placeholder: Option<Placeholder>) {
        match placeholder {
            Some(placeholder) => drop(self.placeholders.insert(volume, placeholder)),
            None => drop(self.placeholders.remove(&volume)),
        }
    }
}
