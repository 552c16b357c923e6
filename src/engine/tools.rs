//! The tools of the engine, each behind a trait. The real ones are in [`super::real`]. The simulation has others,
//! with which a whole history runs in its own time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot, watch};

use crate::claims::Restored;
use crate::clock::Clock;
use crate::config::Limits;
use crate::device::DevNum;
use crate::device::facts::{Facts, LinkTarget};
use crate::device::found::Found;
use crate::export::backend::Backend;
use crate::export::probe::{ProbeError, Served};
use crate::helper_client::{Exclusive, HelperError, Holders};
use crate::identity::{Serial, VolumeId};
use crate::store::{Change, News, StoreError};

/// The tools of the engine.
pub struct Tools {
    /// Returns the time.
    pub clock: Arc<dyn Clock>,
    /// Runs slow work.
    pub outside: Arc<dyn Outside>,
    /// Reads disks.
    pub disks: Arc<dyn Disks>,
    /// The store.
    pub truth: Arc<dyn Truth>,
    /// Adds and removes claims.
    pub claims: Arc<dyn Claimant>,
    /// Notified when a device may have been set up on another, or removed from it.
    pub stacks: Arc<Notify>,
    /// The limits of the number of intents.
    pub limits: Limits,
    /// The NBD server's files.
    pub backend: Arc<dyn Backend>,
    /// The client of the privileged helper.
    pub helper: Arc<dyn Helper>,
    /// The NBD server as its clients see it.
    pub server: Arc<dyn NbdServer>,
    /// The server's systemd unit.
    pub server_unit: &'static str,
    /// The id of this host's own VM, for intents that name none. Empty while unknown.
    pub vm_id: String,
}

/// Runs slow work beside the engine.
pub trait Outside: Send + Sync {
    /// Starts a task.
    fn start(&self, work: BoxFuture<'static, ()>);

    /// Returns a future that ends after this time.
    fn pause(&self, wait: Duration) -> BoxFuture<'static, ()>;

    /// Runs work that may block. Fails if the work could not be started or has panicked.
    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>>;
}

/// Runs work that may block, and returns its result.
pub(super) fn work<T: Send + 'static>(
    outside: &dyn Outside,
    work: impl FnOnce() -> T + Send + 'static,
) -> BoxFuture<'static, io::Result<T>> {
    let (done, result) = oneshot::channel();
    let ended = outside.block(Box::new(move || drop(done.send(work()))));
    let step = async move {
        ended.await?;
        result.await.map_err(io::Error::other)
    };
    step.boxed()
}

/// The error of a step whose task has panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task panicked, a defect of attachd ({0}); please report it")]
pub(crate) struct Died(pub(super) String);

impl From<Died> for io::Error {
    fn from(died: Died) -> Self {
        Self::other(died)
    }
}

/// The result of reading each device number.
pub type AllDisks = Vec<(DevNum, Found<Facts>)>;

/// Reads disks.
pub trait Disks: Send + Sync {
    /// Reads one disk within a time limit. A late answer is reported by an input of its own.
    fn read(&self, devnum: DevNum) -> BoxFuture<'static, Found<Facts>>;

    /// Reads every disk that is present.
    fn read_all(&self) -> BoxFuture<'static, io::Result<AllDisks>>;

    /// Returns what is known of a disk that could not be asked for this reason. Never blocks.
    fn read_unanswered(&self, devnum: DevNum, why: &str) -> Found<Facts>;

    /// Returns whether the disk of this number still has this sequence number. Never blocks.
    fn still(&self, devnum: DevNum, diskseq: u64) -> Found<()>;

    /// Returns what a by-id path resolves to now. Never blocks.
    fn resolve(&self, link: &str) -> io::Result<LinkTarget>;

    /// Returns whether udevd has an event to handle. Never blocks.
    fn udevd_is_at_work(&self) -> bool;
}

/// The store.
pub trait Truth: Send + Sync {
    /// Queues changes that are made together or not at all, and returns the receiver of the answer.
    fn begin(&self, changes: Vec<Change>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError>;

    /// Posts news that nobody waits for.
    fn post(&self, volume: VolumeId, news: Vec<News>);

    /// Asks the store to delete old history.
    fn tidy(&self);

    /// Returns a receiver of the reason for which writing fails.
    fn condition(&self) -> watch::Receiver<Option<StoreError>>;
}

/// Writes changes. On success they are durable; on an error none of them is written.
pub(super) async fn write(truth: &dyn Truth, changes: Vec<Change>) -> Result<(), StoreError> {
    answered(truth.begin(changes)).await
}

/// Waits for the answer to queued changes.
pub(super) async fn answered(
    begun: Result<oneshot::Receiver<Result<(), StoreError>>, StoreError>,
) -> Result<(), StoreError> {
    begun?.await.unwrap_or(Err(StoreError::Closed))
}

/// Adds and removes claims. Each change is durable when it is answered with success.
pub trait Claimant: Send + Sync {
    /// Claims a volume's serial.
    fn add(&self, volume: VolumeId) -> BoxFuture<'static, io::Result<()>>;

    /// Removes a claim. Removing it again changes nothing.
    fn remove(&self, serial: Serial) -> BoxFuture<'static, io::Result<()>>;

    /// Makes the folder contain the claims of the wanted volumes and no others, except for claims that are being
    /// added or removed. Claims that are added or removed from now on are left as they are. Only one restoration runs
    /// at a time.
    fn restore(&self, wanted: Vec<VolumeId>, under_way: Vec<VolumeId>) -> BoxFuture<'static, io::Result<Restored>>;
}

/// Performs what needs privileges.
pub trait Helper: Send + Sync {
    /// Returns whether the helper answered the last request, or why not. `None`: it was not asked yet.
    fn state(&self) -> Option<Result<(), String>>;

    /// Asks udev to handle the present disk of this serial again.
    fn retrigger(&self, serial: Serial) -> BoxFuture<'static, Result<(), HelperError>>;

    /// Returns the clients that have this device open. `None`: no NBD server has it open. With `node`, a device that
    /// is just being closed is waited for a moment.
    fn holders(
        &self,
        devnum: DevNum,
        node: Option<PathBuf>,
    ) -> BoxFuture<'static, Result<Option<Holders>, HelperError>>;

    /// Returns whether a process of this host has the disk open exclusively.
    fn exclusive(&self, devnum: DevNum, serial: Serial) -> BoxFuture<'static, Result<Exclusive, HelperError>>;

    /// Asks the helper to record the disks on which this host runs.
    fn host_disks(&self) -> BoxFuture<'static, Result<(), HelperError>>;

    /// Asks the helper to make nbd-server read its files again.
    fn reload(&self) -> BoxFuture<'static, Result<(), HelperError>>;
}

/// The result of a handshake without an export. The error has the listener found at the port.
pub type Greeted = Result<(), (ProbeError, String)>;

/// The end of a handshake. It is dropped when nobody waits for the answer any more.
pub type Goodbye = Box<dyn Send>;

/// The NBD server as its clients see it.
pub trait NbdServer: Send + Sync {
    /// Checks whether the server answers at all. The error has what was found at its port.
    fn greet(&self) -> BoxFuture<'static, Greeted>;

    /// Makes a whole handshake for an export, on a new connection.
    fn ask(&self, export: String) -> BoxFuture<'static, Result<(Served, Goodbye), ProbeError>>;

    /// Returns the clients connected to the server's port.
    fn connected(&self) -> BoxFuture<'static, Vec<String>>;

    /// Returns whether each request to the server costs a start of it.
    fn is_started_for_each(&self) -> bool;
}
