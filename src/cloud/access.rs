//! The configured CloudStack: its client, and the finder of this host's own VM.

use std::sync::Arc;

use super::{Client, Cloud, CloudSettings, OwnVm, OwnVmFinder, Seen};

/// The configured CloudStack, for all parts that call it or report on it. Clones share one state.
#[derive(Clone)]
pub struct Access {
    client: Arc<Client>,
    own_vm: Arc<OwnVmFinder>,
}

impl Access {
    /// Makes it from the settings; `vm_id` is `[host] vm_id`. Nothing is opened or read yet.
    pub fn new(settings: CloudSettings, vm_id: &str) -> Self {
        let client = Arc::new(Client::new(settings));
        let own_vm = Arc::new(OwnVmFinder::new(client.clone(), vm_id));
        Self { client, own_vm }
    }

    /// Returns the client.
    pub fn cloud(&self) -> Arc<dyn Cloud> {
        self.client.clone()
    }

    /// Returns the finder of this host's own VM.
    pub fn own_vm(&self) -> &Arc<OwnVmFinder> {
        &self.own_vm
    }

    /// Returns what the calls so far have shown. Makes no call.
    pub fn has_seen(&self) -> (Seen, Option<OwnVm>) {
        (self.client.has_seen(), self.own_vm.last_found())
    }

    /// Uses other settings from the next call on.
    pub fn change(&self, settings: CloudSettings, vm_id: &str) {
        self.client.change(settings);
        self.own_vm.reconfigure(vm_id);
    }
}
