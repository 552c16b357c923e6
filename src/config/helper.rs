//! The section `[helper]`.

use std::path::PathBuf;

use super::changes::Changes;
use super::text::TomlSection;

/// The settings about attachd-helper, the privileged program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperSettings {
    /// `socket`: the path of the helper's socket.
    pub socket: PathBuf,
}

impl Default for HelperSettings {
    fn default() -> Self {
        Self { socket: "/run/attachd/helper.sock".into() }
    }
}

impl HelperSettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("socket", &mut self.socket);
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { socket } = self;
        changes.restart("[helper] socket", *socket != new.socket);
    }
}
