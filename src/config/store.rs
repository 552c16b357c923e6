//! The section `[store]`.

use std::path::PathBuf;

use super::changes::Changes;
use super::text::TomlSection;

/// The settings about durable data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// `path`: the `SQLite` file.
    pub path: PathBuf,
    /// `claims`: the folder of claims.
    pub claims: PathBuf,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { path: "/var/lib/attachd/attachd.db".into(), claims: "/var/lib/attachd/claims".into() }
    }
}

impl StoreSettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("path", &mut self.path);
        section.set("claims", &mut self.claims);
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { path, claims } = self;
        changes.restart("[store] path", *path != new.path);
        changes.restart("[store] claims", *claims != new.claims);
    }
}
