//! Taking back what was begun. It ends with the truth: what CloudStack shows decides, not what was to be.

use super::create::{seen_since, unique_name};
use super::{Act, Call, Ending, Facts, HereAct, Next, Operation, Request, Step, ask, given_up, step};
use crate::operation::{Create, Place};
use crate::volume::{IntentOrigin, State};

/// What is next of an operation that will not be done.
pub(super) fn back(operation: &Operation, facts: &Facts, ending: &Ending) -> Next {
    match taken_back(operation, facts, ending) {
        Ok(next) | Err(next) => next,
    }
}

fn taken_back(operation: &Operation, facts: &Facts, ending: &Ending) -> Result<Next, Next> {
    let over = || given_up(ending, facts);
    let (progress, volume) = (&operation.progress, operation.volume);
    if facts.call == Call::UnderWay {
        return Err(Next::Wait(None));
    }
    match (&progress.step, volume, &operation.request) {
        (Step::Create { job, earlier }, _, Request::Create(create)) => {
            created(operation, facts, create, (*job, earlier), ending)
        }
        (Step::DeleteOrphan, Some(id), _) => match ask::volume(facts, id)? {
            // Somebody uses it: it is none any more.
            Some(volume) if volume.vm.is_some() => Ok(over()),
            None => Ok(over()),
            Some(_) => match &facts.call {
                Call::NotTaken { again, .. } | Call::Unclear { again, .. } if facts.now < *again => {
                    Err(Next::Wait(Some(*again)))
                }
                Call::Refused(_) | Call::Taken { .. } => Ok(over()),
                _ => Ok(Next::Act(Act::Delete(id))),
            },
        },
        // Given back, whether it was taken away or not: that is one and the same.
        (Step::Seal | Step::Unseal, Some(id), _) => {
            if facts.here.is_none() {
                return Ok(over());
            }
            // An error: another one has sealed it, or it is being withdrawn.
            ask::done(facts, Next::Here(HereAct::Unseal(id))).map(|_| over())
        }
        (Step::Detach { .. }, Some(id), Request::Detach(_) | Request::Delete(_)) => {
            ask::job(operation, facts, None)?;
            let has = ask::volume(facts, id)?.and_then(|volume| volume.vm);
            let attached = has.is_some() && has == progress.vm;
            match &facts.here {
                None => Ok(over()),
                Some(_) => Ok(step(operation, if attached { Step::Unseal } else { Step::Release })),
            }
        }
        (Step::Release, Some(id), _) => {
            if facts.here.is_none() {
                return Ok(over());
            }
            ask::done(facts, Next::Here(HereAct::Release(id))).map(|_| over())
        }
        (Step::Intend | Step::Withdraw, Some(id), _) => {
            if !is_own_and_idle(operation, facts) {
                return Ok(over());
            }
            ask::done(facts, Next::Here(HereAct::Withdraw(id))).map(|_| over())
        }
        (Step::Attach { .. }, Some(id), request) if attaches_here(request) => {
            ask::job(operation, facts, None)?;
            let has = ask::volume(facts, id)?.and_then(|volume| volume.vm);
            let own = match request {
                Request::Cleanup(_) => facts.own_vm.as_ref().ok().copied(),
                _ => progress.vm,
            };
            // Attached, and not served: what is wanted says why it waits. The same as long as it cannot be told where it is.
            if has.is_some() && (own.is_none() || has == own) || !is_own_and_idle(operation, facts) {
                return Ok(over());
            }
            Ok(step(operation, Step::Withdraw))
        }
        _ => {
            ask::job(operation, facts, None)?;
            Ok(over())
        }
    }
}

fn attaches_here(request: &Request) -> bool {
    match request {
        Request::Attach(attach) | Request::AttachRoot(attach) => attach.to == Place::Here,
        Request::Cleanup(_) => true,
        Request::Create(_) | Request::Detach(_) | Request::Delete(_) | Request::Unusable(_) => false,
    }
}

/// It is wanted here by this operation's doing, and its disk is not here.
fn is_own_and_idle(operation: &Operation, facts: &Facts) -> bool {
    facts.here.as_ref().is_some_and(|here| {
        here.origin == IntentOrigin::Operation(operation.id)
            && matches!(here.state, State::Attaching | State::Waiting | State::Expired)
    })
}

/// No volume of a create that is given up stays.
fn created(
    operation: &Operation,
    facts: &Facts,
    create: &Create,
    (job, earlier): (crate::identity::JobId, &[crate::identity::JobId]),
    ending: &Ending,
) -> Result<Next, Next> {
    let name = unique_name(create, job);
    let end = ask::job(operation, facts, None)?;
    if !matches!(facts.call, Call::NotMade | Call::NotTaken { .. }) {
        if let Some(orphan) = ask::named(facts, &name)? {
            return Ok(Next::record(operation.progress.at(Step::DeleteOrphan), Some(orphan.id)));
        }
        if end == ask::JobEnd::NotThere {
            seen_since(facts, facts.call_at.after(super::create::GRACE), &name, job)?;
        }
    }
    let Some(last) = earlier.last() else { return Ok(given_up(ending, facts)) };
    if let Some(stray) = ask::named(facts, &unique_name(create, *last))? {
        return Err(Next::Act(Act::DeleteStray(stray.id)));
    }
    let earlier = earlier[..earlier.len() - 1].to_vec();
    if earlier.is_empty() {
        return Ok(given_up(ending, facts));
    }
    Ok(step(operation, Step::Create { job, earlier }))
}
