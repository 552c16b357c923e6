//! What operations work with besides CloudStack, as traits: with one real implementation and one for tests each.

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

/// A volume of this host, as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Where it stands.
    pub state: State,
    /// Why it is not served.
    pub reason: Option<Reason>,
    /// Whose wish it is.
    pub origin: IntentOrigin,
    /// The by-id path of its disk, when that is here and proven.
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

/// This host's volumes. Each call may be repeated.
pub trait Host: Send + Sync {
    /// As it is now; `None`: it is not wanted here.
    fn look(&self, volume: VolumeId) -> BoxFuture<'_, Result<Option<Here>, Stopping>>;

    /// The volume is wanted here from now on. `also` is written in the same transaction, if the volume was not wanted before.
    fn intend(&self, intent: Intent, also: Vec<Change>)
    -> BoxFuture<'_, Result<Result<Recorded, Rejection>, Stopping>>;

    /// It is wanted here no more.
    fn withdraw(&self, volume: VolumeId, user: User) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>>;

    /// Its export is taken away, and stays away. What clients had written is flushed.
    fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        user: User,
    ) -> BoxFuture<'_, Result<Result<Flush, Rejection>, Stopping>>;

    /// Its export is given back.
    fn unseal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>>;

    /// It is withdrawn, although clients may be connected: its disk is given away already.
    fn release(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>>;

    /// Tells of what happens to volumes from now on.
    fn listen(&self) -> Result<Listener, Stopping>;
}

/// Says which VM this host is. Asked each time: it can become known, and it can change.
pub trait OwnVm: Send + Sync {
    /// Which, or why that is not known.
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

/// For a host that works with no CloudStack: nothing is attached to it.
pub struct NoVm;

impl OwnVm for NoVm {
    fn doubt(&self) {}

    fn find(&self) -> BoxFuture<'_, Result<VmId, String>> {
        async { Err("attachd does not work with CloudStack here".to_owned()) }.boxed()
    }
}

/// Tells of what happens to volumes.
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

/// What is on record.
pub trait Records: Send + Sync {
    /// Writes all changes or none; they are durable when this answers with success.
    fn write(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The operation of this id.
    fn operation(&self, id: OperationId) -> BoxFuture<'_, Result<Option<Operation>, StoreError>>;

    /// The operation to which this user gave this name.
    fn keyed(&self, uid: Option<u32>, key: IdempotencyKey) -> BoxFuture<'_, Result<Option<Operation>, StoreError>>;

    /// Those that are wanted, the newest first.
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

/// An id that nothing else has.
pub(super) fn new_id() -> Uuid {
    let mut bytes = [0; 16];
    // The kernel has it at once: only before its first seed it would wait.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        // Never seen: it takes a kernel without this call. Two different moments are still two different ids.
        let (now, wall) = (crate::clock::Steady::now().as_micros(), Timestamp::now().as_microsecond());
        bytes = (u128::from(now.cast_unsigned()) << 64 | u128::from(wall.cast_unsigned())).to_be_bytes();
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}
