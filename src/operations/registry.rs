//! The operations of which something is still to come, in memory: who waits for whom, and who follows which.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::identity::{OperationId, VolumeId};
use crate::operation::{IdempotencyKey, Operation, Placeholder, Request};

/// All of them.
pub(super) struct Registry {
    last_number: u64,
    entries: HashMap<OperationId, Arc<Entry>>,
    /// Those of each volume, in the order in which they came: one at a time.
    queues: HashMap<VolumeId, BTreeMap<u64, OperationId>>,
    placeholders: BTreeMap<VolumeId, Placeholder>,
}

/// One of them.
pub(super) struct Entry {
    current: watch::Sender<Arc<Operation>>,
    called_off: AtomicBool,
    task: Mutex<Option<AbortHandle>>,
    /// Something has happened that its task may wait for.
    pub(super) wake: Notify,
}

impl Entry {
    /// As it is now, and on record.
    pub(super) fn operation(&self) -> Arc<Operation> {
        Arc::clone(&self.current.borrow())
    }

    /// As it is from now on.
    pub(super) fn publish(&self, operation: Operation) {
        self.current.send_replace(Arc::new(operation));
    }

    pub(super) fn follow(&self) -> watch::Receiver<Arc<Operation>> {
        self.current.subscribe()
    }

    /// Its caller wants it no more.
    pub(super) fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub(super) fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }
}

impl Registry {
    pub(super) fn new(last_number: u64, placeholders: Vec<Placeholder>) -> Self {
        let placeholders = placeholders.into_iter().map(|placeholder| (placeholder.volume, placeholder)).collect();
        Self { last_number, entries: HashMap::new(), queues: HashMap::new(), placeholders }
    }

    /// A number that no operation has had.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn insert(&mut self, operation: Arc<Operation>) -> Arc<Entry> {
        let (id, number, volume) = (operation.id, operation.number, operation.volume);
        let current = watch::Sender::new(operation);
        let entry = Arc::new(Entry {
            current,
            called_off: AtomicBool::new(false),
            task: Mutex::default(),
            wake: Notify::new(),
        });
        self.entries.insert(id, Arc::clone(&entry));
        if let Some(volume) = volume {
            self.queues.entry(volume).or_default().insert(number, id);
        }
        entry
    }

    /// Nothing of it is still to come: those of its volume that wait go on.
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

    /// Its volume has become known.
    pub(super) fn volume_known(&mut self, operation: &Operation) {
        if let Some(volume) = operation.volume {
            self.queues.entry(volume).or_default().insert(operation.number, operation.id);
        }
    }

    /// The operation of the same volume that this one waits for.
    pub(super) fn before(&self, operation: &Operation) -> Option<OperationId> {
        let queue = self.queues.get(&operation.volume?)?;
        queue.first_key_value().filter(|(number, _)| **number < operation.number).map(|(_, id)| *id)
    }

    /// Its task, to be ended with the rest.
    pub(super) fn carried_out_by(&mut self, id: OperationId, task: AbortHandle) {
        // Perhaps it has ended already.
        if let Some(entry) = self.entries.get(&id) {
            *entry.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        }
    }

    /// All tasks end where they are.
    pub(super) fn stop(&mut self) {
        for (_, entry) in self.entries.drain() {
            if let Some(task) = entry.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
                task.abort();
            }
        }
    }

    pub(super) fn entry(&self, id: OperationId) -> Option<Arc<Entry>> {
        self.entries.get(&id).map(Arc::clone)
    }

    /// The open one that asks for the same.
    pub(super) fn same(&self, request: &Request) -> Option<Arc<Operation>> {
        let same = |operation: &Arc<Operation>| operation.is_asked_again_by(request);
        match request.volume() {
            // Of those that wait one after the other the last: what was asked for in between was meant.
            Some(volume) => {
                let last = self.queues.get(&volume)?.last_key_value()?.1;
                self.entries.get(last).map(|entry| entry.operation()).filter(same)
            }
            None => self.entries.values().map(|entry| entry.operation()).find(same),
        }
    }

    /// The open one to which this user gave this name.
    pub(super) fn keyed(&self, uid: Option<u32>, key: &IdempotencyKey) -> Option<Arc<Operation>> {
        let all = self.entries.values().map(|entry| entry.operation());
        all.into_iter().find(|operation| operation.uid == uid && operation.key.as_ref() == Some(key))
    }

    /// Those that have not ended.
    pub(super) fn all_open(&self) -> Vec<Arc<Operation>> {
        let all = self.entries.values().map(|entry| entry.operation());
        all.filter(|operation| !operation.state.is_ended()).collect()
    }

    /// How many are open, and how many of this user's.
    pub(super) fn open(&self, uid: Option<u32>) -> (usize, usize) {
        let own = self.entries.values().filter(|entry| entry.current.borrow().uid == uid).count();
        (self.entries.len(), own)
    }

    pub(super) fn placeholders(&self) -> Vec<Placeholder> {
        self.placeholders.values().cloned().collect()
    }

    pub(super) fn placeholder(&self, volume: VolumeId) -> Option<&Placeholder> {
        self.placeholders.get(&volume)
    }

    /// Where a volume is from now on; `None`: with no other VM.
    pub(super) fn place(&mut self, volume: VolumeId, placeholder: Option<Placeholder>) {
        match placeholder {
            Some(placeholder) => drop(self.placeholders.insert(volume, placeholder)),
            None => drop(self.placeholders.remove(&volume)),
        }
    }
}
