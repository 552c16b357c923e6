//! This host's volumes.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::super::tools::{Here, Host, Listener, Recorded};
use super::{Double, Truth, here};
use crate::engine::{Rejection, Stopping};
use crate::helper_client::Holders;
use crate::identity::{OperationId, VolumeId};
use crate::operation::Flush;
use crate::store::Change;
use crate::volume::{Intent, State, User};

impl Double {
    async fn done<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Truth) -> Result<T, Rejection>,
    ) -> Result<Result<T, Rejection>, Stopping> {
        self.0.point("before", name).await;
        let done = change(&mut self.0.state());
        self.0.point("after", name).await;
        Ok(done)
    }
}

impl Host for Double {
    fn look(&self, volume: VolumeId) -> BoxFuture<'_, Result<Option<Here>, Stopping>> {
        async move { Ok(self.0.state().here.get(&volume).cloned()) }.boxed()
    }

    fn intend(
        &self,
        intent: Intent,
        also: Vec<Change>,
    ) -> BoxFuture<'_, Result<Result<Recorded, Rejection>, Stopping>> {
        let id = intent.volume;
        let intended = self.done("host.intend", move |state| {
            if state.here.contains_key(&id) {
                return Ok(Recorded::Not);
            }
            let stands = if state.disks.contains(&id) { State::Ready } else { State::Attaching };
            state.here.insert(id, here(stands, intent.origin, id));
            state.write(also);
            Ok(Recorded::Together)
        });
        intended.boxed()
    }

    fn withdraw(&self, volume: VolumeId, _: User) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        let withdrawn = self
            .done("host.withdraw", move |state| state.here.remove(&volume).map(drop).ok_or(Rejection::Unknown(volume)));
        withdrawn.boxed()
    }

    fn seal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        force: bool,
        _: User,
    ) -> BoxFuture<'_, Result<Result<Flush, Rejection>, Stopping>> {
        let sealed = self.done("host.seal", move |state| {
            let clients: Vec<String> =
                state.clients.get(&volume).map(|_| "127.0.0.1:7".to_owned()).into_iter().collect();
            let clients = Holders { clients, exact: true };
            if !clients.clients.is_empty() && !force {
                return Err(Rejection::ClientsConnected { volume, clients });
            }
            let here = state.here.get_mut(&volume).ok_or(Rejection::Unknown(volume))?;
            here.state = State::Detaching;
            state.sealed.insert(volume, operation);
            Ok(Flush::Done)
        });
        sealed.boxed()
    }

    fn unseal(
        &self,
        volume: VolumeId,
        operation: OperationId,
        _: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        let unsealed = self.done("host.unseal", move |state| {
            let disk = state.disks.contains(&volume);
            let here = state.here.get_mut(&volume).ok_or(Rejection::Unknown(volume))?;
            if state.sealed.remove(&volume).is_some_and(|by| by != operation) {
                return Err(Rejection::Leaving(volume));
            }
            here.state = if disk { State::Ready } else { State::Lost };
            Ok(())
        });
        unsealed.boxed()
    }

    fn release(
        &self,
        volume: VolumeId,
        operation: OperationId,
        _: User,
    ) -> BoxFuture<'_, Result<Result<(), Rejection>, Stopping>> {
        let released = self.done("host.release", move |state| {
            if !state.here.contains_key(&volume) {
                return Err(Rejection::Unknown(volume));
            }
            if state.sealed.get(&volume) != Some(&operation) {
                return Err(Rejection::NotSealed { volume, operation });
            }
            state.here.remove(&volume);
            state.sealed.remove(&volume);
            Ok(())
        });
        released.boxed()
    }

    fn listen(&self) -> Result<Listener, Stopping> {
        Ok(Listener(self.0.events.subscribe()))
    }
}
