//! Reads volumes, VMs and jobs from answers. A value that is not understood is an error, never a guess. Pure.

use serde_json::Value;

use super::answer::cs_code;
use super::error::{CallError, Refusal};
use super::job::{JobStatus, Started};
use super::json::{Fields, Object};
use super::refusal::SaidIn;
use super::vm::{CloudVm, VmState};
use super::volume::{CloudVolume, VolumeKind, VolumeState};
use super::words::one_line;
use crate::identity::JobId;

/// Something in the answer is not what it should be.
fn odd(what: impl Into<String>) -> CallError {
    CallError::NotUnderstood { what: what.into() }
}

/// Reads the id of a volume, a VM or a job.
fn id<T: std::str::FromStr>(of: &str, object: &Object, name: &str) -> Result<T, CallError>
where
    T::Err: std::fmt::Display,
{
    let text = object.text(name).ok_or_else(|| odd(format!("{of} has no {name}")))?;
    text.parse().map_err(|error| odd(format!("{of}, {name}: {}", one_line(&format!("{error}")))))
}

/// The volumes of a list.
pub(super) fn volumes(answer: &Object) -> Result<Vec<CloudVolume>, CallError> {
    let list = answer.objects("volume").ok_or_else(|| odd("the list of volumes is none"))?;
    list.into_iter().map(volume).collect()
}

fn volume(object: &Object) -> Result<CloudVolume, CallError> {
    let text = |name: &str| object.text(name).map(|text| one_line(&text));
    let state = text("state").ok_or_else(|| odd("a volume has no state"))?;
    let kind = match text("type").as_deref() {
        Some("ROOT") => VolumeKind::Root,
        Some("DATADISK") => VolumeKind::Data,
        other => return Err(odd(format!("a volume is of the type {}", other.unwrap_or("none")))),
    };
    // Absent while it is detached.
    let vm = object.text("virtualmachineid").map(|_| id("a volume", object, "virtualmachineid")).transpose()?;
    Ok(CloudVolume {
        id: id("a volume", object, "id")?,
        name: text("name").unwrap_or_default(),
        size_bytes: size(object)?,
        state: VolumeState::named(&state),
        kind,
        vm,
        device_id: object.number("deviceid").and_then(|id| u32::try_from(id).ok()),
        delete_protection: object.flag("deleteprotection").unwrap_or_default(),
    })
}

/// Reads the size; 0 if there is none yet.
fn size(object: &Object) -> Result<u64, CallError> {
    match object.get("size") {
        None | Some(Value::Null) => Ok(0),
        Some(_) => object.number("size").ok_or_else(|| odd("the size of a volume is no whole number")),
    }
}

/// The VMs of a list.
pub(super) fn vms(answer: &Object) -> Result<Vec<CloudVm>, CallError> {
    let list = answer.objects("virtualmachine").ok_or_else(|| odd("the list of VMs is none"))?;
    list.into_iter().map(vm).collect()
}

fn vm(object: &Object) -> Result<CloudVm, CallError> {
    let text = |name: &str| object.text(name).map(|text| one_line(&text));
    let interfaces = object.objects("nic").ok_or_else(|| odd("the interfaces of a VM are no list"))?;
    // An interface whose address is not understood is left out.
    let macs = interfaces.iter().filter_map(|nic| nic.text("macaddress")?.parse().ok()).collect();
    Ok(CloudVm {
        id: id("a VM", object, "id")?,
        name: text("displayname").or_else(|| text("name")).unwrap_or_default(),
        state: VmState::named(&text("state").ok_or_else(|| odd("a VM has no state"))?),
        macs,
    })
}

/// Reads the answer to a call that begins a job. An old server does not know `customjobid` and gives the job an id of its own.
pub(super) fn started(answer: &Object) -> Result<Started, CallError> {
    let job: JobId = id("the job", answer, "jobid")?;
    let volume = answer.text("id").map(|_| id("the volume", answer, "id")).transpose()?;
    Ok(Started { job, volume })
}

/// Reads the answer to a call that has no job.
pub(super) fn done(answer: &Object) -> Result<(), CallError> {
    match answer.flag("success") {
        Some(true) => Ok(()),
        Some(false) => {
            let text = answer.text("displaytext").unwrap_or_else(|| "it was not done".to_owned());
            Err(CallError::Refused(Refusal::said(SaidIn::Call, 530, None, &text)))
        }
        None => Err(odd("whether it was done is not said")),
    }
}

/// Reads the status of a job.
pub(super) fn job(answer: &Object) -> Result<JobStatus, CallError> {
    let result = answer.object("jobresult");
    match answer.number("jobstatus") {
        Some(0) => Ok(JobStatus::Running),
        Some(1) => {
            let volume = result.and_then(|result| result.object("volume"));
            Ok(JobStatus::Succeeded { volume: volume.map(|volume| id("the job's volume", volume, "id")).transpose()? })
        }
        Some(2) => Ok(JobStatus::Failed(failure(answer, result))),
        Some(3) => Ok(JobStatus::Cancelled),
        _ => {
            let status = answer.get("jobstatus").map_or_else(|| "none".to_owned(), Value::to_string);
            Err(odd(format!("the status of the job is {}", one_line(&status))))
        }
    }
}

fn failure(answer: &Object, result: Option<&Object>) -> Refusal {
    let of = |object: &Object, name: &str| object.number(name).and_then(|code| u16::try_from(code).ok());
    let code = result.and_then(|result| of(result, "errorcode")).or_else(|| of(answer, "jobresultcode"));
    // Some failures are only a text, or nothing.
    let text = result.and_then(|result| result.text("errortext")).or_else(|| answer.text("jobresult"));
    Refusal::said(SaidIn::Job, code.unwrap_or(530), result.and_then(cs_code), &text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::error::RefusalKind;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const ID: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";
    const VM: &str = "0d2f6d8e-58a3-4d20-9f3c-3c1f2a7d0c11";

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn one(value: &Value) -> Result<CloudVolume, CallError> {
        Ok(volumes(&object(json!({ "count": 1, "volume": [value] })))?.remove(0))
    }

    #[test]
    fn a_volume_is_read_with_numbers_as_numbers_or_as_text() {
        let detached =
            json!({ "id": ID, "name": "d1", "size": 1_073_741_824u64, "state": "Ready", "type": "DATADISK" });
        let volume = one(&detached).unwrap();
        assert_eq!((volume.size_bytes, volume.vm, volume.device_id), (1 << 30, None, None));
        let attached = json!({
            "id": ID.to_uppercase(), "name": 7, "size": "1073741824", "state": "Odd\u{1b}", "type": "ROOT",
            "virtualmachineid": VM, "deviceid": "0", "deleteprotection": "true", "newfield": [1, {}],
        });
        let volume = one(&attached).unwrap();
        assert_eq!((volume.id.to_string(), volume.name.as_str()), (ID.to_owned(), "7"));
        assert_eq!((volume.size_bytes, volume.kind, volume.device_id), (1 << 30, VolumeKind::Root, Some(0)));
        assert_eq!((volume.vm.unwrap().to_string(), volume.delete_protection), (VM.to_owned(), true));
        assert_eq!(volume.state, VolumeState::Other("Odd".into()));
    }

    #[test]
    fn a_volume_that_is_not_whole_is_an_error_and_no_guess() {
        let whole = json!({ "id": ID, "state": "Ready", "type": "DATADISK" });
        assert!(one(&whole).is_ok(), "the control");
        for (name, value) in [
            ("id", json!("7")),
            ("id", json!(7)),
            ("id", Value::Null),
            ("state", Value::Null),
            ("type", json!("FLOPPY")),
            ("virtualmachineid", json!("i-2-7-VM")),
            ("size", json!(-1)),
            ("size", json!(1e30)),
            ("size", json!("1 GiB")),
        ] {
            let mut odd = object(whole.clone());
            odd.insert(name.to_owned(), value.clone());
            assert!(one(&Value::Object(odd)).is_err(), "{name}: {value}");
        }
        assert!(volumes(&object(json!({ "volume": {} }))).is_err());
        assert!(volumes(&object(json!({ "volume": [7] }))).is_err());
        assert_eq!(volumes(&object(json!({}))).unwrap(), [], "none is no error");
    }

    #[test]
    fn a_vm_is_read_with_its_addresses() {
        let nics = json!([{ "macaddress": "02:00:4C:00:00:01" }, { "macaddress": "x" }, {}]);
        let vms =
            vms(&object(json!({ "virtualmachine": [{ "id": VM, "name": "n", "state": "Running", "nic": nics }] })));
        let vm = vms.unwrap().remove(0);
        assert_eq!((vm.name.as_str(), vm.state), ("n", VmState::Running));
        assert_eq!(vm.macs, ["02:00:4c:00:00:01".parse().unwrap()]);
    }

    #[test]
    fn a_job_is_read_whatever_it_came_to() {
        let read = |value: Value| job(&object(value));
        assert_eq!(read(json!({ "jobstatus": 0 })).unwrap(), JobStatus::Running);
        assert_eq!(read(json!({ "jobstatus": "3" })).unwrap(), JobStatus::Cancelled, "there is no result of it");
        let volume = json!({ "jobstatus": 1, "jobresult": { "volume": { "id": ID } } });
        assert_eq!(read(volume).unwrap(), JobStatus::Succeeded { volume: Some(ID.parse().unwrap()) });
        assert_eq!(read(json!({ "jobstatus": 1 })).unwrap(), JobStatus::Succeeded { volume: None });
        let failed = |result: Value| {
            let read = read(json!({ "jobstatus": 2, "jobresultcode": 431, "jobresult": result })).unwrap();
            let JobStatus::Failed(refusal) = read else { panic!("{read:?}") };
            (refusal.kind, refusal.http, refusal.words)
        };
        let attached = json!({ "errorcode": 530, "errortext": "x" });
        assert_eq!(failed(attached), (RefusalKind::Other, 530, "x".to_owned()));
        let full = json!({ "errorcode": 431, "errortext": "already has the maximum number of data disks" });
        assert_eq!(failed(full).0, RefusalKind::Limit);
        assert_eq!(failed(json!("text alone")), (RefusalKind::Conflict, 431, "text alone".to_owned()));
        assert_eq!(failed(json!(null)).1, 431);
        for unknown in [json!(4), json!(-1), json!(1.5), json!("done"), json!(null)] {
            assert!(read(json!({ "jobstatus": unknown })).is_err());
        }
        assert!(read(json!({})).is_err());
    }

    #[test]
    fn a_job_has_the_id_that_the_server_says() {
        let read = |value: Value| started(&object(value));
        assert_eq!(read(json!({ "jobid": VM })).unwrap(), Started { job: VM.parse().unwrap(), volume: None });
        let made = read(json!({ "jobid": VM, "id": ID })).unwrap();
        assert_eq!(made.volume, Some(ID.parse().unwrap()));
        assert!(read(json!({})).unwrap_err().may_be_done(), "the control: a job without an id");
    }

    #[test]
    fn whether_a_volume_is_deleted_is_said_as_a_word_or_as_text() {
        assert!(
            done(&object(json!({ "success": true }))).is_ok() && done(&object(json!({ "success": "true" }))).is_ok()
        );
        assert!(matches!(done(&object(json!({ "success": false }))), Err(CallError::Refused(_))));
        assert!(matches!(done(&object(json!({}))), Err(CallError::NotUnderstood { .. })));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(json!(ID)),
        ];
        let names = prop_oneof![
            Just("id".to_owned()),
            Just("state".to_owned()),
            Just("type".to_owned()),
            Just("size".to_owned()),
            Just("volume".to_owned()),
            Just("jobstatus".to_owned()),
            Just("jobresult".to_owned()),
            Just("nic".to_owned()),
            Just("errorcode".to_owned()),
            Just("virtualmachine".to_owned()),
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(names.clone(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_value_makes_a_reader_panic(value in any_json()) {
            if let Value::Object(object) = value {
                let _ = volumes(&object);
                let _ = vms(&object);
                let _ = job(&object);
                let _ = done(&object);
                let _ = started(&object);
            }
        }
    }
}
