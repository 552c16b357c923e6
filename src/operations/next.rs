//! What an operation does next: a pure function of its record and of the facts.
//!
//! The same rules hold for every kind. A step is recorded before it is carried out, and may be repeated. Nothing is inferred from an
//! error: after each call with an unclear outcome, CloudStack is asked for the job and then for the volume, and the volume decides.
//! What exists already is not done again. What was begun and cannot be finished is undone ([`back`]).

mod ask;
mod attach;
mod back;
mod cleanup;
mod create;
mod detach;
mod outcome;

use jiff::SignedDuration;

use super::facts::{Facts, Look, Next};
use crate::operation::{Ending, Fault, Operation, OperationState, Request, Step};
use crate::reason::Code;
pub(super) use attach::is_attached_here;
use outcome::{fail, give_up, unsettled};

/// How long CloudStack may take to answer a question after the operation's time has ended, before its caller is answered.
pub(super) const LAST_QUESTION: SignedDuration = SignedDuration::from_secs(1);

/// Returns the question to CloudStack with which an operation begins. It may be asked before the operation is on record, because
/// it changes nothing.
pub(super) fn first(request: &Request) -> Option<Look> {
    request.volume().map(Look::Volume)
}

/// Returns what is next.
pub(super) fn next(operation: &Operation, facts: &Facts) -> Next {
    if operation.state.is_ended() {
        return settle(operation, facts);
    }
    let late = facts.now >= operation.deadline;
    if let Some(ending) = &operation.progress.given_up {
        return match back::back(operation, facts, ending) {
            // The caller gets an answer in time, and the task continues with the rest.
            Next::Wait(_) if late => unsettled(ending, facts),
            Next::Look(_) if facts.now >= operation.deadline.after(LAST_QUESTION) => unsettled(ending, facts),
            next => next,
        };
    }
    if facts.called_off && operation.progress.step.is_harmless() {
        return give_up(operation, facts, Ending::Cancelled);
    }
    // A volume that CloudStack has detached is released even when the time is over: that waits for nothing.
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

/// Returns what is left to do of an operation that has ended for its caller.
fn settle(operation: &Operation, facts: &Facts) -> Next {
    if operation.is_settled() {
        return Next::Settled;
    }
    let ending = match (&operation.progress.given_up, operation.state) {
        // Completed while its job still runs: the volume's next operation must not start before the job has ended.
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

/// Returns the fault of an operation that was not done within its time limit.
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
