//! An operation: a request that its caller can follow, as it is recorded. [`crate::operations`] carries it out.

mod fault;
pub mod predecessor;
mod request;
mod step;
mod written;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::Steady;
use crate::identity::{OperationId, VmId, VolumeId};
pub use fault::Fault;
pub use request::{
    Attach, CleanUp, Create, Detach, IdempotencyKey, InvalidRequest, Kind, Name, Place, Request, ResourceId, Size,
    Unusable,
};
pub use step::{Ending, Flush, Progress, Step};
pub use written::Written;

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The operation's id.
    pub id: OperationId,
    /// The position in the order in which operations came. It only grows.
    pub number: u64,
    /// The request.
    pub request: Request,
    /// The request as its caller wrote it, if it came by one of the predecessor's routes.
    pub written: Option<Written>,
    /// The caller's idempotency key. A repeated request with the same key is answered with this operation.
    pub key: Option<IdempotencyKey>,
    /// The user who asked, from the socket's peer credentials.
    pub uid: Option<u32>,
    /// The volume. For a create it is set as soon as it is known.
    pub volume: Option<VolumeId>,
    /// The VM of the operation, as soon as it is known.
    pub vm: Option<VmId>,
    /// How far the operation is, for callers.
    pub state: OperationState,
    /// How far the operation is, for its own task.
    pub progress: Progress,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// The result.
    pub response: Option<Response>,
    /// The time limit, in seconds.
    pub limit_seconds: u32,
    /// When the time limit ends, by the clock that nobody can set.
    pub deadline: Steady,
    /// When the operation was accepted.
    pub created_at: Timestamp,
    /// When the operation was last recorded. It has been in its step since then.
    pub updated_at: Timestamp,
    /// When the operation ended.
    pub completed_at: Option<Timestamp>,
}

/// The state of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Not started: an earlier operation of the volume goes first, or the volume is being looked up.
    Pending,
    /// Running.
    Executing,
    /// Succeeded: for this host the volume is served; for another VM CloudStack has confirmed the attach, and it is
    /// recorded.
    Completed,
    /// Failed.
    Failed,
    /// Cancelled before anything was asked of CloudStack.
    Cancelled,
}

impl OperationState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Executing, Self::Completed, Self::Failed, Self::Cancelled];

    /// Returns the name in the API and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Executing => "executing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Returns whether the state is final.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for OperationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The result of an operation that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Response {
    /// The volume.
    pub volume_id: Option<VolumeId>,
    /// The VM that has it, or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<VmId>,
    /// The by-id path of the volume's disk. For another VM it is the placeholder `remote-vm-<vm>-<volume>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_path: Option<String>,
    /// For a cleanup: whether the VM was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_deleted: Option<bool>,
    /// For a detach of a served volume: whether the clients' writes were flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush: Option<Flush>,
    /// Whether nothing had to be done.
    #[serde(default)]
    pub adopted: bool,
    /// The result in a sentence.
    pub message: String,
}

/// A volume that an operation has attached to another VM in CloudStack. This host does not serve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    /// The volume.
    pub volume: VolumeId,
    /// The VM that has it.
    pub vm: VmId,
    /// Whether it is the VM's root disk.
    pub root: bool,
    /// The operation that attached the volume.
    pub operation: OperationId,
    /// Since when the VM has the volume.
    pub since: Timestamp,
}

impl Placeholder {
    /// Returns the text that replaces a device path. Each volume has its own, so that two volumes of one VM do not
    /// collide.
    pub fn device_path(&self) -> String {
        remote_path(self.vm, self.volume)
    }
}

/// Returns the text that replaces a device path, for a volume that another VM has.
pub fn remote_path(vm: VmId, volume: VolumeId) -> String {
    format!("remote-vm-{vm}-{volume}")
}

impl Operation {
    /// Returns whether the operation may still change something in CloudStack or on this host, although its caller
    /// was answered. Another operation of the volume waits for that.
    pub fn is_settled(&self) -> bool {
        self.state.is_ended() && !self.progress.unsettled
    }

    /// Returns whether the request is a repetition of this one.
    pub fn is_asked_again_by(&self, request: &Request) -> bool {
        !self.state.is_ended() && self.request == *request
    }
}

#[cfg(test)]
mod tests;
