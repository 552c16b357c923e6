//! How far the NBD server was told that its files have changed: one signal for everything that waits.
//!
//! Only for a server that has to be told. What is told, it knows until it ends; when it comes back it has read everything
//! that was there, but not certainly what was written while it started, so it is told once more.

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

/// What follows when the server was told, or could not be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// The volumes that go on.
    pub(super) waiting: BTreeSet<VolumeId>,
    /// It is to be told once more: something has changed since.
    pub(super) again: bool,
    /// It is to be told once more in a while.
    pub(super) later: Option<Duration>,
}

impl Telling {
    /// A change the server does not know yet.
    pub(super) fn change(&mut self) -> FileChange {
        let change = FileChange(self.last.map_or(1, |FileChange(last)| last + 1));
        self.last = Some(change);
        change
    }

    /// The last change of all.
    pub(super) fn last(&self) -> Option<FileChange> {
        self.last
    }

    /// Whether it knows that change, if there was one.
    pub(super) fn knows(&self, change: Option<FileChange>) -> bool {
        // `None` comes before every change.
        change <= self.told
    }

    /// The volume goes on when the server has been told. Says whether it is to be told now.
    pub(super) fn wait(&mut self, volume: VolumeId) -> bool {
        self.waiting.insert(volume);
        !self.under_way
    }

    /// It is to be told of everything. Says whether that begins now; else it is under way, and done once more after that.
    pub(super) fn begin(&mut self) -> bool {
        self.again = self.under_way;
        !std::mem::replace(&mut self.under_way, true)
    }

    /// The server was told of all changes up to `last`, or could not be.
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
        // What was to be told is still to be told, also when no volume waits for it: until that succeeds there is a timer. (A
        // bad file is looked at by whoever puts it right, and by the volumes that wait.)
        let postponed = matches!(result, Err(NotTold::Helper(_))) && !std::mem::replace(&mut self.postponed, true);
        Told {
            waiting: std::mem::take(&mut self.waiting),
            again: std::mem::take(&mut self.again),
            later: postponed.then(|| pause(self.attempts)),
        }
    }

    /// It is time to tell it once more. Says whether that is still to be done; a server that is down is told when it is back.
    pub(super) fn is_due(&mut self, server_is_up: bool) -> bool {
        self.postponed = false;
        self.failed.is_some() && !self.under_way && server_is_up
    }

    /// The server was started again: it has forgotten what it was told.
    pub(super) fn forget(&mut self) {
        self.told = None;
    }
}

impl NotTold {
    /// Why a volume waits that the server has to be told of.
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

/// Tells the server to read its files, once these are checked.
pub(super) async fn tell(
    check: impl Future<Output = io::Result<Check>>,
    helper: Arc<dyn Helper>,
) -> Result<(), NotTold> {
    // One file that it cannot read would keep it from all new ones, or end it. A check that broke is no leave to go on.
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
    fn what_changes_while_the_server_is_told_is_told_once_more() {
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
    fn a_helper_that_is_silent_is_asked_again_by_one_timer_and_a_bad_file_by_none() {
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
    async fn a_server_whose_files_were_not_checked_is_not_told() {
        let helper: Arc<dyn Helper> = Arc::new(crate::helper_client::HelperClient::new("/nonexistent/socket".into()));
        let broken = tell(async { Err(io::Error::other("no thread")) }, helper.clone()).await;
        assert!(matches!(&broken, Err(NotTold::Files(why)) if why.contains("no thread")), "{broken:?}");
        let checked = tell(async { Ok(Check::default()) }, helper).await;
        assert!(matches!(checked, Err(NotTold::Helper(_))), "the control: it goes on to the helper: {checked:?}");
    }
}
