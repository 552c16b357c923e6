//! How an operation continues or ends.

use crate::cloud::JobStatus;
use crate::operation::{Ending, Fault, Flush, Operation, OperationState, Progress, Response, Step};
use crate::operations::facts::{Call, End, Facts, Next, Placed, Seen};
use crate::reason::Code;

/// Gives the operation up with this fault.
pub(super) fn fail(operation: &Operation, facts: &Facts, code: Code, message: impl Into<String>) -> Next {
    give_up(operation, facts, Ending::Failed(Fault::new(code, message)))
}

/// Gives the operation up: what was begun is undone first.
pub(super) fn give_up(operation: &Operation, facts: &Facts, ending: Ending) -> Next {
    if operation.progress.step == Step::Accepted {
        return given_up(&ending, facts);
    }
    Next::record(Progress { given_up: Some(ending), ..operation.progress.clone() }, None)
}

/// Ends an operation that was given up, when nothing is left to undo.
pub(super) fn given_up(ending: &Ending, facts: &Facts) -> Next {
    let (state, fault) = match ending {
        Ending::Failed(fault) => (OperationState::Failed, Some(fault.clone())),
        Ending::Cancelled => (OperationState::Cancelled, None),
    };
    Next::End(Box::new(End { state, fault, response: None, placed: placed(facts), unsettled: false }))
}

/// Ends it for its caller while something is left to undo.
pub(super) fn unsettled(ending: &Ending, facts: &Facts) -> Next {
    match given_up(ending, facts) {
        Next::End(end) => Next::End(Box::new(End { unsettled: true, ..*end })),
        next => next,
    }
}

/// Ends it with success.
pub(super) fn completed(operation: &Operation, facts: &Facts, response: Response, at: Placed) -> Next {
    let response = Response {
        volume_id: response.volume_id.or(operation.volume),
        adopted: operation.progress.adopted,
        flush: operation.progress.flush.clone().filter(|flush| *flush != Flush::NotServed),
        ..response
    };
    let placed = if at == Placed::AsBefore { placed(facts) } else { at };
    // The job may still run when the disk is here already.
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

/// Decides whether the placeholder stays: only if CloudStack shows the volume at that VM.
fn placed(facts: &Facts) -> Placed {
    match (&facts.volume, facts.placeholder) {
        (Seen::At(_, volume), Some(vm)) if volume.as_ref().and_then(|volume| volume.vm) != Some(vm) => Placed::Nowhere,
        _ => Placed::AsBefore,
    }
}

/// Records the next step.
pub(super) fn step(operation: &Operation, step: Step) -> Next {
    Next::record(operation.progress.at(step), None)
}
