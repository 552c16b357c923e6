//! Creating. A repeated call makes a second volume, even if CloudStack refuses its job id. So each call has its own job and its
//! own name, and no call is made while the outcome of an earlier one is unknown.

use jiff::SignedDuration;

use super::ask;
use super::outcome::{completed, give_up, step};
use crate::clock::Steady;
use crate::cloud::NewVolume;
use crate::identity::{JobId, VolumeId};
use crate::operation::{Create, Ending, Operation, Response, Step};
use crate::operations::facts::{Act, Call, End, Facts, Look, Next, Placed, Seen};

/// How long after a call without an answer its volume may still appear.
pub(super) const GRACE: SignedDuration = SignedDuration::from_secs(5);

/// The maximum number of calls.
const CALLS: usize = 3;

/// Returns the name by which a volume is found again. Only one call uses it.
pub(super) fn unique_name(create: &Create, job: JobId) -> String {
    format!("{}-{job}", create.name)
}

/// Returns what is next of a create.
pub(super) fn create(operation: &Operation, create: &Create, facts: &Facts) -> Next {
    match &operation.progress.step {
        Step::Accepted => step(operation, Step::Create { job: facts.new_job, earlier: Vec::new() }),
        Step::Create { job, earlier } => match made(operation, create, facts, *job, earlier) {
            Ok(next) | Err(next) => next,
        },
        _ => give_up(operation, facts, super::attach::unexpected(operation)),
    }
}

fn made(operation: &Operation, create: &Create, facts: &Facts, job: JobId, earlier: &[JobId]) -> Result<Next, Next> {
    let name = unique_name(create, job);
    if let (Some(volume), Some(last)) = (operation.volume, earlier.last()) {
        // The volume is known. A second one, of an earlier call that was carried out after all, is deleted.
        return without_stray(operation, create, facts, (job, earlier), (volume, *last));
    }
    let what = Box::new(NewVolume {
        name: name.clone(),
        gib: create.size.gib(),
        disk_offering: create.disk_offering.to_string(),
        zone: create.zone.to_string(),
    });
    let end = ask::job(operation, facts, Some(Act::Create { job, what }))?;
    let said = match (&end, &facts.call) {
        (ask::JobEnd::Done(Some(volume)), _) | (ask::JobEnd::Done(None), Call::Taken { volume: Some(volume), .. }) => {
            Some(*volume)
        }
        _ => None,
    };
    let found = match said {
        Some(volume) => Some(volume),
        None => ask::named(facts, &name)?.map(|volume| volume.id),
    };
    match (end, found) {
        (ask::JobEnd::Done(_) | ask::JobEnd::NotThere | ask::JobEnd::Lost, Some(volume)) => {
            Ok(if earlier.is_empty() { finished(operation, facts, volume) } else { known(operation, volume) })
        }
        // Not there yet: the call may still be under way.
        (ask::JobEnd::NotThere, None) => {
            seen_since(facts, facts.call_at.after(GRACE), &name, job)?;
            if earlier.len() + 1 >= CALLS {
                let fault = ask::JobEnd::NotThere.fault("a new volume");
                return Ok(give_up(operation, facts, Ending::Failed(fault)));
            }
            let earlier = earlier.iter().copied().chain([job]).collect();
            Ok(step(operation, Step::Create { job: facts.new_job, earlier }))
        }
        (end, _) => Ok(give_up(operation, facts, Ending::Failed(end.fault("a new volume")))),
    }
}

/// Succeeds if both the job and the name were looked up after that moment; else returns what to do first.
pub(super) fn seen_since(facts: &Facts, moment: Steady, name: &str, job: JobId) -> Result<(), Next> {
    if facts.now < moment {
        return Err(Next::Wait(Some(moment)));
    }
    match (&facts.job, &facts.named) {
        (Seen::At(at, _), _) if *at < moment => Err(Next::Look(Look::Job(job))),
        (_, Seen::At(at, _)) if *at < moment => Err(Next::Look(Look::Named(name.to_owned()))),
        _ => Ok(()),
    }
}

fn known(operation: &Operation, volume: VolumeId) -> Next {
    Next::record(operation.progress.clone(), Some(volume))
}

fn without_stray(
    operation: &Operation,
    create: &Create,
    facts: &Facts,
    (job, earlier): (JobId, &[JobId]),
    (volume, last): (VolumeId, JobId),
) -> Result<Next, Next> {
    if let Some(stray) = ask::named(facts, &unique_name(create, last))? {
        return Err(Next::Act(Act::DeleteStray(stray.id)));
    }
    let earlier = earlier[..earlier.len() - 1].to_vec();
    if earlier.is_empty() {
        return Ok(finished(operation, facts, volume));
    }
    Ok(step(operation, Step::Create { job, earlier }))
}

fn finished(operation: &Operation, facts: &Facts, volume: VolumeId) -> Next {
    let message = "Volume created successfully".to_owned();
    let response = Response { volume_id: Some(volume), message, ..Response::default() };
    match completed(operation, facts, response, Placed::AsBefore) {
        // The volume exists, so its job has nothing left to do.
        Next::End(end) => Next::End(Box::new(End { unsettled: false, ..*end })),
        next => next,
    }
}
