//! Undoing what an operation began. What CloudStack shows decides how it ends.

use super::ask;
use super::create::{seen_since, unique_name};
use super::outcome::{given_up, step};
use crate::operation::{Create, Ending, Operation, Place, Request, Step};
use crate::operations::facts::{Act, Call, Facts, HereAct, Next};
use crate::volume::{IntentOrigin, State};

/// Returns what is next of an operation that is given up.
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
            // Somebody uses the volume, so it is no orphan any more.
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
        // To unseal a volume that is not sealed changes nothing, so it does not matter whether the seal was made.
        (Step::Seal | Step::Unseal, Some(id), _) => {
            if facts.here.is_none() {
                return Ok(over());
            }
            // An error means that another operation has sealed it, or that it is being withdrawn.
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
            // It is attached but not served: the intent stays and says why. It also stays while it is unknown where the volume is.
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

/// Returns whether the intent is this operation's own and the volume's disk is not here.
fn is_own_and_idle(operation: &Operation, facts: &Facts) -> bool {
    facts.here.as_ref().is_some_and(|here| {
        here.origin == IntentOrigin::Operation(operation.id)
            && matches!(here.state, State::Attaching | State::Waiting | State::Expired)
    })
}

/// Deletes every volume that a create which was given up has made.
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
