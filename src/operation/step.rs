//! Where an operation is. What is on record is the step that is being taken: it is put there before, and may be repeated.

use serde::{Deserialize, Serialize};

use super::Fault;
use crate::identity::{JobId, VmId};
use crate::reason::Code;

/// How far an operation is, for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The step it is in.
    pub step: Step,
    /// The id that CloudStack has given to the step's job, if it is not the one that was asked for: an old server chooses it
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_given: Option<JobId>,
    /// It will not be done, for this reason: what it has begun is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<Ending>,
    /// It was so already.
    #[serde(default)]
    pub adopted: bool,
    /// The VM that had the volume when this began: another one that has it later is none of its business.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// Whether what clients had written was flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush: Option<Flush>,
    /// Its caller was answered, and something of it may still happen in CloudStack, or has to be seen to here.
    #[serde(default)]
    pub unsettled: bool,
}

impl Progress {
    /// The beginning.
    pub const fn begin() -> Self {
        Self {
            step: Step::Accepted,
            job_given: None,
            given_up: None,
            adopted: false,
            vm: None,
            flush: None,
            unsettled: false,
        }
    }

    /// The same, in another step.
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

/// A step. The id of a job is chosen before CloudStack is asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "kebab-case")]
pub enum Step {
    /// Nothing was begun.
    Accepted,
    /// CloudStack makes the volume.
    Create {
        /// Its job.
        job: JobId,
        /// Jobs that may have been begun before, and have come to nothing.
        #[serde(default)]
        earlier: Vec<JobId>,
    },
    /// A volume of a create that is given up is deleted.
    DeleteOrphan,
    /// The VM of a test is stopped.
    StopVm {
        /// Its job.
        job: JobId,
    },
    /// The export is taken away.
    Seal,
    /// CloudStack detaches the volume.
    Detach {
        /// Its job.
        job: JobId,
    },
    /// The volume is withdrawn here.
    Release,
    /// The volume is wanted here.
    Intend,
    /// CloudStack attaches it; for this host: until it is served.
    Attach {
        /// Its job.
        job: JobId,
    },
    /// CloudStack deletes the volume.
    Delete,
    /// The VM of a test is deleted.
    DestroyVm {
        /// Its job.
        job: JobId,
    },
    /// The export is given back.
    Unseal,
    /// What was wanted here is wanted no more.
    Withdraw,
}

impl Step {
    /// Its name, for people and programs.
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

    /// The job that CloudStack was, or will be, asked for in it.
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

    /// Whether it can be called off: nothing was asked of CloudStack, and what was done here can be undone.
    pub const fn is_harmless(&self) -> bool {
        matches!(self, Self::Accepted | Self::Seal | Self::Intend)
    }
}

/// How an operation ends that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It failed.
    Failed(Fault),
    /// Its caller has called it off.
    Cancelled,
}

/// Whether what clients had written was flushed to the disk before it was given away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flush {
    /// Yes.
    Done,
    /// The volume was not served.
    NotServed,
    /// No, for this reason.
    Failed(String),
}

/// A fault as the store keeps it.
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
        // Another version's.
        Ok(Self { code: Code::from_name(&code).unwrap_or(Code::Failed), message })
    }
}
