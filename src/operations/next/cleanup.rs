//! Cleaning up after a test failover: stop the VM that has the volume, attach the volume here, and delete the VM if asked.

use super::ask;
use super::attach::{
    attached_here, elsewhere, has_disk, intended, no_such_volume, own_unknown, ready_for_a_change, unexpected,
};
use super::outcome::{completed, fail, give_up, step};
use crate::cloud::{CloudVm, VmState, VolumeKind};
use crate::identity::{JobId, VmId};
use crate::operation::{CleanUp, Ending, Fault, Operation, Progress, Response, Step};
use crate::operations::facts::{Act, Call, Facts, Look, Next, Placed, Seen};
use crate::reason::Code;

/// Returns what is next of a cleanup.
pub(super) fn cleanup(operation: &Operation, cleanup: &CleanUp, facts: &Facts) -> Next {
    let own = match &facts.own_vm {
        Ok(own) => *own,
        Err(_) if operation.progress.step != Step::Accepted => {
            return Next::Wait(Some(facts.now.after(ask::LOOK_AGAIN)));
        }
        Err(why) => return fail(operation, facts, Code::OwnVmUnknown, own_unknown(why)),
    };
    if cleanup.test_vm == own {
        let message = format!("{own} is this host's own VM: it is neither stopped nor deleted");
        return fail(operation, facts, Code::OwnVm, message);
    }
    let tried = match &operation.progress.step {
        Step::Accepted => begin(operation, facts, cleanup, own),
        Step::StopVm { job } => stopped(operation, facts, cleanup, *job),
        Step::Detach { job } => detached(operation, facts, cleanup, *job, own),
        Step::Intend => Ok(intended(operation, facts, cleanup.volume)),
        Step::Attach { .. } => {
            attached_here(operation, facts, cleanup.volume, own, |path| {
                // A VM that did not have the volume is left alone.
                if cleanup.delete_vm && operation.progress.vm == Some(cleanup.test_vm) {
                    step(operation, Step::DestroyVm { job: facts.new_job })
                } else {
                    finished(operation, facts, cleanup, Some(path), false)
                }
            })
        }
        Step::DestroyVm { job } => destroyed(operation, facts, cleanup, *job),
        _ => Ok(give_up(operation, facts, unexpected(operation))),
    };
    match tried {
        Ok(next) | Err(next) => next,
    }
}

fn begin(operation: &Operation, facts: &Facts, cleanup: &CleanUp, own: VmId) -> Result<Next, Next> {
    let id = cleanup.volume;
    let Some(volume) = ask::volume_first(operation, facts, id)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
    };
    if volume.kind == VolumeKind::Root {
        let message = format!(
            "volume {id} is the root disk of a VM, which no cleanup touches. To bring it back: stop the VM, `attachctl detach {id} --vm {}`, then `attachctl attach {id}`",
            volume.vm.unwrap_or(cleanup.test_vm)
        );
        return Ok(fail(operation, facts, Code::RootVolume, message));
    }
    match volume.vm {
        Some(has) if has == own => {
            return Ok(Next::record(Progress { adopted: true, ..operation.progress.at(Step::Intend) }, None));
        }
        None => {
            ready_for_a_change(operation, facts, id, &volume.state)?;
            return Ok(step(operation, Step::Intend));
        }
        Some(has) if has != cleanup.test_vm => {
            let what = format!("the cleanup was asked for of {}", cleanup.test_vm);
            return Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, &what)));
        }
        Some(_) => {}
    }
    if has_disk(facts) {
        let message = format!(
            "CloudStack shows volume {id} attached to {}, and its disk is on this host: a detach was not carried out in this guest. Stop and start this VM (or reboot it), and ask again",
            cleanup.test_vm
        );
        return Ok(fail(operation, facts, Code::DiskStillHere, message));
    }
    ready_for_a_change(operation, facts, id, &volume.state)?;
    let Some(vm) = ask::vm(facts, cleanup.test_vm)? else {
        let message = format!("CloudStack knows no VM {}, or does not show it to attachd's key", cleanup.test_vm);
        return Ok(fail(operation, facts, Code::NoSuchVm, message));
    };
    let held = Progress { vm: Some(cleanup.test_vm), ..operation.progress.clone() };
    let job = facts.new_job;
    match vm.state {
        VmState::Stopped => Ok(Next::record(held.at(Step::Detach { job }), None)),
        VmState::Running | VmState::Other(_) => Ok(Next::record(held.at(Step::StopVm { job }), None)),
        VmState::Starting | VmState::Stopping | VmState::Migrating => {
            Err(ask::again(facts, &facts.vm, Look::Vm(cleanup.test_vm)))
        }
    }
}

fn stopped(operation: &Operation, facts: &Facts, cleanup: &CleanUp, job: JobId) -> Result<Next, Next> {
    // Only a VM that has the volume is stopped, so this is checked again just before the call.
    if facts.call == Call::NotMade {
        let volume = ask::volume(facts, cleanup.volume)?;
        if volume.and_then(|volume| volume.vm) != Some(cleanup.test_vm) {
            let message = format!("the VM {} has volume {} no more: it is left alone", cleanup.test_vm, cleanup.volume);
            return Ok(fail(operation, facts, Code::VolumeElsewhere, message));
        }
    }
    let act = Act::StopVm { job, vm: cleanup.test_vm, force: cleanup.force };
    let end = ask::job(operation, facts, Some(act.clone()))?;
    match ask::vm(facts, cleanup.test_vm)? {
        None | Some(CloudVm { state: VmState::Stopped, .. }) => {
            Ok(step(operation, Step::Detach { job: facts.new_job }))
        }
        Some(CloudVm { state: VmState::Stopping, .. }) => Err(ask::again(facts, &facts.vm, Look::Vm(cleanup.test_vm))),
        Some(_) if end == ask::JobEnd::NotThere => Ok(Next::Act(act)),
        Some(_) => Ok(give_up(operation, facts, Ending::Failed(end.fault("to stop the VM")))),
    }
}

fn detached(operation: &Operation, facts: &Facts, cleanup: &CleanUp, job: JobId, own: VmId) -> Result<Next, Next> {
    let act = Act::Detach { job, volume: cleanup.volume };
    if facts.call == Call::NotMade
        && let Some(volume) = ask::volume(facts, cleanup.volume)?
        && volume.vm == Some(cleanup.test_vm)
        && volume.kind == VolumeKind::Root
    {
        let message = format!("volume {} is the root disk of {}", cleanup.volume, cleanup.test_vm);
        return Ok(fail(operation, facts, Code::RootVolume, message));
    }
    let made = facts.call != Call::NotMade;
    let end = if made { Some(ask::job(operation, facts, Some(act.clone()))?) } else { None };
    let Some(volume) = ask::volume(facts, cleanup.volume)? else {
        return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(cleanup.volume)));
    };
    match volume.vm {
        None => Ok(step(operation, Step::Intend)),
        Some(has) if has == own => Ok(step(operation, Step::Intend)),
        Some(has) if has == cleanup.test_vm => Ok(match end {
            None | Some(ask::JobEnd::NotThere) => Next::Act(act),
            Some(end) => give_up(operation, facts, Ending::Failed(end.fault("the detach"))),
        }),
        Some(has) => {
            let what = "it was attached there meanwhile";
            Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(cleanup.volume, has, what)))
        }
    }
}

fn destroyed(operation: &Operation, facts: &Facts, cleanup: &CleanUp, job: JobId) -> Result<Next, Next> {
    let path = facts.here.as_ref().and_then(|here| here.device_path.clone());
    let Some(_) = ask::vm(facts, cleanup.test_vm)? else {
        return Ok(finished(operation, facts, cleanup, path, true));
    };
    let act = Act::DestroyVm { job, vm: cleanup.test_vm };
    let end = ask::job(operation, facts, Some(act.clone()))?;
    // The VM may have been looked up before the job had ended.
    if let (Seen::At(ended, _), Seen::At(looked, _)) = (&facts.job, &facts.vm)
        && looked < ended
    {
        return Err(Next::Look(Look::Vm(cleanup.test_vm)));
    }
    if end == ask::JobEnd::NotThere {
        return Ok(Next::Act(act));
    }
    let fault = end.fault("to delete the VM");
    let message = format!("{}. The volume is back and served; the VM is stopped, and was not deleted", fault.message);
    Ok(give_up(operation, facts, Ending::Failed(Fault::new(fault.code, message))))
}

fn finished(
    operation: &Operation,
    facts: &Facts,
    cleanup: &CleanUp,
    device_path: Option<String>,
    vm_deleted: bool,
) -> Next {
    let response = Response {
        vm_id: Some(cleanup.test_vm),
        device_path,
        vm_deleted: Some(vm_deleted),
        message: "Test failover cleanup completed successfully".to_owned(),
        ..Response::default()
    };
    completed(operation, facts, response, Placed::Nowhere)
}
