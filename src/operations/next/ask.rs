//! The questions to CloudStack. Each function returns the answer, or the next thing to do to get it.

use std::time::Duration;

use jiff::SignedDuration;

use super::outcome::fail;
use crate::clock::Steady;
use crate::cloud::{CallError, CloudVm, CloudVolume, JobStatus, Refusal, RefusalKind};
use crate::identity::{VmId, VolumeId};
use crate::operation::{Fault, Operation};
use crate::operations::facts::{Act, Call, Facts, Look, Next, Seen};
use crate::reason::Code;

/// The maximum age of an answer that a decision is based on.
const FRESH: SignedDuration = SignedDuration::from_secs(5);

/// The pause before asking again for something that CloudStack is changing by itself.
pub(super) const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(1);

/// The first and the longest pause between two questions for a job.
const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How a job has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// It succeeded. The volume that it created, if CloudStack named one.
    Done(Option<VolumeId>),
    /// CloudStack refused it, in the call or in the job.
    Refused(Refusal),
    /// It was cancelled in CloudStack.
    Cancelled,
    /// CloudStack accepted the call and does not know the job any more.
    Lost,
    /// CloudStack does not know the job: the call has probably not arrived.
    NotThere,
}

impl JobEnd {
    /// Returns the fault of an operation that did not reach its goal by this job.
    pub(super) fn fault(&self, what: &str) -> Fault {
        match self {
            Self::Done(_) => Fault::new(
                Code::CloudContradicts,
                format!(
                    "CloudStack said that {what} was done, and shows that it is not; look at its events and ask again"
                ),
            ),
            Self::Refused(refusal) => {
                let code = match refusal.kind {
                    RefusalKind::NotLetIn => Code::CloudNotLetIn,
                    _ => Code::CloudRefused,
                };
                Fault::new(code, format!("CloudStack refuses {what}: {refusal}"))
            }
            Self::Cancelled => Fault::new(
                Code::JobCancelled,
                format!(
                    "CloudStack's job for {what} was cancelled (by an administrator, by a restart, or after an hour); ask again"
                ),
            ),
            Self::Lost | Self::NotThere => Fault::new(
                Code::CloudContradicts,
                format!(
                    "CloudStack took the call for {what}, and knows nothing of its job; look at its events and ask again"
                ),
            ),
        }
    }
}

/// Returns the last answer if it is not older than [`FRESH`].
fn seen<'f, T>(facts: &Facts, seen: &'f Seen<T>, look: Look) -> Result<&'f T, Next> {
    match seen {
        Seen::At(at, answer) if facts.now.since(*at) <= FRESH => Ok(answer),
        Seen::Failed { again, .. } if facts.now < *again => Err(Next::Wait(Some(*again))),
        Seen::At(..) | Seen::NotAsked | Seen::Failed { .. } => Err(Next::Look(look)),
    }
}

/// Returns the volume as CloudStack shows it. A deleted volume is `None`.
pub(super) fn volume(facts: &Facts, id: VolumeId) -> Result<Option<&CloudVolume>, Next> {
    let volume = seen(facts, &facts.volume, Look::Volume(id))?;
    Ok(volume.as_ref().filter(|volume| !volume.state.is_gone()))
}

/// The same before the first step. An error that will not go away by itself ends the operation at once.
pub(super) fn volume_first<'f>(
    operation: &Operation,
    facts: &'f Facts,
    id: VolumeId,
) -> Result<Option<&'f CloudVolume>, Next> {
    match &facts.volume {
        Seen::Failed { why, .. } if is_final(why) => Err(fail(operation, facts, code_of(why), why.to_string())),
        _ => volume(facts, id),
    }
}

/// Returns the volume with this name.
pub(super) fn named<'f>(facts: &'f Facts, name: &str) -> Result<Option<&'f CloudVolume>, Next> {
    let look = || Look::Named(name.to_owned());
    match seen(facts, &facts.named, look())? {
        named if named.name == name => Ok(named.volume.as_ref().filter(|volume| !volume.state.is_gone())),
        _ => Err(Next::Look(look())),
    }
}

/// Returns the VM as CloudStack shows it. A deleted VM is `None`.
pub(super) fn vm(facts: &Facts, id: VmId) -> Result<Option<&CloudVm>, Next> {
    let vm = seen(facts, &facts.vm, Look::Vm(id))?;
    let is_gone = |vm: &&CloudVm| matches!(&vm.state, crate::cloud::VmState::Other(state) if ["Destroyed", "Expunging"].contains(&state.as_str()));
    Ok(vm.as_ref().filter(|vm| !is_gone(vm)))
}

/// Returns the wait before, or the question for, something that changes by itself.
pub(super) fn again<T>(facts: &Facts, seen: &Seen<T>, look: Look) -> Next {
    match seen {
        Seen::At(at, _) if facts.now < at.after(LOOK_AGAIN) => Next::Wait(Some(at.after(LOOK_AGAIN))),
        _ => Next::Look(look),
    }
}

/// Returns how the job of the present step has ended. `call` makes it, if it was not made; without one it is not made any more.
pub(super) fn job(operation: &Operation, facts: &Facts, call: Option<Act>) -> Result<JobEnd, Next> {
    let Some(job) = operation.progress.job() else { return Ok(JobEnd::NotThere) };
    let not_there = match &facts.call {
        Call::NotMade => return call.map_or(Ok(JobEnd::NotThere), |call| Err(Next::Act(call))),
        Call::UnderWay => return Err(Next::Wait(None)),
        Call::NotTaken { again, .. } => {
            let Some(call) = call else { return Ok(JobEnd::NotThere) };
            return Err(if facts.now < *again { Next::Wait(Some(*again)) } else { Next::Act(call) });
        }
        Call::Unclear { again, .. } if facts.now < *again => return Err(Next::Wait(Some(*again))),
        Call::Unclear { .. } | Call::Unknown => JobEnd::NotThere,
        // A refused call may also have been made before: then its id was used already.
        Call::Refused(refusal) => JobEnd::Refused(refusal.clone()),
        // An old server gives the job an id of its own. It is on record before it is asked for.
        Call::Taken { job: Some(given), .. } if *given != job => {
            return Err(Next::record(operation.progress.with_job(*given), None));
        }
        Call::Taken { .. } => JobEnd::Lost,
    };
    let poll = |at: Steady| {
        let again = at.after(pause(facts.polls));
        if facts.now < again { Next::Wait(Some(again)) } else { Next::Look(Look::Job(job)) }
    };
    match &facts.job {
        Seen::NotAsked if matches!(facts.call, Call::Taken { .. }) => Err(poll(facts.call_at)),
        Seen::At(at, Some(JobStatus::Running)) => Err(poll(*at)),
        Seen::Failed { again, .. } if facts.now < *again => Err(Next::Wait(Some(*again))),
        Seen::NotAsked | Seen::Failed { .. } => Err(Next::Look(Look::Job(job))),
        Seen::At(_, Some(JobStatus::Succeeded { volume })) => Ok(JobEnd::Done(*volume)),
        Seen::At(_, Some(JobStatus::Failed(refusal))) => Ok(JobEnd::Refused(refusal.clone())),
        Seen::At(_, Some(JobStatus::Cancelled)) => Ok(JobEnd::Cancelled),
        Seen::At(_, None) => Ok(not_there),
    }
}

fn pause(polls: u32) -> SignedDuration {
    let pause = (POLL.0 * (1 << polls.min(10))).min(POLL.1);
    SignedDuration::try_from(pause).unwrap_or(LOOK_AGAIN)
}

/// Returns the last answer, whatever its age.
pub(super) fn last<T>(seen: &Seen<T>) -> Option<&T> {
    match seen {
        Seen::At(_, answer) => Some(answer),
        Seen::NotAsked | Seen::Failed { .. } => None,
    }
}

/// Describes what keeps the operation from continuing.
pub(super) fn trouble(facts: &Facts) -> Option<String> {
    let call = match &facts.call {
        Call::NotTaken { why, .. } | Call::Unclear { why, .. } => Some(why),
        _ => None,
    };
    let seen = [failure(&facts.volume), failure(&facts.job), failure(&facts.vm), failure(&facts.named), call];
    let done = facts.done.as_ref().and_then(|done| done.as_ref().err());
    let seen = seen.into_iter().flatten().next();
    let refused = match &facts.call {
        Call::Refused(refusal) => Some(CallError::Refused(refusal.clone())),
        _ => None,
    };
    let seen = seen.map(ToString::to_string).or_else(|| refused.map(|error| error.to_string()));
    seen.or_else(|| done.map(ToString::to_string))
}

fn failure<T>(seen: &Seen<T>) -> Option<&CallError> {
    match seen {
        Seen::Failed { why, .. } => Some(why),
        Seen::NotAsked | Seen::At(..) => None,
    }
}

/// Returns whether the same call would fail in the same way a moment later.
fn is_final(why: &CallError) -> bool {
    matches!(why, CallError::Refused(_) | CallError::NotUnderstood { .. } | CallError::NotAble { .. })
}

pub(super) fn code_of(why: &CallError) -> Code {
    match why {
        CallError::Refused(refusal) if refusal.kind == RefusalKind::NotLetIn => Code::CloudNotLetIn,
        CallError::Refused(_) => Code::CloudRefused,
        _ => Code::CloudUnreachable,
    }
}

/// Returns the result of what was done on this host. `todo` does it.
pub(super) fn done(facts: &Facts, todo: Next) -> Result<&Result<(), Fault>, Next> {
    match (&facts.done, facts.again) {
        (_, Some(again)) if facts.now < again => Err(Next::Wait(Some(again))),
        (None, _) | (_, Some(_)) => Err(todo),
        (Some(done), None) => Ok(done),
    }
}
