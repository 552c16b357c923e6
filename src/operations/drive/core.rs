//! The task of one operation, as its files share it.

use std::sync::Arc;

use super::super::core::Core;
use super::super::registry::Entry;
use super::super::tools::Listener;
use super::calls::UnderWay;
use super::known::Known;
use crate::clock::Steady;
use crate::cloud::Cloud;
use crate::identity::VmId;
use crate::operation::{Attach, Operation, Place, Request};

pub(super) struct Drive {
    pub(super) core: Arc<Core>,
    pub(super) entry: Arc<Entry>,
    pub(super) cloud: Arc<dyn Cloud>,
    /// The operation as it is on record.
    pub(super) operation: Operation,
    pub(super) known: Known,
    /// The call to CloudStack that has no answer yet.
    pub(super) call: Option<UnderWay>,
    pub(super) listener: Listener,
}

impl Drive {
    pub(super) fn now(&self) -> Steady {
        self.core.tools.clock.steady()
    }

    /// Returns this host's own VM. An attach to this host stays with the VM that it has begun with, so CloudStack is not asked
    /// for it again.
    pub(super) async fn own_vm(&self) -> Result<VmId, String> {
        match (&self.operation.request, self.operation.progress.vm) {
            (Request::Attach(Attach { to: Place::Here, .. }), Some(begun)) => Ok(begun),
            _ => self.core.tools.own_vm.find().await,
        }
    }
}
