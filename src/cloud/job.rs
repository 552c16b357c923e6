//! CloudStack's asynchronous jobs.

use super::error::Refusal;
use crate::identity::{JobId, VolumeId};

/// A job has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its id as CloudStack says it: the one that was chosen.
    pub job: JobId,
    /// The volume that it makes, if it makes one.
    pub volume: Option<VolumeId>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStatus {
    /// It has not ended.
    Running,
    /// It is done.
    Succeeded {
        /// The volume that it was about, if it was about one.
        volume: Option<VolumeId>,
    },
    /// It was refused, or failed: most of what can be wrong with an attach or a detach is said here and not by the call.
    Failed(Refusal),
    /// Somebody has cancelled it, or CloudStack has, after a restart or an hour. What it has done is not said.
    Cancelled,
}
