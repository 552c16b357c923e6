//! What the engine works with: each tool behind a trait. The real ones are in [`super::real`]. With others a whole history can
//! be played in a time of its own.

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

/// What the engine works with.
pub struct Tools {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Runs what is slow.
    pub outside: Arc<dyn Outside>,
    /// Reads disks.
    pub disks: Arc<dyn Disks>,
    /// Keeps the truth.
    pub truth: Arc<dyn Truth>,
    /// Marks wanted serials.
    pub claims: Arc<dyn Claimant>,
    /// Told when a device may have come to sit on another, or may have ceased to.
    pub stacks: Arc<Notify>,
    /// How many intents there may be.
    pub limits: Limits,
    /// The NBD server's files.
    pub backend: Arc<dyn Backend>,
    /// Does what takes privilege.
    pub helper: Arc<dyn Helper>,
    /// The NBD server, as its clients meet it.
    pub server: Arc<dyn NbdServer>,
    /// The unit that runs it.
    pub server_unit: &'static str,
    /// This host's own VM, for intents that name none; empty while unknown.
    pub vm_id: String,
}

/// Runs what is slow, beside the engine.
pub trait Outside: Send + Sync {
    /// Begins it.
    fn start(&self, work: BoxFuture<'static, ()>);

    /// Lets time pass.
    fn pause(&self, wait: Duration) -> BoxFuture<'static, ()>;

    /// Does what may block. An error: it could not be begun, or has panicked.
    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>>;
}

/// Does what may block, and has its result.
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

/// The task of a step has panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the task panicked, a defect of attachd ({0}); please report it")]
pub(crate) struct Died(pub(super) String);

impl From<Died> for io::Error {
    fn from(died: Died) -> Self {
        Self::other(died)
    }
}

/// What each device number was found to be.
pub type AllDisks = Vec<(DevNum, Found<Facts>)>;

/// Reads disks.
pub trait Disks: Send + Sync {
    /// One disk, in a limited time. One that answers too late is told of by an input of its own.
    fn read(&self, devnum: DevNum) -> BoxFuture<'static, Found<Facts>>;

    /// Every disk that is present.
    fn read_all(&self) -> BoxFuture<'static, io::Result<AllDisks>>;

    /// What is known of a disk that could not be asked, for this reason. Never blocks.
    fn read_unanswered(&self, devnum: DevNum, why: &str) -> Found<Facts>;

    /// Whether the disk of this number is still the one with this sequence number. Never blocks.
    fn still(&self, devnum: DevNum, diskseq: u64) -> Found<()>;

    /// What a by-id path resolves to now. Never blocks.
    fn resolve(&self, link: &str) -> io::Result<LinkTarget>;

    /// Whether udevd has an event to work at. Never blocks.
    fn udevd_is_at_work(&self) -> bool;
}

/// Keeps the truth.
pub trait Truth: Send + Sync {
    /// Queues changes that are made together or not at all, and returns the answer to wait for.
    fn begin(&self, changes: Vec<Change>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError>;

    /// Leaves news nobody waits for.
    fn post(&self, volume: VolumeId, news: Vec<News>);

    /// Has what is old forgotten.
    fn tidy(&self);

    /// Why nothing can be written, and when that ends.
    fn condition(&self) -> watch::Receiver<Option<StoreError>>;
}

/// Writes changes; durable when this answers with success, and not there at all otherwise.
pub(super) async fn write(truth: &dyn Truth, changes: Vec<Change>) -> Result<(), StoreError> {
    answered(truth.begin(changes)).await
}

/// What became of what was queued.
pub(super) async fn answered(
    begun: Result<oneshot::Receiver<Result<(), StoreError>>, StoreError>,
) -> Result<(), StoreError> {
    begun?.await.unwrap_or(Err(StoreError::Closed))
}

/// Marks wanted serials. Everything is durable when it answers with success.
pub trait Claimant: Send + Sync {
    /// Claims a volume's serial.
    fn add(&self, volume: VolumeId) -> BoxFuture<'static, io::Result<()>>;

    /// Ends a claim. Ending it again changes nothing.
    fn remove(&self, serial: Serial) -> BoxFuture<'static, io::Result<()>>;

    /// Makes the folder hold the claims of the wanted volumes and no others, those apart that are just being made or
    /// removed. What is added or removed from now on is left as it is. One at a time.
    fn restore(&self, wanted: Vec<VolumeId>, under_way: Vec<VolumeId>) -> BoxFuture<'static, io::Result<Restored>>;
}

/// Does what takes privilege.
pub trait Helper: Send + Sync {
    /// Whether it answered when it was last asked, or why not; `None`: not asked yet.
    fn state(&self) -> Option<Result<(), String>>;

    /// Has udev look at the present disk of this serial again.
    fn retrigger(&self, serial: Serial) -> BoxFuture<'static, Result<(), HelperError>>;

    /// The clients that have this device open; `None`: no NBD server has it open. With its node, one that is just being
    /// closed is waited for a moment.
    fn holders(
        &self,
        devnum: DevNum,
        node: Option<PathBuf>,
    ) -> BoxFuture<'static, Result<Option<Holders>, HelperError>>;

    /// Whether anybody of this host has the disk open exclusively.
    fn exclusive(&self, devnum: DevNum, serial: Serial) -> BoxFuture<'static, Result<Exclusive, HelperError>>;

    /// Has the disks this host lives on written down.
    fn host_disks(&self) -> BoxFuture<'static, Result<(), HelperError>>;

    /// Has nbd-server told to read its files again.
    fn reload(&self) -> BoxFuture<'static, Result<(), HelperError>>;
}

/// What a handshake without an export has shown; an error with what was found at the port.
pub type Greeted = Result<(), (ProbeError, String)>;

/// A handshake's end: to be dropped when nobody waits for it any more.
pub type Goodbye = Box<dyn Send>;

/// The NBD server, as its clients meet it.
pub trait NbdServer: Send + Sync {
    /// Whether it answers at all; else what was found at its port.
    fn greet(&self) -> BoxFuture<'static, Greeted>;

    /// A whole handshake for an export, on a new connection.
    fn ask(&self, export: String) -> BoxFuture<'static, Result<(Served, Goodbye), ProbeError>>;

    /// Who is connected to its port.
    fn connected(&self) -> BoxFuture<'static, Vec<String>>;

    /// Whether asking it costs a start.
    fn is_started_for_each(&self) -> bool;
}
