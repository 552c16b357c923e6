//! Puts an operation on record, and tells of it.

use tokio::time::sleep;

use super::super::facts::{End, Placed, Seen};
use super::core::Drive;
use super::known::{HERE_AGAIN, doubled};
use crate::engine::Stopping;
use crate::identity::VolumeId;
use crate::operation::{Operation, OperationState, Placeholder, Progress};
use crate::reason::{Severity, StoryStep};
use crate::store::{Change, News, StoreError};
use crate::volume::Entry as Told;

/// A new state of an operation, and what goes with it.
pub(super) struct Record {
    pub(super) operation: Operation,
    /// What is written, in one transaction.
    pub(super) changes: Vec<Change>,
    /// The volume's place from then on, if that changes.
    placeholder: Option<(VolumeId, Option<Placeholder>)>,
    told: Option<(StoryStep, String)>,
}

impl Drive {
    /// Puts the next step on record.
    pub(super) async fn go_on(&mut self, progress: Progress, volume: Option<VolumeId>) -> Result<(), Stopping> {
        let record = self.step_record(progress, volume);
        self.write(&record).await?;
        self.take_step(record);
        Ok(())
    }

    /// Returns the record of the next step.
    pub(super) fn step_record(&self, progress: Progress, volume: Option<VolumeId>) -> Record {
        let before = self.operation.clone();
        let ended = before.state.is_ended();
        let state = if ended { before.state } else { OperationState::Executing };
        let flush = progress.flush.clone().or_else(|| self.known.flush.clone());
        let vm = before.vm.or(progress.vm);
        let progress = Progress { unsettled: ended, flush, ..progress };
        self.record(Operation { state, progress, vm, volume: volume.or(before.volume), ..before }, None)
    }

    /// The step of this record is the present one from now on.
    pub(super) fn take_step(&mut self, record: Record) {
        let (before, now) = (&self.operation.progress.step, &record.operation.progress.step);
        if (before.name(), before.job()) != (now.name(), now.job()) {
            // A question of the step before may be about its job.
            self.call = None;
            let now = self.now();
            self.known.begin_step(now);
        }
        self.known.nothing_done();
        self.publish(record);
    }

    /// Puts the end on record.
    pub(super) async fn end(&mut self, end: End) -> Result<(), Stopping> {
        let End { state, fault, response, placed, unsettled } = end;
        let volume = response.as_ref().and_then(|response| response.volume_id).or(self.operation.volume);
        let before = self.operation.clone();
        let progress = Progress { unsettled, ..before.progress.clone() };
        let now = self.core.tools.clock.wall();
        let operation = Operation { state, progress, fault, response, volume, completed_at: Some(now), ..before };
        let record = self.record(operation, volume.map(|volume| (volume, placed)));
        self.write(&record).await?;
        self.publish(record);
        Ok(())
    }

    /// Nothing more will come of the operation: the next one of the volume may begin.
    pub(super) async fn settled(mut self) -> Result<(), Stopping> {
        if self.operation.progress.unsettled {
            let before = self.operation.clone();
            let progress = Progress { unsettled: false, ..before.progress.clone() };
            let placed = match (&self.known.volume, self.operation.volume) {
                (Seen::At(_, cloud), Some(volume)) => {
                    let placeholder = self.core.registry().placeholder(volume).map(|placeholder| placeholder.vm);
                    let has = cloud.as_ref().and_then(|cloud| cloud.vm);
                    (placeholder.is_some() && placeholder != has).then_some((volume, Placed::Nowhere))
                }
                _ => None,
            };
            let record = self.record(Operation { progress, ..before }, placed);
            self.write(&record).await?;
            self.publish(record);
        }
        self.core.registry().remove(&self.operation);
        Ok(())
    }

    fn record(&self, operation: Operation, placed: Option<(VolumeId, Placed)>) -> Record {
        let now = self.core.tools.clock.wall();
        let operation = Operation { updated_at: now, ..operation };
        let placeholder = placed.and_then(|(volume, placed)| match placed {
            Placed::AsBefore => None,
            Placed::At { vm, root } => {
                Some((volume, Some(Placeholder { volume, vm, root, operation: operation.id, since: now })))
            }
            Placed::Nowhere => self.core.registry().placeholder(volume).is_some().then_some((volume, None)),
        });
        let mut changes = vec![Change::Operation(Box::new(operation.clone()))];
        changes.extend(placeholder.clone().map(|(volume, placeholder)| match placeholder {
            Some(placeholder) => Change::Place(placeholder),
            None => Change::Displace(volume),
        }));
        let told = told(&self.operation, &operation);
        if let (Some((step, detail)), Some(volume)) = (&told, operation.volume) {
            let entry = Told { at: now, event: (*step).into(), detail: detail.clone() };
            changes.push(Change::News(volume, News::Note(entry)));
        }
        Record { operation, changes, placeholder, told }
    }

    /// Writes a record. Tries again until it is written.
    async fn write(&self, record: &Record) -> Result<(), Stopping> {
        let mut tries = 0;
        loop {
            match self.core.tools.records.write(record.changes.clone()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Closed) => return Err(Stopping),
                Err(error) => {
                    // The store reports its failure itself, and health shows it.
                    if tries == 0 {
                        tracing::warn!(OPERATION_ID = %self.operation.id, "the operation waits for the store: {error}");
                    }
                    sleep(doubled(HERE_AGAIN, tries)).await;
                    tries += 1;
                }
            }
        }
    }

    /// Shows a state that is on record to all who follow the operation.
    fn publish(&mut self, record: Record) {
        let Record { operation, changes: _, placeholder, told } = record;
        let mut registry = self.core.registry();
        if let Some((volume, placeholder)) = placeholder {
            registry.place(volume, placeholder);
        }
        if self.operation.volume.is_none() {
            registry.volume_known(&operation);
        }
        drop(registry);
        self.operation = operation.clone();
        self.entry.publish(operation);
        self.core.tell(&self.entry);
        if let Some((step, detail)) = told {
            self.log(step, &detail);
        }
    }

    fn log(&self, step: StoryStep, detail: &str) {
        let (id, kind) = (self.operation.id, self.operation.request.kind());
        let volume = self.operation.volume.map(|volume| volume.to_string());
        if step.severity(false) == Severity::Info {
            tracing::info!(EVENT = step.name(), OPERATION_ID = %id, VOLUME_ID = volume, "{kind}: {detail}");
        } else {
            tracing::warn!(EVENT = step.name(), OPERATION_ID = %id, VOLUME_ID = volume, "{kind}: {detail}");
        }
    }
}

/// Returns what the volume's story says of a change of its operation.
fn told(before: &Operation, now: &Operation) -> Option<(StoryStep, String)> {
    let (id, kind) = (now.id, now.request.kind());
    if before.state != now.state && now.state.is_ended() {
        return Some(match (now.state, &now.fault) {
            (OperationState::Completed, _) => {
                let adopted = if now.progress.adopted { ", it was so already" } else { "" };
                (StoryStep::OperationDone, format!("{kind} {id}{adopted}"))
            }
            (OperationState::Cancelled, _) => (StoryStep::OperationCancelled, format!("{kind} {id}")),
            (_, fault) => {
                let why = fault.as_ref().map(ToString::to_string).unwrap_or_default();
                (StoryStep::OperationFailed, format!("{kind} {id}: {why}"))
            }
        });
    }
    let (new, old) = (&now.progress, &before.progress);
    if (&new.step, new.job(), &new.given_up) == (&old.step, old.job(), &old.given_up) {
        return None;
    }
    let job = new.job().map(|job| format!(", job {job}")).unwrap_or_default();
    let back = if new.given_up.is_some() { " (taking back what was begun)" } else { "" };
    Some((StoryStep::OperationStep, format!("{kind} {id}: {}{job}{back}", new.step.name())))
}
