//! What is next of an attach. To this host, it is done when the volume is served; to another VM, when CloudStack has attached it.

use jiff::SignedDuration;

use super::ask;
use super::outcome::{completed, fail, give_up, step};
use crate::cloud::JobStatus;
use crate::cloud::VolumeState;
use crate::identity::{VmId, VolumeId};
use crate::operation::{Attach, Ending, Fault, Operation, Place, Progress, Request, Response, Step, remote_path};
use crate::operations::facts::{Act, Call, Facts, HereAct, Look, Next, Placed, Seen};
use crate::reason::Code;
use crate::volume::State;

/// How long the disk of an attached volume may be refused before the attach fails. A disk that is only not ready yet is
/// accepted sooner.
const REFUSED: SignedDuration = SignedDuration::from_secs(15);

/// How long the disk of an attached volume may be absent before CloudStack is asked again whether it is attached.
const WITHOUT_DISK: SignedDuration = SignedDuration::from_secs(10);

/// Returns what is next of an attach. `root`: as the VM's root disk.
pub(super) fn attach(operation: &Operation, attach: &Attach, root: bool, facts: &Facts) -> Next {
    let own = match (&facts.own_vm, operation.progress.vm) {
        // An attach to this host stays with the VM that it has begun with.
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
        Step::Accepted if here => begin_here(operation, facts, attach.volume, own),
        Step::Accepted => begin_there(operation, facts, attach.volume, vm, root),
        Step::Intend => Ok(intended(operation, facts, attach.volume)),
        Step::Attach { .. } if here => attached_here(operation, facts, attach.volume, own, |device_path| {
            let message = "Volume attached successfully".to_owned();
            let response =
                Response { vm_id: Some(own), device_path: Some(device_path), message, ..Response::default() };
            completed(operation, facts, response, Placed::Nowhere)
        }),
        Step::Attach { .. } => attached_there(operation, facts, attach.volume, vm, root),
        _ => Ok(give_up(operation, facts, unexpected(operation))),
    };
    let (Ok(next) | Err(next)) = tried;
    next
}

pub(super) fn own_unknown(why: &str) -> String {
    format!("it is not known which VM of CloudStack's this host is: {why}. Set [host] vm_id in attachd.toml")
}

/// The step on record is one that an operation of this kind does not have. Another version may have written it.
pub(super) fn unexpected(operation: &Operation) -> Ending {
    let step = operation.progress.step.name();
    Ending::Failed(Fault::new(Code::Failed, format!("its record has a step that it cannot have: {step}")))
}

/// Begins an attach to this host: it is put on record, in one transaction, that the volume is wanted here and that CloudStack
/// is asked next.
fn begin_here(operation: &Operation, facts: &Facts, id: VolumeId, own: VmId) -> Result<Next, Next> {
    let Some(volume) = ask::volume_first(operation, facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    let adopted = match volume.vm {
        Some(has) if has == own => true,
        Some(has) => {
            return Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "detach it there first")));
        }
        None => false,
    };
    if !adopted {
        ready_for_a_change(operation, facts, id, &volume.state)?;
        if has_disk(facts) {
            let message = format!(
                "CloudStack shows volume {id} attached to nothing, and its disk is still on this host: a detach was not carried out in this guest. Stop and start the VM (or reboot it), and ask again"
            );
            return Ok(fail(operation, facts, Code::DiskStillHere, message));
        }
    }
    let begun = Progress { adopted, vm: Some(own), ..operation.progress.clone() };
    let next = Next::Intend(id, Box::new(begun.at(Step::Attach { job: facts.new_job })));
    match ask::done(facts, next)? {
        // Its record says that the intent has failed.
        Err(fault) => {
            let refused = Operation { progress: begun.at(Step::Intend), ..operation.clone() };
            Ok(give_up(&refused, facts, Ending::Failed(fault.clone())))
        }
        // A success is another step.
        Ok(()) => Ok(give_up(operation, facts, unexpected(operation))),
    }
}

/// Begins an attach to another VM.
fn begin_there(operation: &Operation, facts: &Facts, id: VolumeId, vm: VmId, root: bool) -> Result<Next, Next> {
    let Some(volume) = ask::volume_first(operation, facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    if facts.here.is_some() {
        let message = format!("volume {id} is wanted on this host: withdraw it here (or detach it), and ask again");
        return Ok(fail(operation, facts, Code::IntentHere, message));
    }
    let progress = Progress { vm: Some(vm), ..operation.progress.clone() };
    match volume.vm {
        Some(has) if has == vm => {
            let progress = Progress { adopted: true, ..progress };
            let adopted = Operation { progress, ..operation.clone() };
            Ok(there(&adopted, facts, vm, id, root))
        }
        Some(has) => Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "detach it there first"))),
        None => {
            ready_for_a_change(operation, facts, id, &volume.state)?;
            Ok(Next::record(progress.at(Step::Attach { job: facts.new_job }), None))
        }
    }
}

/// Whether the volume's disk is present and proven.
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

/// Checks that CloudStack can attach or detach the volume now. A state that ends by itself within moments is waited for.
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

/// Puts it on record that the volume is wanted here, in a step of its own. Then CloudStack is asked.
pub(super) fn intended(operation: &Operation, facts: &Facts, volume: VolumeId) -> Next {
    match ask::done(facts, Next::Here(HereAct::Intend(volume))) {
        Err(next) => next,
        Ok(Err(fault)) => give_up(operation, facts, Ending::Failed(fault.clone())),
        // Also an adopted one gets a job: its volume may turn out to be detached.
        Ok(Ok(())) => step(operation, Step::Attach { job: facts.new_job }),
    }
}

/// Waits until the volume is served here; then `served` is next.
pub(super) fn attached_here(
    operation: &Operation,
    facts: &Facts,
    id: VolumeId,
    own: VmId,
    served: impl FnOnce(String) -> Next,
) -> Result<Next, Next> {
    let path = facts.here.as_ref().filter(|here| here.state == State::Ready);
    if let Some(path) = path.and_then(|here| here.device_path.clone()) {
        // The disk is here, proven and served. No answer of CloudStack is needed for that.
        return Ok(served(path));
    }
    if operation.progress.adopted && facts.call == Call::NotMade {
        return adopted_here(operation, facts, id, own);
    }
    let Some(job) = operation.progress.step.job() else { return Ok(give_up(operation, facts, unexpected(operation))) };
    let act = Act::Attach { job, volume: id, vm: own, root: false };
    // CloudStack is asked only while the volume is wanted here.
    let end = ask::job(operation, facts, facts.here.is_some().then(|| act.clone()))?;
    match ask::volume(facts, id)? {
        None => Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id))),
        Some(volume) => match volume.vm {
            Some(has) if has == own => Ok(wait_until_served(operation, facts)),
            Some(has) => {
                Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "somebody else was faster")))
            }
            None if volume.state == VolumeState::Attaching => Err(ask::again(facts, &facts.volume, Look::Volume(id))),
            None if end == ask::JobEnd::NotThere => Ok(match (&facts.here, &facts.call) {
                (Some(_), _) => Next::Act(act),
                // Before the start of attachd its claim could not be written, or somebody has withdrawn it.
                (None, Call::Unknown) => step(operation, Step::Intend),
                (None, _) => fail(
                    operation,
                    facts,
                    Code::NotServed,
                    "it was withdrawn on this host by another request before CloudStack had attached it; it is not attached",
                ),
            }),
            None => Ok(give_up(operation, facts, Ending::Failed(end.fault("the attach")))),
        },
    }
}

/// Waits for the disk of a volume that was attached already when the operation began.
fn adopted_here(operation: &Operation, facts: &Facts, id: VolumeId, own: VmId) -> Result<Next, Next> {
    let Some(volume) = ask::volume(facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    match volume.vm {
        Some(has) if has == own => Ok(wait_until_served(operation, facts)),
        Some(has) => Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, "somebody else was faster"))),
        // It was being detached, and CloudStack showed that later than the hypervisor did it. So it is attached.
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
        // The disk may never come, because somebody has detached the volume meanwhile. So CloudStack is asked again.
        (Some(here), _) if !has_disk(facts) && here.state != State::Refused => {
            Next::Wait(Some(facts.now.after(WITHOUT_DISK)))
        }
        _ => Next::Wait(None),
    }
}

/// Whether CloudStack has said that it has attached the volume to this host, and the operation waits for its disk.
pub(in crate::operations) fn is_attached_here(operation: &Operation, facts: &Facts) -> bool {
    let here = match &operation.request {
        Request::Attach(attach) | Request::AttachRoot(attach) => attach.to == Place::Here,
        Request::Cleanup(_) => true,
        Request::Create(_) | Request::Detach(_) | Request::Delete(_) | Request::Unusable(_) => false,
    };
    let job_has_ended = matches!(facts.job, Seen::At(_, Some(JobStatus::Succeeded { .. })));
    let shown = ask::last(&facts.volume).map(|volume| volume.as_ref().and_then(|volume| volume.vm));
    let attached = match (shown, &facts.own_vm) {
        (Some(vm), Ok(own)) => vm == Some(*own),
        _ => job_has_ended,
    };
    here && matches!(operation.progress.step, Step::Attach { .. }) && attached
}

/// Returns why an attached volume is not served.
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

/// Waits until CloudStack has attached the volume to another VM.
fn attached_there(operation: &Operation, facts: &Facts, id: VolumeId, vm: VmId, root: bool) -> Result<Next, Next> {
    let Some(job) = operation.progress.step.job() else { return Ok(give_up(operation, facts, unexpected(operation))) };
    let act = Act::Attach { job, volume: id, vm, root };
    let end = ask::job(operation, facts, Some(act.clone()))?;
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

/// CloudStack shows the volume attached to another VM.
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
