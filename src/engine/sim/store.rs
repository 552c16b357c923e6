//! The store of the simulation. Committed changes survive a kill; all others are lost.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::{oneshot, watch};

use crate::identity::VolumeId;
use crate::store::{Change, News, StoreError};
use crate::volume::{Record, State};

type Answer = oneshot::Sender<Result<(), StoreError>>;

pub(super) struct Durable {
    /// The recorded volumes.
    pub(super) records: BTreeMap<VolumeId, Record>,
    pub(super) queue: VecDeque<(Vec<Change>, Answer)>,
    pub(super) posted: BTreeMap<VolumeId, Vec<News>>,
    /// Why writing fails.
    pub(super) failure: Option<StoreError>,
    pub(super) condition: watch::Sender<Option<StoreError>>,
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            queue: VecDeque::new(),
            posted: BTreeMap::new(),
            failure: None,
            condition: watch::channel(None).0,
        }
    }
}

impl Durable {
    pub(super) fn begin(
        &mut self,
        changes: Vec<Change>,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        if let Some(silent @ StoreError::Silent { .. }) = &self.failure {
            return Err(silent.clone());
        }
        let (answer, result) = oneshot::channel();
        self.queue.push_back((changes, answer));
        Ok(result)
    }

    pub(super) fn set_failure(&mut self, failure: Option<StoreError>) {
        self.failure.clone_from(&failure);
        self.condition.send_if_modified(|before| {
            let other = *before != failure;
            *before = failure;
            other
        });
    }

    /// Takes these writes out of the queue, with the earlier posted news of their volumes. With `all`, takes the news
    /// of all volumes.
    pub(super) fn take(&mut self, writes: usize, all: bool) -> (Vec<Change>, Vec<(Vec<Change>, Answer)>) {
        let writes: Vec<_> = self.queue.drain(..writes.min(self.queue.len())).collect();
        let concerned =
            |id: &VolumeId| all || writes.iter().flat_map(|(changes, _)| changes).any(|change| about(change) == *id);
        let taken: Vec<VolumeId> = self.posted.keys().copied().filter(concerned).collect();
        let mut told = Vec::new();
        for id in taken {
            told.extend(self.posted.remove(&id).into_iter().flatten().map(|news| Change::News(id, news)));
        }
        (told, writes)
    }

    /// Puts back what was taken out and not written.
    pub(super) fn put_back(&mut self, told: Vec<Change>) {
        let since = std::mem::take(&mut self.posted);
        for change in told {
            if let Change::News(id, news) = change {
                self.posted.entry(id).or_default().push(news);
            }
        }
        for (id, news) in since {
            self.posted.entry(id).or_default().extend(news);
        }
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Intend(intent) => {
                let record = || Record {
                    state: State::waiting_for(intent.origin),
                    mapping: None,
                    reason: None,
                    since: Some(intent.created_at),
                    sealed: None,
                    intent: intent.clone(),
                };
                self.records.insert(intent.volume, record());
            }
            Change::Withdraw(id) => drop(self.records.remove(&id)),
            Change::Seal(id, by) => {
                if let Some(record) = self.records.get_mut(&id) {
                    record.sealed = by;
                }
            }
            Change::Map(id, evidence) => {
                if let Some(record) = self.records.get_mut(&id) {
                    record.mapping = Some(evidence);
                }
            }
            Change::News(id, News::Stand(state, reason, since)) => {
                if let Some(record) = self.records.get_mut(&id) {
                    (record.state, record.reason, record.since) = (state, reason, Some(since));
                }
            }
            // The engine writes none of the others.
            Change::News(..)
            | Change::Operation(_)
            | Change::Place(_)
            | Change::Displace(_)
            | Change::Track(_)
            | Change::Retrack(..)
            | Change::Untrack(_) => {}
        }
    }

    /// Drops what the killed process had not written.
    pub(super) fn kill(&mut self) {
        self.queue.clear();
        self.posted.clear();
        self.condition = watch::channel(self.failure.clone()).0;
    }
}

/// Returns the volume that a change is about.
pub(super) fn about(change: &Change) -> VolumeId {
    match change {
        Change::Intend(intent) => intent.volume,
        Change::Withdraw(id) | Change::Seal(id, _) | Change::Map(id, _) | Change::News(id, _) => *id,
        other => panic!("the engine writes {other:?}"),
    }
}
