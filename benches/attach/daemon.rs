//! attachd, as the rows that take turns with it have it.

use std::time::Duration;

use anyhow::Result;
use lab::{Api, Attachd, Events, Lab};

use crate::setup;

/// attachd itself, stopped (SIGSTOP) while others have their turn.
pub(crate) struct Daemon {
    pub(crate) attachd: Attachd,
    pub(crate) api: Api,
    /// Opened long before an event: a waiting caller is woken by the daemon's own write.
    pub(crate) events: Events,
}

impl Daemon {
    /// Starts and stops it.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let attachd = setup::start(lab)?;
        let api = attachd.api();
        let events = api.events()?;
        attachd.sigstop()?;
        Ok(Self { attachd, api, events })
    }

    /// Continues it.
    pub(crate) fn wake(&self) -> Result<()> {
        self.attachd.sigcont()
    }

    /// Stops it again.
    pub(crate) fn rest(&self) -> Result<()> {
        self.attachd.sigstop()
    }
}

/// Waits until it has handled the events that it received while it was stopped, and the projection.
pub(crate) fn caught_up() {
    std::thread::sleep(Duration::from_millis(50));
}
