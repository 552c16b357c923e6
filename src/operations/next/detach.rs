//! Detaching and deleting. The export is removed first, and stays removed until CloudStack has answered.

use super::ask;
use super::attach::{elsewhere, has_disk, no_such_volume, own_unknown, ready_for_a_change, unexpected};
use super::outcome::{completed, fail, give_up, step};
use crate::cloud::{CloudVolume, VolumeKind};
use crate::identity::VolumeId;
use crate::operation::{Detach, Ending, Fault, Operation, Place, Progress, Response, Step, remote_path};
use crate::operations::facts::{Act, Call, Facts, HereAct, Next, Placed, Seen};
use crate::reason::Code;

/// Returns what is next of a detach, or of a delete, which begins with a detach.
pub(super) fn detach(operation: &Operation, detach: &Detach, delete: bool, facts: &Facts) -> Next {
    let (id, force) = (detach.volume, detach.force);
    let tried = match &operation.progress.step {
        Step::Accepted => begin(operation, facts, detach, delete),
        Step::Seal => Ok(sealed(operation, facts, id, force)),
        Step::Detach { job } => detached(operation, facts, (*job, id), delete),
        Step::Release => released(operation, facts, id, delete),
        Step::Delete if delete => deleted(operation, facts, id),
        _ => Ok(give_up(operation, facts, unexpected(operation))),
    };
    match tried {
        Ok(next) | Err(next) => next,
    }
}

fn begin(operation: &Operation, facts: &Facts, detach: &Detach, delete: bool) -> Result<Next, Next> {
    let id = detach.volume;
    let Some(volume) = ask::volume_first(operation, facts, id)? else {
        if !delete && facts.here.is_none() && facts.placeholder.is_none() {
            return Ok(fail(operation, facts, Code::NoSuchVolume, no_such_volume(id)));
        }
        // Deleted already: only what is left on this host is removed.
        return Ok(adopted(operation, facts, delete, true));
    };
    if delete {
        may_be_deleted(operation, facts, volume)?;
    }
    let Some(has) = volume.vm else {
        if delete && facts.here.is_none() {
            return Ok(step(operation, Step::Delete));
        }
        return Ok(adopted(operation, facts, delete, false));
    };
    // Where the caller expects the volume, or else where it is on record.
    let own = facts.own_vm.as_ref().ok().copied();
    let supposed = match detach.from {
        Some(Place::Here) => own,
        Some(Place::Vm(vm)) => Some(vm),
        None if facts.here.is_some() => own,
        None => facts.placeholder.or(own),
    };
    let here = supposed == own || own.is_none() && supposed.is_none();
    match supposed {
        Some(supposed) if supposed != has => {
            let cure = format!(
                "it was taken to be attached to {}; name the VM that has it (vm_id), if it is to be detached there",
                if Some(supposed) == own { format!("this host ({supposed})") } else { supposed.to_string() }
            );
            return Ok(fail(operation, facts, Code::VolumeElsewhere, elsewhere(id, has, &cure)));
        }
        // The own VM is unknown, but the disk is here and has shown the volume's serial.
        None if has_disk(facts) => {}
        None => {
            let why = facts.own_vm.as_ref().err().map(String::as_str).unwrap_or_default();
            return Ok(fail(operation, facts, Code::OwnVmUnknown, own_unknown(why)));
        }
        Some(_) => {}
    }
    ready_for_a_change(operation, facts, id, &volume.state)?;
    let sealed = here && facts.here.is_some();
    let begun = Progress { vm: Some(has), device_path: device_path(facts, id), ..operation.progress.clone() };
    let step = if sealed { Step::Seal } else { Step::Detach { job: facts.new_job } };
    Ok(Next::record(begun.at(step), None))
}

/// Refuses to delete a root disk and a volume with delete protection.
fn may_be_deleted(operation: &Operation, facts: &Facts, volume: &CloudVolume) -> Result<(), Next> {
    let id = volume.id;
    if volume.kind == VolumeKind::Root {
        let detach = match volume.vm {
            Some(vm) => format!("stop the VM and detach it first (`attachctl detach {id} --vm {vm}`)"),
            None => "attach it to a VM as a data volume and detach it first".to_owned(),
        };
        let message =
            format!("volume {id} is the root disk of a VM, which no delete touches: {detach}, then ask again");
        return Err(fail(operation, facts, Code::RootVolume, message));
    }
    if volume.delete_protection {
        let message = format!("volume {id} has delete protection in CloudStack: take that away there, and ask again");
        return Err(fail(operation, facts, Code::DeleteProtected, message));
    }
    Ok(())
}

/// Returns the path of the volume's disk on this host, or the text in place of a path if another VM has it.
fn device_path(facts: &Facts, id: VolumeId) -> Option<String> {
    let here = facts.here.as_ref().and_then(|here| here.device_path.clone());
    here.or_else(|| facts.placeholder.map(|vm| remote_path(vm, id)))
}

/// The volume is attached to nothing: only what is left on this host is removed.
fn adopted(operation: &Operation, facts: &Facts, delete: bool, gone: bool) -> Next {
    let device_path = operation.volume.and_then(|id| device_path(facts, id));
    let adopted = Progress { adopted: !delete || gone, device_path, ..operation.progress.clone() };
    if facts.here.is_some() {
        return Next::record(adopted.at(Step::Seal), None);
    }
    let operation = Operation { progress: adopted, ..operation.clone() };
    ended(&operation, facts, delete)
}

/// Continues after the seal.
fn sealed(operation: &Operation, facts: &Facts, id: VolumeId, force: bool) -> Next {
    match ask::done(facts, Next::Here(HereAct::Seal { volume: id, force })) {
        Err(next) => next,
        // Withdrawn in the meantime: there is no export.
        Ok(_) if facts.here.is_none() => step(operation, Step::Detach { job: facts.new_job }),
        Ok(Err(fault)) => give_up(operation, facts, Ending::Failed(fault.clone())),
        // It was attached to nothing when this operation began, so CloudStack is not asked to detach it.
        Ok(Ok(())) if operation.progress.adopted => step(operation, Step::Release),
        Ok(Ok(())) => step(operation, Step::Detach { job: facts.new_job }),
    }
}

/// Continues after CloudStack's detach.
pub(super) fn detached(
    operation: &Operation,
    facts: &Facts,
    (job, id): (crate::identity::JobId, VolumeId),
    delete: bool,
) -> Result<Next, Next> {
    // Checked again before the call: the volume may have been attached elsewhere while its export was removed.
    if facts.call == Call::NotMade {
        let volume = ask::volume(facts, id)?;
        if let Some(volume) = volume.filter(|_| delete) {
            may_be_deleted(operation, facts, volume)?;
        }
        match volume.and_then(|volume| volume.vm) {
            None => return Ok(after_detach(operation, facts, delete)),
            has if has == operation.progress.vm => {}
            Some(has) => {
                let message = elsewhere(id, has, "it was attached there meanwhile, so it is not detached");
                return Ok(fail(operation, facts, Code::VolumeElsewhere, message));
            }
        }
    }
    let act = Act::Detach { job, volume: id };
    let end = ask::job(operation, facts, Some(act.clone()))?;
    match ask::volume(facts, id)? {
        // If another VM has the volume now, this detach is done.
        Some(volume) if volume.vm.is_some() && volume.vm == operation.progress.vm => {
            Ok(if end == ask::JobEnd::NotThere {
                Next::Act(act)
            } else {
                give_up(operation, facts, Ending::Failed(end.fault("the detach")))
            })
        }
        _ => Ok(after_detach(operation, facts, delete)),
    }
}

fn after_detach(operation: &Operation, facts: &Facts, delete: bool) -> Next {
    if facts.here.is_some() {
        return step(operation, Step::Release);
    }
    ended(operation, facts, delete)
}

/// Continues after the release.
fn released(operation: &Operation, facts: &Facts, id: VolumeId, delete: bool) -> Result<Next, Next> {
    match ask::done(facts, Next::Here(HereAct::Release(id)))? {
        Ok(()) => Ok(ended(operation, facts, delete)),
        Err(_) if facts.here.is_none() => Ok(ended(operation, facts, delete)),
        // It is detached in CloudStack, but something stayed on this host.
        Err(fault) => Ok(give_up(operation, facts, Ending::Failed(fault.clone()))),
    }
}

fn ended(operation: &Operation, facts: &Facts, delete: bool) -> Next {
    let gone =
        matches!(&facts.volume, Seen::At(_, volume) if volume.as_ref().is_none_or(|volume| volume.state.is_gone()));
    if delete && !gone {
        return step(operation, Step::Delete);
    }
    let message = if delete { DELETED } else { "Volume detached successfully" };
    let device_path = operation.progress.device_path.clone();
    let response = Response { vm_id: operation.vm, device_path, message: message.to_owned(), ..Response::default() };
    completed(operation, facts, response, Placed::Nowhere)
}

const DELETED: &str = "Volume deleted successfully (detached and cleaned up NBD exports)";

/// Continues after CloudStack's deletion.
fn deleted(operation: &Operation, facts: &Facts, id: VolumeId) -> Result<Next, Next> {
    let Some(volume) = ask::volume(facts, id)? else {
        let response = Response { vm_id: operation.vm, message: DELETED.to_owned(), ..Response::default() };
        return Ok(completed(operation, facts, response, Placed::Nowhere));
    };
    match &facts.call {
        Call::Refused(refusal) => {
            let fault = ask::JobEnd::Refused(refusal.clone()).fault("to delete the volume");
            let message = format!("{}. It is detached, and not deleted", fault.message);
            Ok(give_up(operation, facts, Ending::Failed(Fault::new(fault.code, message))))
        }
        Call::UnderWay => Err(Next::Wait(None)),
        Call::Taken { .. } => {
            Ok(give_up(operation, facts, Ending::Failed(ask::JobEnd::Done(None).fault("the deletion"))))
        }
        Call::NotTaken { again, .. } | Call::Unclear { again, .. } if facts.now < *again => {
            Err(Next::Wait(Some(*again)))
        }
        Call::NotMade | Call::Unknown | Call::NotTaken { .. } | Call::Unclear { .. } => {
            may_be_deleted(operation, facts, volume)?;
            if let Some(has) = volume.vm {
                let message = elsewhere(id, has, "it was attached again meanwhile, so it is not deleted");
                return Ok(fail(operation, facts, Code::VolumeElsewhere, message));
            }
            Ok(Next::Act(Act::Delete(id)))
        }
    }
}
