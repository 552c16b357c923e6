//! Operations as callers see them: the record, and the state of the disk that the operation waits for.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::clock::{self, Steady};
use crate::engine::Stopping;
use crate::engine::world::World;
use crate::identity::{OperationId, Serial};
use crate::operation::{Attach, Ending, Fault, Operation, Place, Request, Step, predecessor};
use crate::wire::{NewOperation, OperationView, Party, ResponseView, StepView, as_asked};

use super::super::Context;

/// Returns the view of one operation.
pub(in crate::api) async fn view(context: &Context, operation: &Operation) -> Result<OperationView, Stopping> {
    let disks = disks(context, std::slice::from_ref(operation)).await?;
    Ok(shown(context, operation, &disks))
}

/// Returns the views of operations.
pub(in crate::api) async fn views(context: &Context, operations: &[Operation]) -> Result<Vec<OperationView>, Stopping> {
    let disks = disks(context, operations).await?;
    Ok(operations.iter().map(|operation| shown(context, operation, &disks)).collect())
}

/// Whether a disk is present, and whether udev has finished with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Absent,
    /// CloudStack says that the disk is attached, and the kernel does not show it.
    NotShown,
    NotSettled,
    Settled,
}

/// Returns the states of the disks for which operations wait, from one read of the engine.
async fn disks(context: &Context, operations: &[Operation]) -> Result<HashMap<Serial, Disk>, Stopping> {
    let serials: Vec<Serial> = operations.iter().filter_map(awaited).collect();
    if serials.is_empty() {
        return Ok(HashMap::new());
    }
    let look = move |world: &World| {
        let disk = |serial: Serial| match world.table.with_serial(serial).next() {
            None => Disk::Absent,
            Some(device) if device.settled => Disk::Settled,
            Some(_) => Disk::NotSettled,
        };
        serials.into_iter().map(|serial| (serial, disk(serial))).collect()
    };
    context.inner.engine.read(look).await
}

/// Returns the serial of the disk for which the operation waits on this host.
fn awaited(operation: &Operation) -> Option<Serial> {
    let attaches_here = match &operation.request {
        Request::Attach(Attach { to, .. }) | Request::AttachRoot(Attach { to, .. }) => *to == Place::Here,
        Request::Cleanup(_) => true,
        Request::Create(_) | Request::Detach(_) | Request::Delete(_) | Request::Unusable(_) => false,
    };
    let waits = !operation.state.is_ended() && matches!(operation.progress.step, Step::Attach { .. });
    operation.volume.filter(|_| waits && attaches_here).map(|volume| volume.serial())
}

fn shown(context: &Context, operation: &Operation, disks: &HashMap<Serial, Disk>) -> OperationView {
    let disk = awaited(operation).and_then(|serial| disks.get(&serial)).copied().unwrap_or(Disk::Absent);
    let attached = context.inner.operations.attached_since(operation.id);
    let (disk, since) = match (disk, attached) {
        (Disk::Absent, Some(attached)) => (Disk::NotShown, operation.updated_at.max(attached)),
        (disk, _) => (disk, operation.updated_at),
    };
    let waits_for = context.inner.operations.waits_for(operation);
    let unit = context.in_use().settings.export.server.unit();
    let (now, wall) = (Steady::now(), clock::wall());
    let limit = jiff::SignedDuration::from_secs(operation.limit_seconds.into());
    let planned = operation.created_at.checked_add(limit).unwrap_or(jiff::Timestamp::MAX);
    // Callers of the predecessor's routes find what they have written, in its words.
    let (kind, request) = if operation.written.is_some() {
        (predecessor::kind(&operation.request), predecessor::request(operation))
    } else {
        let asked = as_asked(&operation.request, operation.vm);
        let asked = NewOperation { deadline_seconds: Some(operation.limit_seconds), ..asked };
        (operation.request.kind(), asked.fields())
    };
    let more = operation.written.as_ref().map(|_| predecessor::more(operation)).unwrap_or_default();
    OperationView {
        id: operation.id,
        kind,
        status: operation.state,
        volume_id: operation.volume.map_or(String::new(), |volume| volume.to_string()),
        vm_id: operation.vm,
        request,
        response: operation.response.clone().map(|response| ResponseView::new(response, more)),
        error: predecessor::error(operation),
        code: operation.fault.as_ref().map(|fault| fault.code.into()),
        hint: operation.fault.as_ref().and_then(|fault| hint(fault, unit)),
        step: (!operation.state.is_ended()).then(|| step(operation, waits_for, (disk, since))),
        deadline_at: clock::shown(operation.deadline, planned, now, wall),
        key: operation.key.as_ref().map(ToString::to_string),
        uid: operation.uid,
        created_at: operation.created_at,
        updated_at: operation.updated_at,
        completed_at: operation.completed_at,
    }
}

/// Returns what to do next, if the code knows it.
fn hint(fault: &Fault, unit: &str) -> Option<Cow<'static, str>> {
    match fault.code.hint() {
        "" => None,
        hint if hint.contains("{}") => Some(fault.code.hint_about(unit).into()),
        hint => Some(hint.into()),
    }
}

fn step(operation: &Operation, waits_for: Option<OperationId>, (disk, since): (Disk, jiff::Timestamp)) -> StepView {
    let progress = &operation.progress;
    let (party, text) = match (&progress.step, operation.request.client_wait_seconds()) {
        (Step::Seal, seconds @ 1..) => {
            let text = format!("the export is taken away; clients that are connected are waited for up to {seconds} s");
            (Party::Attachd, text.into())
        }
        _ => words(&progress.step, waits_for, disk),
    };
    let back = match &progress.given_up {
        Some(Ending::Cancelled) => "it was cancelled; ",
        Some(Ending::Failed(_)) => "it fails; ",
        None => "",
    };
    StepView {
        name: progress.step.name().into(),
        waits_for: party,
        text: format!("{back}{text}"),
        since,
        job_id: progress.job(),
        cancellable: progress.given_up.is_none() && progress.step.is_harmless(),
    }
}

/// Returns who must act now, and what the operation waits for.
fn words(step: &Step, waits_for: Option<OperationId>, disk: Disk) -> (Party, Cow<'static, str>) {
    let (party, text) = match (step, disk) {
        (Step::Accepted, _) => match waits_for {
            Some(first) => {
                let text = format!("the operation {first} of the same volume goes first");
                return (Party::Turn, text.into());
            }
            None => (Party::Cloud, "CloudStack is asked how things stand"),
        },
        (Step::Create { .. }, _) => (Party::Cloud, "CloudStack creates the volume"),
        (Step::DeleteOrphan, _) => (Party::Cloud, "CloudStack deletes the volume that it has created"),
        (Step::StopVm { .. }, _) => (Party::Cloud, "CloudStack stops the VM"),
        (Step::Detach { .. }, _) => (Party::Cloud, "CloudStack detaches the volume"),
        (Step::Delete, _) => (Party::Cloud, "CloudStack deletes the volume"),
        (Step::DestroyVm { .. }, _) => (Party::Cloud, "CloudStack deletes the VM"),
        (Step::Attach { .. }, Disk::Absent) => (Party::Cloud, "CloudStack attaches the volume"),
        (Step::Attach { .. }, Disk::NotShown) => {
            (Party::Kernel, "CloudStack has attached the volume, and the kernel does not show its disk yet")
        }
        (Step::Attach { .. }, Disk::NotSettled) => {
            (Party::Udev, "the kernel shows the disk, and udev has not finished with it")
        }
        (Step::Attach { .. }, Disk::Settled) => {
            (Party::Attachd, "the disk is here, and attachd checks it before it is served")
        }
        (Step::Seal, _) => (Party::Attachd, "the export is taken away"),
        (Step::Unseal, _) => (Party::Attachd, "the export is given back"),
        (Step::Release, _) => (Party::Attachd, "the volume is withdrawn from this host"),
        (Step::Intend, _) => (Party::Attachd, "the intent is put on record"),
        (Step::Withdraw, _) => (Party::Attachd, "the intent is withdrawn"),
    };
    (party, text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attach_waits_for_the_cloud_the_kernel_udev_and_attachd() {
        let job = crate::identity::JobId::from(uuid::Uuid::from_u128(7));
        let party = |disk| words(&Step::Attach { job }, None, disk).0;
        assert_eq!(
            [Disk::Absent, Disk::NotShown, Disk::NotSettled, Disk::Settled].map(party),
            [Party::Cloud, Party::Kernel, Party::Udev, Party::Attachd]
        );
        assert_eq!(words(&Step::Detach { job }, None, Disk::Settled).0, Party::Cloud, "its disk is not waited for");
    }

    #[test]
    fn who_waits_for_its_turn_is_told_for_which_operation() {
        let first: OperationId = "b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
        let (party, text) = words(&Step::Accepted, Some(first), Disk::Absent);
        assert!(party == Party::Turn && text.contains(&first.to_string()), "{text}");
        assert_eq!(words(&Step::Accepted, None, Disk::Absent).0, Party::Cloud, "the control");
    }
}
