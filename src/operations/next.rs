//! What an operation does next: a pure function of its record and of the facts.
//!
//! The same rules hold for every kind. A step is on record before it is taken, and may be repeated. Nothing is inferred from an
//! error: after each call whose outcome is not plain, CloudStack is asked for the job, and then for the volume, which decides.
//! What is so already is not done. What was begun and cannot be finished is taken back ([`back`]).

mod ask;
mod attach;
mod back;
mod cleanup;
mod create;
mod detach;

use jiff::SignedDuration;

use super::facts::{Act, Call, End, Facts, HereAct, Look, Next, Placed, Seen};
use crate::clock::Steady;
use crate::cloud::JobStatus;
use crate::operation::{Ending, Fault, Flush, Operation, OperationState, Progress, Request, Response, Step};
use crate::reason::Code;
pub(super) use attach::is_attached_here;

/// How long CloudStack may take to answer a question after the operation's time has ended, before its caller is answered.
pub(super) const LAST_QUESTION: SignedDuration = SignedDuration::from_secs(1);

/// Returns the question to CloudStack with which an operation begins. It may be asked before the operation is on record, because
/// it changes nothing.
pub(super) fn first(request: &Request) -> Option<Look> {
    request.volume().map(Look::Volume)
}

/// What is next.
pub(super) fn next(operation: &Operation, facts: &Facts) -> Next {
    if operation.state.is_ended() {
        return settle(operation, facts);
    }
    let late = facts.now >= operation.deadline;
    if let Some(ending) = &operation.progress.given_up {
        return match back::back(operation, facts, ending) {
            // Its caller is answered in time; the rest is seen to afterwards.
            Next::Wait(_) if late => unsettled(ending, facts),
            Next::Look(_) if facts.now >= operation.deadline.after(LAST_QUESTION) => unsettled(ending, facts),
            next => next,
        };
    }
    if facts.called_off && operation.progress.step.is_harmless() {
        return give_up(operation, facts, Ending::Cancelled);
    }
    // A volume that is detached already goes, whatever the time is: nothing is waited for any more.
    if late && operation.progress.step != Step::Release {
        return give_up(operation, facts, Ending::Failed(time_is_up(operation, facts)));
    }
    if operation.progress.step == Step::Accepted && facts.waits_for.is_some() {
        return Next::Wait(None);
    }
    match &operation.request {
        Request::Create(create) => create::create(operation, create, facts),
        Request::Attach(attach) => attach::attach(operation, attach, false, facts),
        Request::AttachRoot(attach) => attach::attach(operation, attach, true, facts),
        Request::Detach(detach) => detach::detach(operation, detach, false, facts),
        Request::Delete(detach) => detach::detach(operation, detach, true, facts),
        Request::Cleanup(cleanup) => cleanup::cleanup(operation, cleanup, facts),
        Request::Unusable(unusable) => fail(operation, facts, Code::InvalidBody, unusable.why.clone()),
    }
}

/// Its caller was answered: what is still to come?
fn settle(operation: &Operation, facts: &Facts) -> Next {
    if operation.is_settled() {
        return Next::Settled;
    }
    let ending = match (&operation.progress.given_up, operation.state) {
        // Done, but for a job that has not ended: another operation of the volume would meet it.
        (_, OperationState::Completed) | (None, _) => {
            return ask::job(operation, facts, None).err().unwrap_or(Next::Settled);
        }
        (Some(ending), _) => ending,
    };
    match back::back(operation, facts, ending) {
        Next::End(_) => Next::Settled,
        next => next,
    }
}

/// It fails.
fn fail(operation: &Operation, facts: &Facts, code: Code, message: impl Into<String>) -> Next {
    give_up(operation, facts, Ending::Failed(Fault::new(code, message)))
}

/// It will not be done: what was begun is taken back.
fn give_up(operation: &Operation, facts: &Facts, ending: Ending) -> Next {
    if operation.progress.step == Step::Accepted {
        return given_up(&ending, facts);
    }
    Next::record(Progress { given_up: Some(ending), ..operation.progress.clone() }, None)
}

/// Nothing of it is left.
fn given_up(ending: &Ending, facts: &Facts) -> Next {
    let (state, fault) = match ending {
        Ending::Failed(fault) => (OperationState::Failed, Some(fault.clone())),
        Ending::Cancelled => (OperationState::Cancelled, None),
    };
    Next::End(Box::new(End { state, fault, response: None, placed: placed(facts), unsettled: false }))
}

/// The same, but for what is still to come.
fn unsettled(ending: &Ending, facts: &Facts) -> Next {
    match given_up(ending, facts) {
        Next::End(end) => Next::End(Box::new(End { unsettled: true, ..*end })),
        next => next,
    }
}

/// It is done.
fn completed(operation: &Operation, facts: &Facts, response: Response, at: Placed) -> Next {
    let response = Response {
        volume_id: response.volume_id.or(operation.volume),
        adopted: operation.progress.adopted,
        flush: operation.progress.flush.clone().filter(|flush| *flush != Flush::NotServed),
        ..response
    };
    let placed = if at == Placed::AsBefore { placed(facts) } else { at };
    // A job that was asked for may go on after the disk is here.
    let job = operation.progress.step.job().is_some();
    let ended = matches!(&facts.job, Seen::At(_, status) if !is_running(status.as_ref()));
    let made = !matches!(facts.call, Call::NotMade | Call::NotTaken { .. });
    let unsettled = job && made && !ended;
    let state = OperationState::Completed;
    Next::End(Box::new(End { state, fault: None, response: Some(response), placed, unsettled }))
}

fn is_running(status: Option<&JobStatus>) -> bool {
    matches!(status, Some(JobStatus::Running))
}

/// What CloudStack shows is what is on record of other VMs.
fn placed(facts: &Facts) -> Placed {
    match (&facts.volume, facts.placeholder) {
        (Seen::At(_, volume), Some(vm)) if volume.as_ref().and_then(|volume| volume.vm) != Some(vm) => Placed::Nowhere,
        _ => Placed::AsBefore,
    }
}

/// The step with which it goes on.
fn step(operation: &Operation, step: Step) -> Next {
    Next::record(operation.progress.at(step), None)
}

/// Why its time has ended before it was done.
fn time_is_up(operation: &Operation, facts: &Facts) -> Fault {
    let limit = operation.limit_seconds;
    let here = |words: &str| {
        let fault = attach::not_served(operation, facts);
        Fault::new(fault.code, format!("{} ({words} {limit} s)", fault.message))
    };
    if let (Some(volume), Ok(own), Step::Attach { .. } | Step::Intend) =
        (ask::last(&facts.volume), &facts.own_vm, &operation.progress.step)
        && volume.as_ref().and_then(|volume| volume.vm) == Some(*own)
    {
        return here("waited for");
    }
    let why = match (&facts.waits_for, ask::trouble(facts)) {
        (Some(first), _) if operation.progress.step == Step::Accepted => {
            format!("it has waited for the operation {first} of the same volume")
        }
        (_, Some(trouble)) => format!("at the step {}: {trouble}", operation.progress.step.name()),
        (_, None) => {
            format!("CloudStack has not finished; it was at the step {}", operation.progress.step.name())
        }
    };
    let cure = match operation.progress.job() {
        Some(job) => format!(". The job {job} in CloudStack may go on: its outcome is seen to when it has ended"),
        None => String::new(),
    };
    Fault::new(Code::TimeIsUp, format!("the operation's {limit} s ended before it was done: {why}{cure}"))
}
