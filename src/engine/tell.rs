//! Telling the NBD server that its files have changed: one signal for everything that waits.
//!
//! Only for a server that has to be told. What is told, it knows until it ends; when it comes back it has read everything
//! that was there, but not certainly what was written while it started, so it is told once more.

use std::collections::BTreeSet;

use super::Engine;
use super::input::Input;
use super::settle::pause;
use crate::helper_client::HelperError;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::volume::Reason;

/// A change to the server's files, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileChange(u64);

/// How far the server has been told.
#[derive(Debug, Default)]
pub struct Telling {
    /// The last change.
    last: Option<FileChange>,
    /// The server knows all changes up to this one.
    told: Option<FileChange>,
    under_way: bool,
    /// Something changed since the one that is under way began.
    again: bool,
    /// How often it could not be told since it was the last time, and whether it is to be tried again by itself.
    attempts: u32,
    postponed: bool,
    /// Volumes that go on when it is told.
    waiting: BTreeSet<VolumeId>,
    /// Why it could not be told the last time.
    pub failed: Option<NotTold>,
}

/// Why a server could not be told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotTold {
    /// It would not have understood.
    #[error("{0}")]
    Files(String),
    /// Nobody could tell it.
    #[error("{0}")]
    Helper(HelperError),
}

impl Telling {
    /// A change the server does not know yet.
    pub(super) fn change(&mut self) -> FileChange {
        let change = FileChange(self.last.map_or(1, |FileChange(last)| last + 1));
        self.last = Some(change);
        change
    }

    /// Whether it knows that change, if there was one.
    pub(super) fn knows(&self, change: Option<FileChange>) -> bool {
        // `None` comes before every change.
        change <= self.told
    }
}

impl Engine {
    /// Takes note of a change to a volume's files that the server must be told of.
    pub(super) fn changed(&mut self, id: VolumeId) {
        if !self.tools.backend.must_be_told() {
            return;
        }
        let change = self.world.telling.change();
        if let Some(volume) = self.world.volume_mut(id) {
            volume.change = Some(change);
        }
        if self.server_is_up() {
            self.tell_server();
        }
    }

    /// The volume goes on when the server has been told.
    pub(super) fn wait_for_telling(&mut self, id: VolumeId) {
        self.world.telling.waiting.insert(id);
        if !self.world.telling.under_way {
            self.tell_server();
        }
    }

    /// Tells the server everything, outside.
    pub(super) fn tell_server(&mut self) {
        let telling = &mut self.world.telling;
        telling.again = telling.under_way;
        if std::mem::replace(&mut telling.under_way, true) {
            return;
        }
        let last = telling.last;
        let (backend, helper) = (self.tools.backend.clone(), self.tools.helper.clone());
        let check = self.work(move || backend.check());
        let step = async move {
            // One file that it cannot read would keep it from all new ones, or end it.
            let checked = check.await;
            // A check that broke is no leave to go on.
            let refused =
                checked.map_or_else(|error| Some(format!("they cannot be checked: {error}")), |check| check.refused);
            match refused {
                Some(why) => Err(NotTold::Files(why)),
                None => helper.reload().await.map_err(NotTold::Helper),
            }
        };
        self.outside("step.tell", step, move |result| {
            let result = result.unwrap_or_else(|died| Err(NotTold::Helper(HelperError::Died(died.to_string()))));
            Input::Told { last, result }
        });
    }

    pub(super) fn told(&mut self, last: Option<FileChange>, result: &Result<(), NotTold>) {
        let telling = &mut self.world.telling;
        telling.under_way = false;
        let again = std::mem::take(&mut telling.again);
        let waiting = std::mem::take(&mut telling.waiting);
        match &result {
            Ok(()) => {
                telling.told = telling.told.max(last);
                telling.failed = None;
                telling.attempts = 0;
            }
            Err(why) => {
                if telling.failed.is_none() {
                    tracing::warn!("the NBD server cannot be told of new exports: {why}");
                }
                telling.failed = Some(why.clone());
                telling.attempts += 1;
            }
        }
        if matches!(result, Err(NotTold::Helper(_))) {
            self.tell_later();
        }
        if again {
            self.tell_server();
        }
        if let Err(why) = &result {
            for id in &waiting {
                self.trouble(*id, reason(why, self.tools.server_unit));
            }
        }
        self.settle_some(waiting.into_iter().collect(), None);
    }

    /// What was to be told is still to be told, also when no volume waits for it: until that succeeds there is a timer. (A
    /// bad file is looked at by whoever puts it right, and by the volumes that wait.)
    fn tell_later(&mut self) {
        let telling = &mut self.world.telling;
        if std::mem::replace(&mut telling.postponed, true) {
            return;
        }
        let wait = pause(telling.attempts);
        self.later(wait, Input::TellAgain);
    }

    pub(super) fn tell_again(&mut self) {
        let telling = &mut self.world.telling;
        telling.postponed = false;
        // A server that is down is told when it is back.
        if telling.failed.is_some() && !telling.under_way && self.server_is_up() {
            self.tell_server();
        }
    }

    /// The server was started again: it has forgotten what it was told.
    pub(super) fn tell_anew(&mut self) {
        if self.tools.backend.must_be_told() {
            self.world.telling.told = None;
            self.tell_server();
        }
    }
}

fn reason(why: &NotTold, unit: &str) -> Reason {
    match why {
        NotTold::Files(why) => {
            Reason::new(Code::ServerFiles, format!("the NBD server would not take up its files: {why}"))
        }
        NotTold::Helper(why) => {
            Reason::about(Code::ServerNotTold, unit, format!("the NBD server cannot be told of the export: {why}"))
        }
    }
}
