//! The section `[host]`.

use super::changes::Changes;
use super::text::TomlSection;

/// This host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostSettings {
    /// `vm_id`: its own VM in CloudStack, for intents that name none; empty while unknown.
    pub vm_id: String,
}

impl HostSettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        section.set("vm_id", &mut self.vm_id);
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { vm_id } = self;
        changes.at_once("[host] vm_id", *vm_id != new.vm_id);
    }
}
