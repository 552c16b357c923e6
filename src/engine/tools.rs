//! What the engine works with: each tool behind a trait. The real ones are here. With others a whole history can
//! be played in a time of its own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use tokio::sync::{Notify, oneshot, watch};

use super::asking;
use super::server::Greeted;
use crate::blocking::blocking;
use crate::claiming::Claiming;
use crate::claims::{Claims, Restored};
use crate::clock::Clock;
use crate::config::Limits;
use crate::device::DevNum;
use crate::device::facts::{Facts, LinkTarget};
use crate::device::found::Found;
use crate::export::backend::Backend;
use crate::export::probe::{self, Endpoint, ProbeError, Served};
use crate::export::{clients, port};
use crate::helper_client::{Exclusive, HelperClient, HelperError, Holders};
use crate::identity::{Serial, VolumeId};
use crate::store::{Change, News, Store, StoreError};

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

/// tokio's tasks and timers, and threads.
pub struct Tokio;

impl Outside for Tokio {
    fn start(&self, work: BoxFuture<'static, ()>) {
        tokio::spawn(work);
    }

    fn pause(&self, wait: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(wait).boxed()
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, io::Result<()>> {
        blocking(work).boxed()
    }
}

impl Truth for Store {
    fn begin(&self, changes: Vec<Change>) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        self.begin(changes)
    }

    fn post(&self, volume: VolumeId, news: Vec<News>) {
        self.post(volume, news);
    }

    fn tidy(&self) {
        self.tidy();
    }

    fn condition(&self) -> watch::Receiver<Option<StoreError>> {
        self.condition()
    }
}

/// The folder of claims, and the thread that writes it.
pub struct ClaimFolder {
    claims: Claims,
    claiming: Claiming,
}

impl ClaimFolder {
    /// Starts the thread.
    pub fn new(claims: Claims) -> io::Result<Self> {
        Ok(Self { claiming: Claiming::start(claims.clone())?, claims })
    }
}

impl Claimant for ClaimFolder {
    fn add(&self, volume: VolumeId) -> BoxFuture<'static, io::Result<()>> {
        let claiming = self.claiming.clone();
        async move { claiming.add(volume).await }.boxed()
    }

    fn remove(&self, serial: Serial) -> BoxFuture<'static, io::Result<()>> {
        let claiming = self.claiming.clone();
        async move { claiming.remove(serial).await }.boxed()
    }

    fn restore(&self, wanted: Vec<VolumeId>, under_way: Vec<VolumeId>) -> BoxFuture<'static, io::Result<Restored>> {
        let restoration = self.claims.restoration(wanted, under_way);
        blocking(move || restoration.run()).map(Result::flatten).boxed()
    }
}

impl Helper for HelperClient {
    fn state(&self) -> Option<Result<(), String>> {
        self.state()
    }

    fn retrigger(&self, serial: Serial) -> BoxFuture<'static, Result<(), HelperError>> {
        let helper = self.clone();
        async move { helper.retrigger(serial).await }.boxed()
    }

    fn holders(
        &self,
        devnum: DevNum,
        node: Option<PathBuf>,
    ) -> BoxFuture<'static, Result<Option<Holders>, HelperError>> {
        let helper = self.clone();
        async move { asking::patiently(&helper, devnum, node).await }.boxed()
    }

    fn exclusive(&self, devnum: DevNum, serial: Serial) -> BoxFuture<'static, Result<Exclusive, HelperError>> {
        let helper = self.clone();
        async move { helper.exclusive(devnum, serial).await }.boxed()
    }

    fn host_disks(&self) -> BoxFuture<'static, Result<(), HelperError>> {
        let helper = self.clone();
        async move { helper.host_disks().await }.boxed()
    }

    fn reload(&self) -> BoxFuture<'static, Result<(), HelperError>> {
        let helper = self.clone();
        async move { helper.reload().await }.boxed()
    }
}

impl NbdServer for Endpoint {
    fn greet(&self) -> BoxFuture<'static, Greeted> {
        let server = self.clone();
        let step = async move {
            match probe::greet(&server).await {
                Ok(greeted) => {
                    greeted.leave().await;
                    Ok(())
                }
                Err(error) => {
                    let address = server.address;
                    let found = blocking(move || port::found(address)).await.unwrap_or_default();
                    Err((error, found))
                }
            }
        };
        step.boxed()
    }

    fn ask(&self, export: String) -> BoxFuture<'static, Result<(Served, Goodbye), ProbeError>> {
        let server = self.clone();
        let step = async move { probe::probe(probe::greet(&server).await?, &export).await };
        step.map_ok(|(served, goodbye)| (served, Box::new(goodbye) as Goodbye)).boxed()
    }

    fn connected(&self) -> BoxFuture<'static, Vec<String>> {
        let address = self.address;
        let step = async move {
            match blocking(move || clients::connected(address)).await.flatten() {
                Ok(connected) => connected,
                Err(error) => vec![format!("unknown, the table of connections cannot be read: {error}")],
            }
        };
        step.boxed()
    }

    fn is_started_for_each(&self) -> bool {
        self.is_started_for_each()
    }
}
