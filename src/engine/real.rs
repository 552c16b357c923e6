//! The tools of the running daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use tokio::sync::{oneshot, watch};

use super::asking;
use super::tools::{Claimant, Goodbye, Greeted, Helper, NbdServer, Outside, Truth};
use crate::blocking::blocking;
use crate::claiming::Claiming;
use crate::claims::{Claims, Restored};
use crate::device::DevNum;
use crate::export::probe::{self, Endpoint, ProbeError, Served};
use crate::export::{clients, port};
use crate::helper_client::{Exclusive, HelperClient, HelperError, Holders};
use crate::identity::{Serial, VolumeId};
use crate::store::{Change, News, Store, StoreError};

/// Tasks and timers of tokio, and threads.
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
