//! The engine itself: what it knows, what it works with, and how it begins work outside. What it does with these is in the
//! files above this one.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::events::Events;
use super::input::Input;
use super::outside;
use super::tools::{self, Died, Tools};
use super::turns::Turns;
use super::waiting::Waiting;
use super::world::World;
use crate::export::server::Server;
use crate::identity::VolumeId;

/// The engine; [`Engine::run`] consumes it.
pub struct Engine {
    pub(super) world: World,
    pub(super) tools: Tools,
    pub(super) inputs: mpsc::Receiver<Input>,
    /// For results of what runs outside.
    pub(super) back: mpsc::Sender<Input>,
    pub(super) events: Events,
    pub(super) epochs: u64,
    pub(super) turns: Turns,
    /// Volumes of which something is to be handed to the store after this turn.
    pub(super) unposted: Vec<VolumeId>,
    pub(super) waiting: Waiting,
}

impl Engine {
    /// Begins a step outside. `back` makes the input of its result, and has what is to be answered in any case.
    pub(super) fn outside<T: Send + 'static>(
        &self,
        name: &'static str,
        step: impl Future<Output = T> + Send + 'static,
        back: impl FnOnce(Result<T, Died>) -> Input + Send + 'static,
    ) {
        self.tools.outside.start(outside::run(name, step, back, self.back.clone()).boxed());
    }

    /// Does what may block, for a step.
    pub(super) fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, std::io::Result<T>> {
        tools::work(&*self.tools.outside, work)
    }

    /// Sends an input in a while.
    pub(super) fn later(&self, wait: Duration, input: Input) {
        let (back, pause) = (self.back.clone(), self.tools.outside.pause(wait));
        let step = async move {
            pause.await;
            let _ = back.send(input).await;
        };
        self.tools.outside.start(step.boxed());
    }

    /// Sends an input behind those that wait already.
    pub(super) fn afterwards(&self, input: Input) {
        let back = self.back.clone();
        self.tools.outside.start(async move { drop(back.send(input).await) }.boxed());
    }

    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epochs += 1;
        self.epochs
    }

    /// From now on only a new reading of this volume's disk counts.
    pub(super) fn distrust(&mut self, id: VolumeId) {
        let last = self.world.looks.last();
        if let Some(volume) = self.world.volume_mut(id) {
            volume.look_after = last;
        }
    }

    pub(super) fn server_is_up(&self) -> bool {
        matches!(self.world.server, Some(Server::Up { .. }))
    }
}
