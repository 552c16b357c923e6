//! What operations use besides CloudStack. Each is a trait with one real implementation and one for tests.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use crate::cloud::{self, OwnVmFinder};
use crate::engine::{Rejection, SharedEvent, Stopping};
use crate::identity::{OperationId, VmId, VolumeId};
use crate::operation::{Flush, IdempotencyKey, Operation};
use crate::store::{Change, OperationFilter, Store, StoreError};
use crate::volume::{Intent, IntentOrigin, Reason, State, User};

/// A volume of this host, as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Its state.
    pub state: State,
    /// Why it is not served.
    pub reason: Option<Reason>,
    /// Where its intent comes from.
    pub origin: IntentOrigin,
    /// The by-id path of its disk, if the disk is here and proven.
    pub device_path: Option<String>,
}

/// Whether what was to be written together with an intent is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is.
    Together,
    /// It is not: the volume was wanted before.
    Not,
}

/// This host's volumes. Every call may be repeated.
pub trait Host: Send + Sync {
    /// Returns the volume as it is now. `None`: there is no intent for it.
    fn look(&self, volume: VolumeId) -> BoxFuture<'_, Result<Option<Here>, Stopping>>;

    /// The volume is wanted here from now on. `also` is written in the same transaction, if the volume was not wanted before.
    fn intend(&self, intent: Intent, also: Vec<Change>)
    -> BoxFuture<'_, Result<Result<Recorded, Rejection>, Stopping>>;

    /// Withdraws the volume.
    fn withdraw(&self, volume: VolumeId, user: User) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>>;

    /// Seals the volume: flushes the clients' writes and removes the export until the operation unseals or releases it.
    fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        user: User,
    ) -> BoxFuture<'_, Result<Result<Flush, Rejection>, Stopping>>;

    /// Ends the seal, so the volume is exported again.
    fn unseal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>>;

    /// Withdraws the sealed volume even if clients are connected, because its disk is detached already.
    fn release(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>>;

    /// Subscribes to the changes of volumes.
    fn listen(&self) -> Result<Listener, Stopping>;
}

/// Finds this host's own VM. Asked each time, because it can become known and can change.
pub trait OwnVm: Send + Sync {
    /// Returns the VM's id, or why it is unknown.
    fn find(&self) -> BoxFuture<'_, Result<VmId, String>>;

    /// CloudStack does not know something that it was asked to change, perhaps this VM: it is found out again.
    fn doubt(&self);
}

impl OwnVm for OwnVmFinder {
    fn doubt(&self) {
        self.forget();
    }

    fn find(&self) -> BoxFuture<'_, Result<VmId, String>> {
        let found = async move {
            match self.find().await {
                cloud::OwnVm::Known { id, .. } => Ok(id),
                cloud::OwnVm::Unknown { why } => Err(why),
            }
        };
        found.boxed()
    }
}

/// For a host without CloudStack: its VM is unknown.
pub struct NoVm;

impl OwnVm for NoVm {
    fn doubt(&self) {}

    fn find(&self) -> BoxFuture<'_, Result<VmId, String>> {
        async { Err("attachd does not work with CloudStack here".to_owned()) }.boxed()
    }
}

/// A subscription to the changes of volumes.
pub struct Listener(pub broadcast::Receiver<SharedEvent>);

impl Listener {
    /// Resolves when something has happened to this volume, or may have. A disk that is on its way to be served is nothing to act
    /// on, and the way is not to be slowed down.
    pub async fn heard(&mut self, volume: VolumeId) -> Result<(), Stopping> {
        loop {
            match self.0.recv().await {
                Ok(event) if event.volume_id == volume && !is_on_the_way(event.state) => return Ok(()),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => return Err(Stopping),
            }
        }
    }
}

const fn is_on_the_way(state: State) -> bool {
    matches!(state, State::Matched | State::Exporting)
}

/// The records of operations in the store.
pub trait Records: Send + Sync {
    /// Writes all changes or none; they are durable when this answers with success.
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Returns the operation with this id.
    fn operation(&self, id: OperationId) -> BoxFuture<'_, Result<Option<Operation>, StoreError>>;

    /// Returns the operation with this user's idempotency key.
    fn keyed(&self, uid: Option<u32>, key: IdempotencyKey) -> BoxFuture<'_, Result<Option<Operation>, StoreError>>;

    /// Returns the operations that match the filter, the newest first.
    fn list(&self, filter: OperationFilter) -> BoxFuture<'_, Result<Vec<Operation>, StoreError>>;
}

impl Records for Store {
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(changes).boxed()
    }

    fn operation(&self, id: OperationId) -> BoxFuture<'_, Result<Option<Operation>, StoreError>> {
        self.operation(id).boxed()
    }

    fn keyed(&self, uid: Option<u32>, key: IdempotencyKey) -> BoxFuture<'_, Result<Option<Operation>, StoreError>> {
        async move { self.operation_keyed(uid, &key).await }.boxed()
    }

    fn list(&self, filter: OperationFilter) -> BoxFuture<'_, Result<Vec<Operation>, StoreError>> {
        async move { self.operations(&filter).await }.boxed()
    }
}

/// Returns a new random id.
pub(super) fn new_id() -> Uuid {
    let mut bytes = [0; 16];
    // The kernel answers at once; it waits only until its random generator has been seeded after a boot.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        // Only a kernel without this call fails. Then the time makes the id: it differs from moment to moment.
        let (now, wall) = (crate::clock::Steady::now().as_micros(), Timestamp::now().as_microsecond());
        bytes = (u128::from(now.cast_unsigned()) << 64 | u128::from(wall.cast_unsigned())).to_be_bytes();
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
