//! The engine itself: what it knows and what it works with. What it does with these is in the files above this one.

use tokio::sync::mpsc;

use super::events::Events;
use super::input::Input;
use super::steps::Steps;
use super::turns::Turns;
use super::waiting::Waiting;
use super::world::World;
use crate::export::server::Server;
use crate::identity::VolumeId;

/// The engine; [`Engine::run`] consumes it.
pub struct Engine {
    pub(super) world: World,
    /// What it works with, and begins outside.
    pub(super) steps: Steps,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) events: Events,
    pub(super) epochs: u64,
    pub(super) turns: Turns,
    /// Volumes of which something is to be handed to the store after this turn.
    pub(super) unposted: Vec<VolumeId>,
    pub(super) waiting: Waiting,
}

impl Engine {
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
