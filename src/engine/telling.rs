//! Tracks which changes of its files the NBD server was notified of. One signal covers all changes that wait.
//!
//! This is only for a server that must be notified. The server knows what it was notified of until it ends. When it
//! is back it has read all files, but perhaps not those written while it started. So it is notified once more.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::pause::pause;
use super::tools::Helper;
use crate::export::backend::Check;
use crate::helper_client::HelperError;
use crate::identity::VolumeId;
use crate::reason::Code;
use crate::volume::Reason;

/// A change to the server's files, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileChange(u64);

/// What the server has been notified of.
#[derive(Debug, Default)]
pub struct Telling {
    /// The last change.
    last: Option<FileChange>,
    /// The server knows all changes up to this one.
    told: Option<FileChange>,
    under_way: bool,
    /// Whether something changed since the running notification began.
    again: bool,
    /// How often notifying failed since the last success, and whether it is retried by itself.
    attempts: u32,
    postponed: bool,
    /// Volumes that continue when the server is notified.
    waiting: BTreeSet<VolumeId>,
    /// Why the last notification failed.
    pub failed: Option<NotTold>,
}

/// Why a server could not be notified.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotTold {
    /// The server could not have read its files.
    #[error("{0}")]
    Files(String),
    /// The helper could not notify the server.
    #[error("{0}")]
    Helper(HelperError),
}

/// What follows after a notification succeeded or failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// The volumes that continue.
    pub(super) waiting: BTreeSet<VolumeId>,
    /// Whether the server must be notified again, because something has changed since.
    pub(super) again: bool,
    /// After which time the server must be notified again, if so.
    pub(super) later: Option<Duration>,
}

impl Telling {
    /// Adds a change that the server does not know yet.
    pub(super) fn change(&mut self) -> FileChange {
        let change = FileChange(self.last.map_or(1, |FileChange(last)| last + 1));
        self.last = Some(change);
        change
    }

    /// Returns the last change.
    pub(super) fn last(&self) -> Option<FileChange> {
        self.last
    }

    /// Returns whether the server knows that change, if there was one.
    pub(super) fn knows(&self, change: Option<FileChange>) -> bool {
        // `None` comes before every change.
        change <= self.told
    }

    /// Makes the volume wait for the notification. Returns whether the notification must start now.
    pub(super) fn wait(&mut self, volume: VolumeId) -> bool {
        self.waiting.insert(volume);
        !self.under_way
    }

    /// Asks for a notification of everything. Returns whether it starts now. If one is running, another follows it.
    pub(super) fn begin(&mut self) -> bool {
        self.again = self.under_way;
        !std::mem::replace(&mut self.under_way, true)
    }

    /// Records that the server was notified of all changes up to `last`, or that this failed.
    pub(super) fn told(&mut self, last: Option<FileChange>, result: &Result<(), NotTold>) -> Told {
        self.under_way = false;
        match result {
            Ok(()) => {
                self.told = self.told.max(last);
                self.failed = None;
                self.attempts = 0;
            }
            Err(why) => {
                if self.failed.is_none() {
                    tracing::warn!("the NBD server cannot be told of new exports: {why}");
                }
                self.failed = Some(why.clone());
                self.attempts += 1;
            }
        }
        // The changes are still to be notified even if no volume waits for them, so a timer runs until that succeeds.
        // (A bad file is checked again by whoever repairs it, and for the volumes that wait.)
        let postponed = matches!(result, Err(NotTold::Helper(_))) && !std::mem::replace(&mut self.postponed, true);
        Told {
            waiting: std::mem::take(&mut self.waiting),
            again: std::mem::take(&mut self.again),
            later: postponed.then(|| pause(self.attempts)),
        }
    }

    /// Handles the end of the timer. Returns whether a notification is still due. A server that is down is notified
    /// when it is back.
    pub(super) fn is_due(&mut self, server_is_up: bool) -> bool {
        self.postponed = false;
        self.failed.is_some() && !self.under_way && server_is_up
    }

    /// Drops what the server was notified of, because it was restarted.
    pub(super) fn forget(&mut self) {
        self.told = None;
    }
}

impl NotTold {
    /// Returns why a volume waits of which the server must be notified.
    pub(super) fn reason(&self, server_unit: &str) -> Reason {
        match self {
            Self::Files(why) => {
                Reason::new(Code::ServerFiles, format!("the NBD server would not take up its files: {why}"))
            }
            Self::Helper(why) => {
                let message = format!("the NBD server cannot be told of the export: {why}");
                Reason::about(Code::ServerNotTold, server_unit, message)
            }
        }
    }
}

/// Notifies the server to read its files, after these were checked.
pub(super) async fn tell(
    check: impl Future<Output = io::Result<Check>>,
    helper: Arc<dyn Helper>,
) -> Result<(), NotTold> {
    // One file that the server cannot read would keep it from all new ones, or end it. A check that failed does not
    // permit the notification.
    let refused = match check.await {
        Ok(check) => check.refused,
        Err(error) => Some(format!("they cannot be checked: {error}")),
    };
    match refused {
        Some(why) => Err(NotTold::Files(why)),
        None => helper.reload().await.map_err(NotTold::Helper),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Result<(), NotTold> {
        Err(NotTold::Helper(HelperError::Died("x".to_owned())))
    }

    #[test]
    fn a_change_during_a_notification_causes_another_one() {
        let mut telling = Telling::default();
        let first = telling.change();
        assert!(telling.begin());
        let last = telling.last();
        let second = telling.change();
        assert!(!telling.begin(), "one at a time");
        let told = telling.told(last, &Ok(()));
        assert!(told.again && told.later.is_none(), "{told:?}");
        assert!(telling.knows(None) && telling.knows(Some(first)) && !telling.knows(Some(second)));
        assert!(telling.begin());
        assert!(!telling.told(telling.last(), &Ok(())).again, "the control");
        assert!(telling.knows(Some(second)));
        telling.forget();
        assert!(telling.knows(None) && !telling.knows(Some(first)), "a server that was started again");
    }

    #[test]
    fn a_silent_helper_is_asked_again_by_one_timer_and_a_bad_file_sets_no_timer() {
        let mut telling = Telling::default();
        telling.change();
        let id: VolumeId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        assert!(telling.wait(id) && telling.begin());
        assert!(!telling.wait(id), "it is under way");
        let told = telling.told(telling.last(), &silent());
        assert_eq!((told.waiting, told.later), (BTreeSet::from([id]), Some(pause(1))));
        assert!(telling.begin());
        assert_eq!(telling.told(telling.last(), &silent()).later, None, "there is a timer");
        assert!(!telling.is_due(false), "a server that is down is told when it is back");
        assert!(telling.is_due(true) && telling.begin() && !telling.is_due(true));
        assert_eq!(telling.told(telling.last(), &silent()).later, Some(pause(3)));
        assert!(telling.begin());
        assert_eq!(telling.told(telling.last(), &Err(NotTold::Files("x".to_owned()))).later, None);
        assert!(telling.begin());
        telling.told(telling.last(), &Ok(()));
        assert!(!telling.is_due(true), "it was told");
    }

    #[tokio::test]
    async fn a_server_whose_files_were_not_checked_is_not_notified() {
        let helper: Arc<dyn Helper> = Arc::new(crate::helper_client::HelperClient::new("/nonexistent/socket".into()));
        let broken = tell(async { Err(io::Error::other("no thread")) }, helper.clone()).await;
        assert!(matches!(&broken, Err(NotTold::Files(why)) if why.contains("no thread")), "{broken:?}");
        let checked = tell(async { Ok(Check::default()) }, helper).await;
        assert!(matches!(checked, Err(NotTold::Helper(_))), "the control: it goes on to the helper: {checked:?}");
    }
}
