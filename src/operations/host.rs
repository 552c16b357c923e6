//! This host's volumes through the engine's handle, and the flush of the clients' writes before a volume is detached.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::tools::{Here, Host, Listener, Recorded};
use crate::device::DevNum;
use crate::engine::{Accepted, Handle, Rejection, Stopping};
use crate::export::flush::Flusher;
use crate::export::probe::Endpoint;
use crate::helper_client::HelperClient;
use crate::identity::{OperationId, VolumeId};
use crate::operation::Flush;
use crate::store::Change;
use crate::volume::{Intent, State, User};

/// The engine's handle, and how the NBD server is reached.
pub struct ThisHost {
    engine: Handle,
    server: Endpoint,
    helper: HelperClient,
}

impl ThisHost {
    /// Uses this handle, and the NBD server and the helper that the engine uses.
    pub fn new(engine: Handle, server: Endpoint, helper: HelperClient) -> Self {
        Self { engine, server, helper }
    }

    /// Seals the volume. The clients' writes are flushed before, and once more when no new client can connect.
    async fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        user: User,
    ) -> Result<Result<Flush, Rejection>, Stopping> {
        let look = self.engine.read(move |world| {
            world.volume(volume).map(|volume| (volume.state, volume.mapping.as_ref().map(|mapping| mapping.devnum)))
        });
        let seal = || self.engine.seal(volume, operation, force, user);
        let devnum = match look.await? {
            Some((State::Ready, Some(devnum))) => devnum,
            Some((State::Detaching, _)) => {
                let why = "its export was taken away before a restart of attachd";
                return Ok(seal().await?.map(|_| Flush::Failed(why.to_owned())));
            }
            _ => return Ok(seal().await?.map(|_| Flush::NotServed)),
        };
        let mut flusher = match Flusher::open(&self.server, &volume.export_name()).await {
            Ok(flusher) => flusher,
            Err(why) => return Ok(seal().await?.map(|_| Flush::Failed(why))),
        };
        let before = flusher.flush().await;
        let sealed = self.seal_beside(devnum, seal()).await?;
        if let Err(rejection) = sealed {
            return Ok(Err(rejection));
        }
        // The last client has disconnected, or cannot write any more.
        let after = flusher.flush().await;
        drop(flusher);
        // If attachd's own connection has broken, a client may have been taken for it: the clients are asked for again.
        if after.is_err()
            && !force
            && let Err(rejection) = seal().await?
        {
            return Ok(Err(rejection));
        }
        Ok(Ok(match before.and(after) {
            Ok(()) => Flush::Done,
            Err(why) => Flush::Failed(why),
        }))
    }

    /// Seals while the helper's client knows that one connection to this disk is attachd's own.
    async fn seal_beside<T>(&self, devnum: DevNum, seal: impl Future<Output = T>) -> T {
        let _own = self.helper.has_open(devnum);
        seal.await
    }
}

impl Host for ThisHost {
    fn look(&self, volume: VolumeId) -> BoxFuture<'_, Result<Option<Here>, Stopping>> {
        let look = self.engine.read(move |world| {
            world.volume(volume).map(|volume| Here {
                state: volume.state,
                reason: volume.reason.clone(),
                origin: volume.intent.origin,
                device_path: volume.mapping.as_ref().map(|mapping| mapping.link.clone()),
            })
        });
        look.boxed()
    }

    fn intend(
        &self,
        intent: Intent,
        also: Vec<Change>,
    ) -> BoxFuture<'_, Result<Result<Recorded, Rejection>, Stopping>> {
        let intended = async move {
            Ok(self.engine.intend_with(intent, also).await?.map(|accepted| match accepted {
                Accepted::New => Recorded::Together,
                Accepted::Known => Recorded::Not,
            }))
        };
        intended.boxed()
    }

    fn withdraw(&self, volume: VolumeId, user: User) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        async move { Ok(self.engine.withdraw(volume, false, user).await?.map(drop)) }.boxed()
    }

    fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        user: User,
    ) -> BoxFuture<'_, Result<Result<Flush, Rejection>, Stopping>> {
        self.seal(volume, operation, force, user).boxed()
    }

    fn unseal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        self.engine.unseal(volume, operation, user).boxed()
    }

    fn release(
        &self,
        volume: VolumeId,
        operation: OperationId,
        user: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        async move { Ok(self.engine.release(volume, operation, true, user).await?.map(drop)) }.boxed()
    }

    fn listen(&self) -> Result<Listener, Stopping> {
        self.engine.events().map(Listener)
    }
}
