//! The engine itself: its state and its tools. The files above this one use these.

use tokio::sync::mpsc;

use super::input::Input;
use super::steps::Steps;
use super::story::Story;
use super::turns::Turns;
use super::waiting::Waiting;
use super::world::World;
use crate::export::server::Server;

/// The engine. [`Engine::run`] consumes it.
pub struct Engine {
    pub(super) world: World,
    /// Starts the steps that run outside, and holds the tools.
    pub(super) steps: Steps,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) story: Story,
    pub(super) epochs: u64,
    pub(super) turns: Turns,
    pub(super) waiting: Waiting,
}

impl Engine {
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epochs += 1;
        self.epochs
    }

    pub(super) fn server_is_up(&self) -> bool {
        matches!(self.world.server, Some(Server::Up { .. }))
    }
}
