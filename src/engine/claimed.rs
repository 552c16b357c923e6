//! The state of the folder of claims.

use std::io;
use std::time::Instant;

use super::upkeep::Upkeep;
use crate::claims::Restored;
use crate::folder::Names;

/// The state of the folder of claims.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The names in the folder that are not attachd's.
    pub foreign: Names,
    /// Why the folder cannot be restored, if that fails.
    pub failed: Option<String>,
    /// When the folder is restored next.
    pub(super) upkeep: Upkeep,
}

impl Claimed {
    /// Returns the state at the start.
    pub(super) fn new(restored: &io::Result<Restored>, now: Instant) -> Self {
        let mut claimed = Self::default();
        claimed.learn(restored, now);
        claimed
    }

    /// Records the result of a restoration, and logs what is new.
    pub(super) fn learn(&mut self, restored: &io::Result<Restored>, now: Instant) {
        let (foreign, failed) = match restored {
            Ok(restored) => {
                for (claims, what) in
                    [(&restored.written, "were missing"), (&restored.removed, "belonged to no intent")]
                {
                    if !claims.is_empty() {
                        tracing::warn!("claims {what}: {claims}; repaired");
                    }
                }
                let blocked = &restored.blocked;
                let failed = (!blocked.is_empty())
                    .then(|| format!("something that is no claim of attachd's has the name of wanted ones: {blocked}"));
                (restored.foreign.clone(), failed)
            }
            Err(error) => (self.foreign.clone(), Some(error.to_string())),
        };
        if let Some(why) = failed.as_ref().filter(|why| self.failed.as_ref() != Some(*why)) {
            tracing::error!("the claims cannot be put right: {why}; it is tried again by itself");
        }
        if !foreign.is_empty() && foreign != self.foreign {
            tracing::warn!("the folder of claims holds what attachd did not make: {foreign}; it is left alone");
        }
        self.upkeep.learn(failed.is_none(), false, now);
        (self.foreign, self.failed) = (foreign, failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_restored_is_retried_and_its_known_state_stays() {
        let now = Instant::now();
        let foreign: Names = std::iter::once("notes.txt".to_owned()).collect();
        let mut claimed = Claimed::new(&Ok(Restored { foreign: foreign.clone(), ..Restored::default() }), now);
        assert_eq!((claimed.failed.as_deref(), claimed.upkeep.wake()), (None, None));
        claimed.learn(&Err(io::Error::other("no room")), now);
        assert_eq!((&claimed.foreign, claimed.failed.as_deref()), (&foreign, Some("no room")));
        assert!(claimed.upkeep.wake().is_some());
        let blocked = std::iter::once("0123456789abcdef0123".to_owned()).collect();
        claimed.learn(&Ok(Restored { blocked, ..Restored::default() }), now);
        assert!(claimed.failed.as_ref().is_some_and(|why| why.contains("0123456789abcdef0123")));
        claimed.learn(&Ok(Restored::default()), now);
        assert_eq!((claimed.failed, claimed.upkeep.wake()), (None, None), "the control");
    }
}
