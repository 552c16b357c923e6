//! Attaching: to this host, where it is done when it is served; and to another VM.

use jiff::SignedDuration;

use super::{
    Act, Call, Code, Ending, Facts, Fault, Look, Next, Operation, Placed, Progress, Response, Step, ask, completed,
    fail, give_up, step,
};
use crate::cloud::VolumeState;
use crate::identity::{JobId, VmId, VolumeId};
use crate::operation::{Attach, Place, remote_path};
use crate::volume::State;

/// How long the disk of an attached volume may be refused: what is only not ready yet passes in a moment.
const REFUSED: SignedDuration = SignedDuration::from_secs(15);

/// How long CloudStack's word that a volume is attached is taken for true while its disk is not here.
const WITHOUT_DISK: SignedDuration = SignedDuration::from_secs(10);

/// What is next of an attach.
pub(super) fn attach(operation: &Operation, attach: &Attach, root: bool, facts: &Facts) -> Next {
    // Once it has begun it stays with the VM that it has begun with.
    let own = match (&facts.own_vm, operation.progress.vm) {
        (_, Some(begun)) if attach.to == Place::Here => begun,
        (Ok(own), _) => *own,
        (Err(_), Some(_)) => return Next::Wait(Some(facts.now.after(ask::LOOK_AGAIN))),
        (Err(why), None) => return fail(operation, facts, Code::OwnVmUnknown, own_unknown(why)),
    };
    let vm = match attach.to {
        Place::Here => own,
        Place::Vm(vm) => vm,
    };
    let here = vm == own;
    let tried = match &operation.progress.step {
        Step::Accepted => begin(operation, facts, attach.volume, vm, here),
        Step::Intend => Ok(intended(operation, facts, attach.volume)),
        Step::Attach { job } if here => attached_here(operation, facts, (*job, attach.volume), own, |device_path| {
            let message = "Volume attached successfully".to_owned();
            let response =
                Response { vm_id: Some(own), device_path: Some(device_path), message, ..Response::default() };
            completed(operation, facts, response, Placed::Nowhere)
        }),
        Step::Attach { job } => attached_there(operation, facts, (*job, attach.volume), vm, root),
        _ => Ok(give_up(operation, facts, unexpected(operation))),
    };
    let (Ok(tried) | Err(tried)) = tried;
    // What is so already is on record for another VM, too.
    match tried {
        Next::Record(progress, _) if progress.adopted && !here && operation.progress.step == Step::Accepted => {
            let adopted = Operation { progress: *progress, ..operation.clone() };
            there(&adopted, facts, vm, attach.volume, root)
        }
        next => next,
    }
}

pub(super) fn own_unknown(why: &str) -> String {
    format!("it is not known which VM of CloudStack's this host is: {why}. Set [host] vm_id in attachd.toml")
}

/// A step that its kind does not have: of another version's record.
pub(super) fn unexpected(operation: &Operation) -> Ending {
    let step = operation.progress.step.name();
    Ending::Failed(Fault::new(Code::Failed, format!("its record has a step that it cannot have: {step}")))
}

fn begin(operation: &Operation, facts: &Facts, id: VolumeId, vm: VmId, here: bool) -> Result<Next, Next> {
    let Some(volume) = ask::volume_first(operation, facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    if !here && facts.here.is_some() {
        let message = format!("volume {id} is wanted on this host: withdraw it here (or detach it), and ask again");
        return Ok(fail(operation, facts, Code::IntentHere, message));
    }
    match volume.vm {
        Some(has) if has == vm => {
            let progress = Progress { adopted: true, vm: Some(vm), ..operation.progress.at(Step::Intend) };
            return Ok(Next::record(progress, None));
        }
        Some(has) => {
            return Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "detach it there first")));
        }
        None => {}
    }
    ready_for_a_change(operation, facts, id, &volume.state)?;
    if here && has_disk(facts) {
        let message = format!(
            "CloudStack shows volume {id} attached to nothing, and its disk is still on this host: a detach was not carried out in this guest. Stop and start the VM (or reboot it), and ask again"
        );
        return Ok(fail(operation, facts, Code::DiskStillHere, message));
    }
    let begun = Progress { vm: Some(vm), ..operation.progress.clone() };
    let step = if here { Step::Intend } else { Step::Attach { job: facts.new_job } };
    Ok(Next::record(begun.at(step), None))
}

/// Its disk is here and was proven.
pub(super) fn has_disk(facts: &Facts) -> bool {
    let shown = facts.here.as_ref().map(|here| here.state);
    matches!(shown, Some(State::Matched | State::Exporting | State::Ready))
}

pub(super) fn no_such_volume(id: VolumeId) -> String {
    format!("CloudStack knows no volume {id}, or does not show it to attachd's key")
}

pub(super) fn elsewhere(id: VolumeId, has: VmId, what: &str) -> String {
    format!("volume {id} is attached to the VM {has}: {what}")
}

/// Whether CloudStack can attach or detach it now. What passes by itself within moments is waited for.
pub(super) fn ready_for_a_change(
    operation: &Operation,
    facts: &Facts,
    id: VolumeId,
    state: &VolumeState,
) -> Result<(), Next> {
    match state {
        VolumeState::Allocated | VolumeState::Ready | VolumeState::Uploaded => Ok(()),
        VolumeState::Attaching | VolumeState::Creating => Err(ask::again(facts, &facts.volume, Look::Volume(id))),
        busy => {
            let message = format!("volume {id} is {busy} in CloudStack: ask again when it is Ready");
            Err(fail(operation, facts, Code::VolumeBusy, message))
        }
    }
}

/// It is wanted here: then CloudStack is asked.
pub(super) fn intended(operation: &Operation, facts: &Facts, volume: VolumeId) -> Next {
    match ask::done(facts, Act::Intend(volume)) {
        Err(next) => next,
        Ok(Err(fault)) => give_up(operation, facts, Ending::Failed(fault.clone())),
        // Adopted: it is attached already, and its disk may be here. Without a job it is the same from here on.
        Ok(Ok(())) => step(operation, Step::Attach { job: facts.new_job }),
    }
}

/// Until it is served.
pub(super) fn attached_here(
    operation: &Operation,
    facts: &Facts,
    (job, id): (JobId, VolumeId),
    own: VmId,
    served: impl FnOnce(String) -> Next,
) -> Result<Next, Next> {
    let path = facts.here.as_ref().filter(|here| here.state == State::Ready);
    if let Some(path) = path.and_then(|here| here.device_path.clone()) {
        // The disk is here, proven and served: nothing CloudStack can say makes that more certain.
        return Ok(served(path));
    }
    if operation.progress.adopted && facts.call == Call::NotMade {
        return adopted_here(operation, facts, id, own);
    }
    let act = Act::Attach { job, volume: id, vm: own, root: false };
    let end = ask::job(facts, job, Some(act.clone()))?;
    match ask::volume(facts, id)? {
        None => Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id))),
        Some(volume) => match volume.vm {
            Some(has) if has == own => Ok(wait_until_served(operation, facts)),
            Some(has) => {
                Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "somebody else was faster")))
            }
            None if volume.state == VolumeState::Attaching => Err(ask::again(facts, &facts.volume, Look::Volume(id))),
            None if end == ask::JobEnd::NotThere => Ok(Next::Act(act)),
            None => Ok(give_up(operation, facts, Ending::Failed(end.fault("the attach")))),
        },
    }
}

/// It was attached when this began.
fn adopted_here(operation: &Operation, facts: &Facts, id: VolumeId, own: VmId) -> Result<Next, Next> {
    let Some(volume) = ask::volume(facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    match volume.vm {
        Some(has) if has == own => Ok(wait_until_served(operation, facts)),
        Some(has) => Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "somebody else was faster"))),
        // It was being detached: CloudStack's record is behind its hypervisor's. So it is attached after all.
        None => {
            let anew = operation.progress.at(Step::Attach { job: facts.new_job });
            Ok(Next::record(Progress { adopted: false, ..anew }, None))
        }
    }
}

fn wait_until_served(operation: &Operation, facts: &Facts) -> Next {
    match (&facts.here, facts.refused_since) {
        (None, _) => fail(
            operation,
            facts,
            Code::NotServed,
            "it was withdrawn on this host by another request while it was being attached; it is attached still",
        ),
        (Some(here), Some(since)) if here.state == State::Refused => {
            let until = since.after(REFUSED);
            if facts.now < until {
                return Next::Wait(Some(until));
            }
            give_up(operation, facts, Ending::Failed(not_served(operation, facts)))
        }
        // Its disk may never come: somebody may have detached it meanwhile. So CloudStack is asked again.
        (Some(here), _) if !has_disk(facts) && here.state != State::Refused => {
            Next::Wait(Some(facts.now.after(WITHOUT_DISK)))
        }
        _ => Next::Wait(None),
    }
}

/// Why a volume that is attached is not served.
pub(super) fn not_served(operation: &Operation, facts: &Facts) -> Fault {
    let id = operation.volume.map(|id| id.to_string()).unwrap_or_default();
    let serial = operation.volume.map(|id| id.serial().to_string()).unwrap_or_default();
    let why = match &facts.here {
        Some(here) => match &here.reason {
            Some(reason) => format!("it is {}: {} ({}). {}", here.state, reason.message, reason.code, reason.hint),
            None if matches!(here.state, State::Attaching | State::Waiting) => format!(
                "no disk with its serial {serial} was seen. A volume that was restored from a backup has none until its VM is stopped and started"
            ),
            None => format!("it is {}", here.state),
        },
        None => "it is not wanted here any more".to_owned(),
    };
    // A hint is a sentence of its own.
    let why = why.trim_end_matches('.');
    Fault::new(
        Code::NotServed,
        format!(
            "volume {id} is attached to this host, and is not served: {why}. It is served by itself when that is put right"
        ),
    )
}

fn attached_there(
    operation: &Operation,
    facts: &Facts,
    (job, id): (JobId, VolumeId),
    vm: VmId,
    root: bool,
) -> Result<Next, Next> {
    let act = Act::Attach { job, volume: id, vm, root };
    let end = ask::job(facts, job, Some(act.clone()))?;
    let Some(volume) = ask::volume(facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    match volume.vm {
        Some(has) if has == vm => Ok(there(operation, facts, vm, id, root)),
        Some(has) => Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "somebody else was faster"))),
        None if volume.state == VolumeState::Attaching => Err(ask::again(facts, &facts.volume, Look::Volume(id))),
        None if end == ask::JobEnd::NotThere => Ok(Next::Act(act)),
        None => Ok(give_up(operation, facts, Ending::Failed(end.fault("the attach")))),
    }
}

/// Another VM has it, CloudStack says so.
fn there(operation: &Operation, facts: &Facts, vm: VmId, id: VolumeId, root: bool) -> Next {
    let what = if root { "Volume attached as root disk successfully" } else { "Volume attached successfully" };
    let response = Response {
        vm_id: Some(vm),
        device_path: Some(remote_path(vm, id)),
        message: what.to_owned(),
        ..Response::default()
    };
    completed(operation, facts, response, Placed::At { vm, root })
}
