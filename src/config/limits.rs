//! The section `[limits]`.

use super::changes::Changes;
use super::text::TomlSection;

/// The limits on the number of intents. Each intent takes about a kilobyte of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `intents`: the limit for all users together.
    pub intents: u32,
    /// `intents_per_user`: the limit for each user but root.
    pub intents_per_user: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { intents: 100_000, intents_per_user: 50_000 }
    }
}

impl Limits {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("intents", &mut self.intents);
        section.set("intents_per_user", &mut self.intents_per_user);
    }

    pub(super) fn compare(self, new: Self, changes: &mut Changes) {
        let Self { intents, intents_per_user } = self;
        changes.at_once("[limits] intents", intents != new.intents);
        changes.at_once("[limits] intents_per_user", intents_per_user != new.intents_per_user);
    }
}
