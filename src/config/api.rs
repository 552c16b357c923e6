//! The section `[api]`.

use std::path::PathBuf;

use super::changes::Changes;
use super::text::TomlSection;

/// The settings of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// `socket`: the path of the API's Unix socket.
    pub socket: PathBuf,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self { socket: "/run/attachd/attachd.sock".into() }
    }
}

impl ApiSettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("socket", &mut self.socket);
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { socket } = self;
        changes.restart("[api] socket", *socket != new.socket);
    }
}
