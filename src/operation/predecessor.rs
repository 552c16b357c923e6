//! An operation in the predecessor's words: in its table `volume_operations`, and in the answers to callers of its routes.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Kind, Operation, Place, Request, Step};
use crate::reason::Code;

/// Returns the type. A root disk is told by its request alone.
pub fn kind(request: &Request) -> Kind {
    match request.kind() {
        Kind::AttachRoot => Kind::Attach,
        kind => kind,
    }
}

/// Returns the request: as it was written, or as it would have been.
pub fn request(operation: &Operation) -> Map<String, Value> {
    let mut fields = operation.written.clone().map_or_else(|| asked(operation), |written| written.0);
    if operation.request.kind() == Kind::AttachRoot {
        fields.insert("device_id".to_owned(), json!(0));
        fields.insert("attach_as".to_owned(), json!("root"));
    }
    fields
}

fn asked(operation: &Operation) -> Map<String, Value> {
    let fields = match &operation.request {
        Request::Create(create) => json!({
            "name": create.name, "size": create.size, "disk_offering_id": create.disk_offering, "zone_id": create.zone,
        }),
        Request::Attach(attach) | Request::AttachRoot(attach) => {
            json!({ "volume_id": attach.volume, "vm_id": operation.vm })
        }
        Request::Detach(detach) | Request::Delete(detach) => {
            let from = match detach.from {
                Some(Place::Vm(vm)) => Some(vm),
                _ => None,
            };
            json!({ "volume_id": detach.volume, "vm_id": from, "force": detach.force })
        }
        Request::Cleanup(cleanup) => json!({
            "test_vm_id": cleanup.test_vm, "volume_id": cleanup.volume, "delete_vm": cleanup.delete_vm,
            "force_clean": cleanup.force,
        }),
        Request::Unusable(unusable) => json!({ "volume_id": unusable.volume }),
    };
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// What the predecessor's callers read in the result of an operation, besides [`super::Response`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct More {
    /// Of a root disk: its place in the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<u32>,
    /// Of a detach: the path, also if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_path: Option<String>,
    /// Of a cleanup: the VM of the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_vm_id: Option<String>,
    /// Of a cleanup: the VM to which the volume came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oma_vm_id: Option<String>,
}

/// Returns what an operation's result has besides its response.
pub fn more(operation: &Operation) -> More {
    let path = operation.response.as_ref().and_then(|response| response.device_path.clone());
    let written = |field: &str| {
        let fields = &operation.written.as_ref()?.0;
        fields.get(field)?.as_str().map(str::to_owned)
    };
    match &operation.request {
        Request::AttachRoot(_) => More { device_id: Some(0), ..More::default() },
        Request::Detach(_) => More { device_path: Some(path.unwrap_or_default()), ..More::default() },
        Request::Cleanup(cleanup) => {
            More { test_vm_id: Some(cleanup.test_vm.to_string()), oma_vm_id: written("oma_vm_id"), ..More::default() }
        }
        Request::Create(_) | Request::Attach(_) | Request::Delete(_) | Request::Unusable(_) => More::default(),
    }
}

/// Returns the result, if the operation has succeeded.
pub fn response(operation: &Operation) -> Option<Value> {
    let mut response = json!(operation.response.as_ref()?);
    if let (Value::Object(fields), Value::Object(more)) = (&mut response, json!(more(operation))) {
        fields.extend(more);
    }
    Some(response)
}

/// Returns why the operation has failed. Callers of the predecessor's routes know the beginning of the text.
pub fn error(operation: &Operation) -> Option<String> {
    let fault = operation.fault.as_ref()?;
    if operation.written.is_none() {
        return Some(fault.message.clone());
    }
    let prefix = prefix(operation.request.kind(), &operation.progress.step, fault.code);
    Some(format!("{prefix}: {}", fault.message))
}

/// Returns how the predecessor's text of a failure begins. `step`: the last one of the operation.
fn prefix(kind: Kind, step: &Step, code: Code) -> &'static str {
    if code == Code::NoCloud {
        return "CloudStack client creation failed";
    }
    match (kind, step, code) {
        (Kind::Create, ..) => "CloudStack volume creation failed",
        (Kind::Attach, _, Code::NotServed) => "by-id device resolution failed",
        (Kind::AttachRoot, _, Code::NotServed) => "by-id device resolution failed for root disk",
        (Kind::Attach | Kind::AttachRoot, Step::Intend, _) => "mapping creation failed",
        (Kind::Attach, ..) => "CloudStack volume attachment failed",
        (Kind::AttachRoot, ..) => "CloudStack volume root attachment failed",
        (Kind::Detach, ..) | (Kind::Delete, Step::Seal | Step::Unseal | Step::Detach { .. } | Step::Release, _) => {
            "CloudStack volume detachment failed"
        }
        (Kind::Delete, ..) => "CloudStack volume deletion failed",
        (Kind::Cleanup, Step::Detach { .. }, _) => "failed to detach volume from test VM",
        (Kind::Cleanup, Step::Intend | Step::Attach { .. } | Step::Withdraw, _) => {
            "failed to reattach volume to OMA/SHA"
        }
        (Kind::Cleanup, Step::StopVm { .. }, Code::TimeIsUp) => "test VM still not powered off after forced shutdown",
        (Kind::Cleanup, Step::DestroyVm { .. }, _) => "failed to delete test VM",
        (Kind::Cleanup, ..) => "failed to power off test VM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::JobId;

    #[test]
    fn a_failure_begins_as_the_predecessors_callers_know_it() {
        let job = JobId::from(uuid::Uuid::from_u128(7));
        let (detach, attach) = (Step::Detach { job }, Step::Attach { job });
        for (kind, step, code, expected) in [
            (Kind::Create, Step::Accepted, Code::NoCloud, "CloudStack client creation failed"),
            (Kind::Create, Step::DeleteOrphan, Code::CloudRefused, "CloudStack volume creation failed"),
            (Kind::Attach, Step::Accepted, Code::OwnVmUnknown, "CloudStack volume attachment failed"),
            (Kind::Attach, Step::Intend, Code::SerialTaken, "mapping creation failed"),
            (Kind::Attach, attach.clone(), Code::NotServed, "by-id device resolution failed"),
            (Kind::Attach, Step::Withdraw, Code::CloudRefused, "CloudStack volume attachment failed"),
            (Kind::AttachRoot, attach.clone(), Code::CloudRefused, "CloudStack volume root attachment failed"),
            (Kind::AttachRoot, attach.clone(), Code::NotServed, "by-id device resolution failed for root disk"),
            (Kind::Detach, Step::Seal, Code::ClientsConnected, "CloudStack volume detachment failed"),
            (Kind::Delete, Step::Seal, Code::ClientsConnected, "CloudStack volume detachment failed"),
            (Kind::Delete, detach.clone(), Code::CloudRefused, "CloudStack volume detachment failed"),
            (Kind::Delete, Step::Delete, Code::CloudRefused, "CloudStack volume deletion failed"),
            (Kind::Delete, Step::Accepted, Code::RootVolume, "CloudStack volume deletion failed"),
            (Kind::Cleanup, Step::StopVm { job }, Code::CloudRefused, "failed to power off test VM"),
            (
                Kind::Cleanup,
                Step::StopVm { job },
                Code::TimeIsUp,
                "test VM still not powered off after forced shutdown",
            ),
            (Kind::Cleanup, detach, Code::CloudRefused, "failed to detach volume from test VM"),
            (Kind::Cleanup, attach, Code::NotServed, "failed to reattach volume to OMA/SHA"),
        ] {
            assert_eq!(prefix(kind, &step, code), expected, "{kind} {step:?} {code}");
        }
    }
}
