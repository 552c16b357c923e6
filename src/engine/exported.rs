//! The state of the folders that the NBD server reads.

use std::time::Instant;

use super::upkeep::Upkeep;
use crate::folder::Names;

/// The state of these folders.
#[derive(Debug, Default)]
pub struct Exported {
    /// Names in the folders that attachd did not make.
    pub foreign: Names,
    /// Why nothing can be published, or why what is published cannot be read, if so.
    pub failed: Option<String>,
    /// What is exported and should not be, one sentence each.
    pub(super) stuck: Names,
    /// When the folders are listed next.
    pub(super) upkeep: Upkeep,
}

impl Exported {
    /// Records the names that attachd did not make.
    pub(super) fn found_foreign(&mut self, foreign: Names) {
        if !foreign.is_empty() && foreign != self.foreign {
            tracing::warn!("the NBD server's folders hold what attachd did not make, and it offers: {foreign}");
        }
        self.foreign = foreign;
    }

    /// Records the result of a listing, and logs what is new. `more`: there were more strays than one listing
    /// removes. Returns true if the folders can be used again after they could not.
    pub(super) fn learn(&mut self, failed: Option<String>, stuck: Names, more: bool, now: Instant) -> bool {
        if let Some(why) = failed.as_ref().filter(|why| self.failed.as_ref() != Some(*why)) {
            tracing::error!("the folder of exports: {why}; it is tried again by itself");
        }
        if !stuck.is_empty() && stuck != self.stuck {
            tracing::error!("{stuck}; it is tried again by itself, or remove it by hand");
        }
        let healed = self.failed.is_some() && failed.is_none();
        self.upkeep.learn(failed.is_none() && stuck.is_empty(), more && stuck.is_empty(), now);
        (self.failed, self.stuck) = (failed, stuck);
        healed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_folders_are_reported_once_and_stuck_exports_are_retried() {
        let (mut exported, now) = (Exported::default(), Instant::now());
        assert!(!exported.learn(None, Names::default(), false, now) && exported.upkeep.wake().is_none());
        assert!(!exported.learn(Some("away".to_owned()), Names::default(), false, now));
        assert!(exported.upkeep.wake().is_some());
        assert!(exported.learn(None, Names::default(), false, now));
        assert!(!exported.learn(None, Names::default(), false, now), "the control");
        let stuck: Names = std::iter::once("an export".to_owned()).collect();
        exported.learn(None, stuck.clone(), true, now);
        assert!(
            exported.upkeep.wake().is_some() && !exported.upkeep.again(),
            "not at once, for nothing would come of it"
        );
        exported.learn(None, Names::default(), true, now);
        assert!(exported.upkeep.again(), "the rest of very many");
    }
}
