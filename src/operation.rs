//! What a caller asked for and can follow: an operation, as it is kept. [`crate::operations`] carries it out.

mod request;
mod step;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::Steady;
use crate::identity::{OperationId, VmId, VolumeId};
use crate::reason::Code;
pub use request::{
    Attach, CleanUp, Create, Detach, IdempotencyKey, InvalidRequest, Kind, Name, Place, Request, ResourceId, Size,
};
pub use step::{Ending, Flush, Progress, Step};

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// Its place in the order in which they came; only grows.
    pub number: u64,
    /// What was asked for.
    pub request: Request,
    /// The caller's own name for it: asked for again with the same one, it is the answer.
    pub key: Option<IdempotencyKey>,
    /// The user who asked, from the socket's peer credentials.
    pub uid: Option<u32>,
    /// The volume; of a create, as soon as it is known.
    pub volume: Option<VolumeId>,
    /// The VM that it is about, as soon as it is known.
    pub vm: Option<VmId>,
    /// How far it is, for its callers.
    pub state: OperationState,
    /// How far it is, for itself.
    pub progress: Progress,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// What came of it.
    pub response: Option<Response>,
    /// How long it may take, in seconds.
    pub limit_seconds: u32,
    /// When that is over, by the clock that nobody can set.
    pub deadline: Steady,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it was last put on record: since then it is in its step.
    pub updated_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// It has not begun: another one of its volume goes first, or it is just being looked at.
    Pending,
    /// It is under way.
    Executing,
    /// It is done: served, for this host; confirmed by CloudStack and on record, for another VM.
    Completed,
    /// It could not be done.
    Failed,
    /// It was called off before anything was asked of CloudStack.
    Cancelled,
}

impl OperationState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Executing, Self::Completed, Self::Failed, Self::Cancelled];

    /// The name in the API and the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Executing => "executing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing changes about it any more.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for OperationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For programs.
    pub code: Code,
    /// What happened, to what, and what to do next.
    pub message: String,
}

impl Fault {
    /// One with this message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// What came of an operation that was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Response {
    /// The volume.
    pub volume_id: Option<VolumeId>,
    /// The VM that has it, or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<VmId>,
    /// The by-id path of its disk; for another VM what stands for it: `remote-vm-<vm>-<volume>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_path: Option<String>,
    /// Of a cleanup: whether the VM was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_deleted: Option<bool>,
    /// Of what was served here and detached: whether what clients had written was flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush: Option<Flush>,
    /// It was so already.
    #[serde(default)]
    pub adopted: bool,
    /// The same in a sentence.
    pub message: String,
}

/// A volume that CloudStack has attached to another VM, by an operation. It is not served here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    /// Which volume.
    pub volume: VolumeId,
    /// The VM that has it.
    pub vm: VmId,
    /// As its root disk.
    pub root: bool,
    /// The operation that had it attached there.
    pub operation: OperationId,
    /// Since when.
    pub since: Timestamp,
}

impl Placeholder {
    /// What stands in the place of a device path: one for each volume, so that two of one VM do not collide.
    pub fn device_path(&self) -> String {
        remote_path(self.vm, self.volume)
    }
}

/// What stands in the place of a device path, for a volume that another VM has.
pub fn remote_path(vm: VmId, volume: VolumeId) -> String {
    format!("remote-vm-{vm}-{volume}")
}

impl Operation {
    /// Whether something of it may still happen in CloudStack or has to be seen to here, although its caller was answered.
    /// Another operation of the volume waits for that.
    pub fn is_settled(&self) -> bool {
        self.state.is_ended() && !self.progress.unsettled
    }

    /// Whether asking for this is asking for the same once more.
    pub fn is_asked_again_by(&self, request: &Request) -> bool {
        !self.state.is_ended() && self.request == *request
    }
}

#[cfg(test)]
mod tests;
