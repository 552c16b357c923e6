//! What is known at a moment, and what can follow from it. [`super::next`] goes from the one to the other.

use super::tools::Here;
use crate::clock::Steady;
use crate::cloud::{CallError, CloudVm, CloudVolume, JobStatus, NewVolume, Refusal};
use crate::identity::{JobId, OperationId, VmId, VolumeId};
use crate::operation::{Fault, OperationState, Progress, Response};

/// What is known.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) now: Steady,
    /// Which VM this host is, or why that is not known.
    pub(super) own_vm: Result<VmId, String>,
    /// The operation of the same volume that goes first.
    pub(super) waits_for: Option<OperationId>,
    /// Its caller wants it no more.
    pub(super) called_off: bool,
    /// The id of a job that nothing has had.
    pub(super) new_job: JobId,
    /// What CloudStack says of the volume: the judge of everything that was asked of it.
    pub(super) volume: Seen<Option<CloudVolume>>,
    /// What it says of a name.
    pub(super) named: Seen<Named>,
    /// What it says of the VM of a test.
    pub(super) vm: Seen<Option<CloudVm>>,
    /// What it says of the step's job.
    pub(super) job: Seen<Option<JobStatus>>,
    /// How often that was asked.
    pub(super) polls: u32,
    /// What is known of the step's call.
    pub(super) call: Call,
    /// When that came to be known.
    pub(super) call_at: Steady,
    /// What came of what was done to this host's volume in this step.
    pub(super) done: Option<Result<(), Fault>>,
    /// When that failed and is to be tried again.
    pub(super) again: Option<Steady>,
    /// The volume, as this host has it.
    pub(super) here: Option<Here>,
    /// Since when its disk is refused.
    pub(super) refused_since: Option<Steady>,
    /// The VM that an operation had the volume attached to.
    pub(super) placeholder: Option<VmId>,
}

/// An answer of CloudStack's to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen<T> {
    /// It was not asked since something was done that may have changed it.
    NotAsked,
    /// It was, then.
    At(Steady, T),
    /// It could not be, and is to be asked again then.
    Failed { why: CallError, again: Steady },
}

/// The volume of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) volume: Option<CloudVolume>,
}

/// A call that changes something in CloudStack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// It may have been made before a restart.
    Unknown,
    /// It was not.
    NotMade,
    /// It is being made, and has no answer yet.
    UnderWay,
    /// It was made and surely not carried out; it may be made again then.
    NotTaken { why: CallError, again: Steady },
    /// CloudStack has taken it, and named the job and the volume that it makes, if it has these.
    Taken { job: Option<JobId>, volume: Option<VolumeId> },
    /// CloudStack has refused it.
    Refused(Refusal),
    /// It may have been carried out. CloudStack is to be asked then.
    Unclear { why: CallError, again: Steady },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask CloudStack.
    Look(Look),
    /// Put this on record: the next step, say. The volume, when it has become known.
    Record(Box<Progress>, Option<VolumeId>),
    /// Put it on record that the volume is wanted on this host, and this step, in one transaction.
    Intend(VolumeId, Box<Progress>),
    /// Take the step that is on record: have CloudStack change something.
    Act(Act),
    /// Take the step that is on record: do something on this host.
    Here(HereAct),
    /// Wait, until then at most, until something happens.
    Wait(Option<Steady>),
    /// Put the end on record.
    End(Box<End>),
    /// Nothing is still to come of it.
    Settled,
}

impl Next {
    /// See [`Next::Record`].
    pub(super) fn record(progress: Progress, volume: Option<VolumeId>) -> Self {
        Self::Record(Box::new(progress), volume)
    }
}

/// A question to CloudStack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    Volume(VolumeId),
    Named(String),
    Vm(VmId),
    Job(JobId),
}

/// A change in CloudStack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Create {
        job: JobId,
        what: Box<NewVolume>,
    },
    Attach {
        job: JobId,
        volume: VolumeId,
        vm: VmId,
        root: bool,
    },
    Detach {
        job: JobId,
        volume: VolumeId,
    },
    Delete(VolumeId),
    /// Of a create that was asked for twice.
    DeleteStray(VolumeId),
    StopVm {
        job: JobId,
        vm: VmId,
        force: bool,
    },
    DestroyVm {
        job: JobId,
        vm: VmId,
    },
}

/// A change on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HereAct {
    Intend(VolumeId),
    Withdraw(VolumeId),
    Seal { volume: VolumeId, force: bool },
    Unseal(VolumeId),
    Release(VolumeId),
}

/// An end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) state: OperationState,
    pub(super) fault: Option<Fault>,
    pub(super) response: Option<Response>,
    /// Where the volume is.
    pub(super) placed: Placed,
    /// Something is still to come.
    pub(super) unsettled: bool,
}

/// What becomes of the record that another VM has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// Nothing.
    AsBefore,
    /// It has.
    At { vm: VmId, root: bool },
    /// It has not.
    Nowhere,
}
