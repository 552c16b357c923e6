//! What the task follows: the records of one kind that have changed, in order.

use std::fmt::Display;

use super::operations::{self, OperationRow};
use super::rows::{Rows, rows, rows_elsewhere};
use crate::identity::{OperationId, VolumeId};
use crate::store::{Changed, Follower, Present, StoreError};

/// What a database shows of one record.
pub trait Shown: Send + Sync {
    /// The record's id.
    type Id: Copy + Ord + Display + Send + Sync;

    /// Returns the id of the record that this is about.
    fn id(&self) -> Self::Id;
}

/// A record that has changed.
pub(super) struct Noted<S: Shown> {
    /// The number of the change.
    pub(super) number: i64,
    /// The record.
    pub(super) id: S::Id,
    /// What is to be shown of it. An error: the store holds something of it that attachd did not write.
    pub(super) shown: Result<S, String>,
}

/// The changed records of one kind.
pub(super) trait Source: Send + 'static {
    /// What is shown of one.
    type Shown: Shown;

    /// Returns the follower, which has the connection to the store's file.
    fn follower(&mut self) -> &mut Follower;

    /// Continues where the last run stopped. What was set aside is owed again.
    fn resume(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Makes everything owed again that the target may have lost.
    fn owe_all(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns some of the records that are owed, in order.
    fn next(&mut self, limit: i64) -> impl Future<Output = Result<Vec<Noted<Self::Shown>>, StoreError>> + Send;

    /// Records that everything up to `number` is shown, except for `refused`, which is set aside. `shown` was set aside
    /// before.
    fn settle(
        &mut self,
        number: i64,
        refused: &[<Self::Shown as Shown>::Id],
        shown: &[<Self::Shown as Shown>::Id],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Makes what was set aside owed again.
    fn try_set_aside_again(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Logs something about one record, in an entry that has its id.
    fn log(&self, id: <Self::Shown as Shown>::Id, about: &Log<'_>);
}

/// What is logged about one record.
pub(super) enum Log<'a> {
    /// The database refuses it.
    Refused(&'a str),
    /// The database takes it again.
    Taken,
}

/// The volumes of this host, and those that operations have attached to other VMs.
pub(super) struct Volumes {
    follower: Follower,
    basis: String,
}

impl Volumes {
    /// `basis` is what the rows depend on besides the volumes.
    pub(super) fn new(follower: Follower, basis: String) -> Self {
        Self { follower, basis }
    }
}

impl Shown for Rows {
    type Id = VolumeId;

    fn id(&self) -> VolumeId {
        self.volume
    }
}

impl Source for Volumes {
    type Shown = Rows;

    fn follower(&mut self) -> &mut Follower {
        &mut self.follower
    }

    async fn resume(&mut self) -> Result<(), StoreError> {
        self.follower.resume(&self.basis).await
    }

    async fn owe_all(&mut self) -> Result<(), StoreError> {
        self.follower.owe_all().await
    }

    async fn next(&mut self, limit: i64) -> Result<Vec<Noted<Rows>>, StoreError> {
        let changed = self.follower.next(limit).await?;
        Ok(changed.into_iter().map(volume).collect())
    }

    async fn settle(&mut self, number: i64, refused: &[VolumeId], shown: &[VolumeId]) -> Result<(), StoreError> {
        self.follower.settle(number, refused, shown).await
    }

    async fn try_set_aside_again(&mut self) -> Result<(), StoreError> {
        self.follower.try_set_aside_again().await
    }

    fn log(&self, id: VolumeId, about: &Log<'_>) {
        let target = self.follower.name();
        match about {
            Log::Refused(why) => tracing::error!(
                VOLUME_ID = %id, CODE = %REFUSED, target,
                "the predecessor's tables refuse the volume: {why}. {}", REFUSED.hint()
            ),
            Log::Taken => tracing::info!(VOLUME_ID = %id, target, "the volume is shown again"),
        }
    }
}

const REFUSED: crate::reason::Code = crate::reason::Code::ProjectionRefused;

fn volume(changed: Changed) -> Noted<Rows> {
    let Changed { number, volume, present } = changed;
    let shown = present.map(|present| match present {
        Present::Wanted(record) => rows(&record),
        Present::Elsewhere(placeholder) => rows_elsewhere(&placeholder),
        Present::Absent => Rows::none(volume),
    });
    Noted { number, id: volume, shown }
}

/// The operations.
pub(super) struct Operations(pub(super) Follower);

impl Shown for OperationRow {
    type Id = OperationId;

    fn id(&self) -> OperationId {
        self.operation
    }
}

impl Source for Operations {
    type Shown = OperationRow;

    fn follower(&mut self) -> &mut Follower {
        &mut self.0
    }

    async fn resume(&mut self) -> Result<(), StoreError> {
        self.0.try_operations_again().await
    }

    async fn owe_all(&mut self) -> Result<(), StoreError> {
        // Its only target is in the store's own file.
        Ok(())
    }

    async fn next(&mut self, limit: i64) -> Result<Vec<Noted<OperationRow>>, StoreError> {
        let changed = self.0.next_operations(limit).await?;
        let noted = changed.into_iter().map(|(number, id, present)| {
            let shown = present.map(|present| OperationRow {
                operation: id,
                row: present.map(|operation| operations::row(&operation)),
            });
            Noted { number, id, shown }
        });
        Ok(noted.collect())
    }

    async fn settle(&mut self, number: i64, refused: &[OperationId], _: &[OperationId]) -> Result<(), StoreError> {
        self.0.settle_operations(number, refused).await
    }

    async fn try_set_aside_again(&mut self) -> Result<(), StoreError> {
        self.0.try_operations_again().await
    }

    fn log(&self, id: OperationId, about: &Log<'_>) {
        let target = self.0.name();
        match about {
            Log::Refused(why) => tracing::error!(
                OPERATION_ID = %id, CODE = %REFUSED, target,
                "the predecessor's tables refuse the operation: {why}. {}", REFUSED.hint()
            ),
            Log::Taken => tracing::info!(OPERATION_ID = %id, target, "the operation is shown again"),
        }
    }
}
