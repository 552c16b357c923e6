//! How far an operation is. Each step is recorded before it is carried out, and may be repeated.

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::identity::{JobId, VmId};
use crate::reason::Code;

/// How far an operation is: what its task needs to continue after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The present step.
    pub step: Step,
    /// The id that CloudStack has given to the step's job, if it is not the one that was asked for: an old server chooses it
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_given: Option<JobId>,
    /// If set, the operation is given up for this reason, and what it has begun is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<Ending>,
    /// Nothing had to be done: the wanted state existed already.
    #[serde(default)]
    pub adopted: bool,
    /// The VM that had the volume when the operation began. A detach leaves any other VM alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// Whether the clients' writes were flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush: Option<Flush>,
    /// Of a detach: the path that the volume had. When the operation ends, the volume has none any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_path: Option<String>,
    /// The operation has ended for its caller, but its job may still run in CloudStack, or something must still be undone.
    #[serde(default)]
    pub unsettled: bool,
}

impl Progress {
    /// Returns the state of a new operation.
    pub const fn begin() -> Self {
        Self {
            step: Step::Accepted,
            job_given: None,
            given_up: None,
            adopted: false,
            vm: None,
            flush: None,
            device_path: None,
            unsettled: false,
        }
    }

    /// Returns the same progress at another step.
    #[must_use]
    pub fn at(&self, step: Step) -> Self {
        Self { step, job_given: None, ..self.clone() }
    }

    /// The same, with the id that CloudStack has given to the step's job.
    #[must_use]
    pub fn with_job(&self, given: JobId) -> Self {
        Self { job_given: Some(given), ..self.clone() }
    }

    /// The id of the step's job, by which CloudStack knows it.
    pub fn job(&self) -> Option<JobId> {
        self.step.job().map(|asked| self.job_given.unwrap_or(asked))
    }
}

/// A step. The id of a CloudStack job is chosen and recorded before the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "kebab-case")]
pub enum Step {
    /// Accepted; nothing has been done.
    Accepted,
    /// CloudStack creates the volume.
    Create {
        /// CloudStack's job.
        job: JobId,
        /// Jobs of earlier calls, of which no volume has been found.
        #[serde(default)]
        earlier: Vec<JobId>,
    },
    /// The volume of a create that was given up is deleted.
    DeleteOrphan,
    /// CloudStack stops the VM of a test.
    StopVm {
        /// CloudStack's job.
        job: JobId,
    },
    /// The export is removed: the volume is sealed.
    Seal,
    /// CloudStack detaches the volume.
    Detach {
        /// CloudStack's job.
        job: JobId,
    },
    /// The sealed volume is withdrawn on this host.
    Release,
    /// The intent is recorded on this host.
    Intend,
    /// CloudStack attaches the volume. For this host the step lasts until the volume is served.
    Attach {
        /// CloudStack's job.
        job: JobId,
    },
    /// CloudStack deletes the volume.
    Delete,
    /// CloudStack deletes the VM of a test.
    DestroyVm {
        /// CloudStack's job.
        job: JobId,
    },
    /// The seal is removed, so the volume is exported again.
    Unseal,
    /// The operation's own intent is withdrawn.
    Withdraw,
}

impl Step {
    /// Returns the name, for people and programs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Create { .. } => "create",
            Self::DeleteOrphan => "delete-orphan",
            Self::StopVm { .. } => "stop-vm",
            Self::Seal => "seal",
            Self::Detach { .. } => "detach",
            Self::Release => "release",
            Self::Intend => "intend",
            Self::Attach { .. } => "attach",
            Self::Delete => "delete",
            Self::DestroyVm { .. } => "destroy-vm",
            Self::Unseal => "unseal",
            Self::Withdraw => "withdraw",
        }
    }

    /// Returns CloudStack's job of this step, whether it was begun or not.
    pub const fn job(&self) -> Option<JobId> {
        match self {
            Self::Create { job, .. }
            | Self::StopVm { job }
            | Self::Detach { job }
            | Self::Attach { job }
            | Self::DestroyVm { job } => Some(*job),
            _ => None,
        }
    }

    /// Returns whether the operation can be cancelled at this step: nothing was asked of CloudStack, and what was done here can be undone.
    pub const fn is_harmless(&self) -> bool {
        matches!(self, Self::Accepted | Self::Seal | Self::Intend)
    }
}

/// How an operation ends without success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Failed.
    Failed(Fault),
    /// Cancelled by a caller.
    Cancelled,
}

/// Whether the clients' writes were flushed to the disk before it was detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flush {
    /// They were flushed.
    Done,
    /// The volume was not served, so there was nothing to flush.
    NotServed,
    /// The flush failed, for this reason.
    Failed(String),
}

/// A fault in the form in which the store keeps it.
#[derive(Serialize, Deserialize)]
struct Kept {
    code: String,
    message: String,
}

impl Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Kept { code: self.code.name().to_owned(), message: self.message.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Kept { code, message } = Kept::deserialize(deserializer)?;
        // A code of another version.
        Ok(Self { code: Code::from_name(&code).unwrap_or(Code::Failed), message })
    }
}
