//! CloudStack's asynchronous jobs.

use super::error::Refusal;
use crate::identity::{JobId, VolumeId};

/// A job has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its id: the one that the caller has chosen, or, from an old server, another one.
    pub job: JobId,
    /// The volume that it makes, if it makes one.
    pub volume: Option<VolumeId>,
}

/// The status of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStatus {
    /// It has not ended.
    Running,
    /// It is done.
    Succeeded {
        /// The volume that it was about, if it was about one.
        volume: Option<VolumeId>,
    },
    /// It failed. Most refusals of an attach or a detach come here and not as the answer to the call.
    Failed(Refusal),
    /// It was cancelled, by a user or by CloudStack (after a restart, or after an hour). It may have done a part of its work.
    Cancelled,
}
