//! The section `[history]`.

use super::changes::Changes;
use super::text::TomlSection;

/// The settings about deleting old data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistorySettings {
    /// `days`: how long the timeline of a withdrawn volume is kept.
    pub days: u32,
}

impl Default for HistorySettings {
    fn default() -> Self {
        Self { days: 90 }
    }
}

impl HistorySettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("days", &mut self.days);
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { days } = self;
        changes.at_once("[history] days", *days != new.days);
    }
}
