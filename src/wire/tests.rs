use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::operation::Field;
use super::*;

const VOLUME_ID: &str = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";
const SERIAL: &str = "b3bb93101b594f6297e8";
const AT: &str = "2025-01-01T10:00:00.0042Z";

/// One sample of each shape, with every possible field.
fn volume() -> Value {
    json!({
        "volume_id": VOLUME_ID, "serial": SERIAL, "vm_id": "vm", "state": "ready", "since": AT,
        "device_path": "/l", "device_node": "/dev/vdb", "size_bytes": 1, "diskseq": 2,
        "export": { "name": "n", "uri": "u", "state": "served" },
        "evidence": {
            "serial": SERIAL, "scheme": "virtio", "devnum": "7:1", "diskseq": 2, "size_bytes": 1, "read_only": false,
            "boot_id": "b", "at": AT
        },
        "reason": { "code": "C", "message": "m", "hint": "h" },
        "timeline": [{ "at": AT, "event": "intent", "detail": "d" }],
        "timeline_incomplete": false, "size": 1, "cloudstack_data": "x"
    })
}

fn event() -> Value {
    json!({
        "id": 1, "at": AT, "volume_id": VOLUME_ID, "serial": SERIAL, "event": "ready", "detail": "d", "state": "ready",
        "reason": { "code": "C", "message": "m", "hint": "h" }
    })
}

fn intent() -> Value {
    json!({
        "volume_id": VOLUME_ID, "serial": SERIAL, "vm_id": "vm", "size_bytes": 1, "deadline_seconds": 2,
        "deadline_at": AT, "created_at": AT, "uid": 0, "state": "waiting"
    })
}

fn device() -> Value {
    json!({
        "node": "/dev/vdb", "devnum": "7:1", "diskseq": 2, "size_bytes": 1, "read_only": false, "scheme": "virtio",
        "serial": SERIAL, "link": "/l", "link_target": "7:1", "uses": ["swap"], "settled": true, "volume_id": VOLUME_ID,
        "unusable": "u", "unread": "w"
    })
}

fn operation() -> Value {
    json!({
        "id": VOLUME_ID, "type": "attach-root", "status": "executing", "volume_id": VOLUME_ID, "vm_id": VOLUME_ID,
        "request": { "force": true },
        "response": {
            "volume_id": VOLUME_ID, "vm_id": VOLUME_ID, "device_path": "/l", "vm_deleted": true,
            "flush": { "state": "failed", "why": "w" }, "adopted": false, "message": "m"
        },
        "error": "e", "code": "C", "hint": "h",
        "step": {
            "name": "attach", "waits_for": "cloud", "text": "t", "since": AT, "job_id": VOLUME_ID, "cancellable": false
        },
        "deadline_at": AT, "key": "k", "uid": 0, "created_at": AT, "updated_at": AT, "completed_at": AT
    })
}

fn exports() -> Value {
    let entry = json!({
        "name": "n", "uri": "u", "state": "none", "volume_id": VOLUME_ID, "device_path": "/l", "id": "0",
        "export_name": "n", "port": 1, "status": "active", "created_at": AT, "updated_at": AT, "metadata": {}
    });
    let checked = json!({
        "name": "n", "volume_id": VOLUME_ID, "wanted": true, "published": true, "due": true, "listed": true,
        "openable": true, "why": "w", "stale": false, "clear": "c"
    });
    json!({ "exports": [entry], "count": 1, "foreign": ["f"], "foreign_count": 1, "checked": [checked], "served": { "due": 1, "openable": 1 } })
}

fn health() -> Value {
    let socket = json!({ "events": 1, "overruns": 2, "drops": 3, "receive_buffer_bytes": 4 });
    json!({
        "status": "degraded", "timestamp": AT, "version": "1", "started_at": AT,
        "problems": [{ "code": "C", "message": "m", "hint": "h" }], "remarks": [{ "code": "C", "message": "m" }],
        "monitor": { "udev": socket, "kernel": socket }, "udevd": { "state": "silent", "since": AT },
        "resync": { "count": 1, "last_reason": "r", "last_at": AT, "losses": 2 },
        "store": { "state": "failing", "error": "e" },
        "projection": [{ "target": "sqlite", "owed": 1, "behind_since": AT, "refused": 2, "error": "e" }],
        "backend": {
            "name": "nbd-server", "mode": "signal", "because": "b", "state": "down", "pid": 1, "why": "w", "listen": "l",
            "insecure": false
        },
        "helper": { "state": "silent", "why": "w" }, "volumes": { "lost": 1, "ready": 2 },
        "operations": { "open": 1, "oldest_at": AT, "late": 2, "failed_last_hour": 3 },
        "cloud": {
            "url": "u", "state": "failing", "why": "w", "since": AT, "last_answer": AT,
            "last_refusal": { "at": AT, "command": "c", "message": "m" }, "own_vm": { "id": "i", "from": "f", "why": "w" }
        },
        "listeners": [{ "address": "a", "from": "systemd", "tls": true }],
        "service": "s", "cloudstack_health": "c", "database_health": "d", "device_monitor": "m"
    })
}

/// Collects the JSON pointers of all fields.
fn fields(value: &Value, at: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.push((at.to_owned(), name.clone()));
                fields(value, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(list) => list.iter().enumerate().for_each(|(n, value)| fields(value, &format!("{at}/{n}"), found)),
        _ => {}
    }
}

/// Checks that the sample is read completely; that it is refused if any field is renamed, except those in `may_lack`;
/// and that an additional field is ignored.
fn holds<T: Serialize + DeserializeOwned>(whole: &Value, may_lack: &[&str]) {
    let read = |value: &Value| serde_json::from_value::<T>(value.clone());
    assert_eq!(&serde_json::to_value(read(whole).unwrap()).unwrap(), whole, "the control");
    let mut all = Vec::new();
    fields(whole, "", &mut all);
    for (at, name) in all {
        let mut renamed = whole.clone();
        let object = renamed.pointer_mut(&at).unwrap().as_object_mut().unwrap();
        let value = object.remove(&name).unwrap();
        object.insert(format!("{name}_"), value);
        assert_eq!(read(&renamed).is_ok(), may_lack.contains(&name.as_str()), "{at}/{name}: {renamed}");
        let mut newer = whole.clone();
        newer.pointer_mut(&at).unwrap().as_object_mut().unwrap().insert("more".to_owned(), json!({ "new": 1 }));
        // The counts are by state, so another name is an unknown state.
        assert_eq!(read(&newer).is_ok(), at != "/volumes" || !whole["volumes"].is_object(), "{at}: {newer}");
    }
}

#[test]
fn a_renamed_field_is_refused_and_an_additional_field_is_ignored() {
    // These fields are left out when they are empty; a command that needs one reports that it is missing.
    holds::<VolumeView>(&volume(), &["timeline", "detail"]);
    holds::<VolumeList>(&json!({ "volumes": [volume()], "count": 1 }), &["timeline", "detail"]);
    holds::<EventView>(&event(), &["detail"]);
    holds::<Missed>(&json!({ "missed": 1 }), &[]);
    holds::<IntentView>(&intent(), &[]);
    // Left out where the predecessor left them out; `force` is a field of the request, which is of many kinds.
    let left_out = ["vm_id", "response", "error", "completed_at", "force", "device_path", "vm_deleted", "flush"];
    holds::<OperationView>(&operation(), &left_out);
    holds::<Vec<OperationView>>(&json!([operation()]), &left_out);
    let step = operation()["step"].clone();
    holds::<OperationStanding>(&json!({ "status": "pending", "step": step }), &[]);
    holds::<IntentList>(&json!({ "intents": [intent()], "count": 1 }), &[]);
    let withdrawn =
        json!({ "volume_id": VOLUME_ID, "message": "m", "clients_still_connected": ["c"], "clients_exact": true });
    holds::<WithdrawnView>(&withdrawn, &[]);
    holds::<DeviceList>(&json!({ "devices": [device()], "count": 1 }), &[]);
    holds::<Resynced>(&json!({ "message": "m" }), &[]);
    holds::<ExportList>(&exports(), &["checked", "served"]);
    holds::<Health>(&health(), &[]);
    holds::<ErrorBody>(&json!({ "error": "e", "code": "C", "details": [1] }), &[]);
    holds::<WaitTimeoutDetails>(
        &json!({ "state": "refused", "reason": { "code": "C", "message": "m", "hint": "h" } }),
        &[],
    );
}

#[test]
fn unknown_values_are_written_and_read_as_null() {
    let mut unknown = volume();
    for field in ["device_path", "device_node", "size_bytes", "diskseq", "evidence", "reason", "cloudstack_data"] {
        unknown[field] = Value::Null;
    }
    let read: VolumeView = serde_json::from_value(unknown.clone()).unwrap();
    assert!(read.reason.is_none() && read.size_bytes.is_none());
    assert_eq!(serde_json::to_value(read).unwrap(), unknown);
}

#[test]
fn a_new_intent_with_an_unknown_field_is_refused() {
    let whole = NewIntent {
        volume_id: VOLUME_ID.to_owned(),
        vm_id: Some("vm".to_owned()),
        size_bytes: Some(u64::MAX),
        deadline_seconds: Some(0),
    };
    let written = serde_json::to_string(&whole).unwrap();
    let read: NewIntent = serde_json::from_str(&written).unwrap();
    assert_eq!((read.size_bytes, read.deadline_seconds), (Some(u64::MAX), Some(0)));
    for field in ["volume_id", "vm_id", "size_bytes", "deadline_seconds"] {
        let renamed = written.replace(field, "other");
        assert!(serde_json::from_str::<NewIntent>(&renamed).is_err(), "{renamed}");
    }
    let little = NewIntent { vm_id: None, size_bytes: None, deadline_seconds: None, ..whole };
    assert_eq!(serde_json::to_string(&little).unwrap(), format!("{{\"volume_id\":\"{VOLUME_ID}\"}}"));
}

#[test]
fn an_operation_reads_as_the_predecessors_did() {
    let mut plain = operation();
    for field in ["vm_id", "response", "error", "completed_at"] {
        plain.as_object_mut().unwrap().remove(field);
    }
    for field in ["code", "hint", "step", "key", "uid"] {
        plain[field] = Value::Null;
    }
    plain["volume_id"] = json!("");
    let read: OperationView = serde_json::from_value(plain.clone()).unwrap();
    assert_eq!(
        serde_json::to_value(&read).unwrap(),
        plain,
        "left out, and not null, where the predecessor left it out"
    );
    let failed: OperationView = serde_json::from_value(operation()).unwrap();
    assert!(serde_json::to_value(failed).unwrap()["error"].is_string(), "callers read the error as a string");
}

#[test]
fn an_operation_is_asked_for_in_fields_that_are_known() {
    use crate::operation::Kind;
    let whole = NewOperation {
        volume_id: Some("v".to_owned()),
        vm_id: Some("m".to_owned()),
        name: Some("n".to_owned()),
        size_bytes: Some(u64::MAX),
        disk_offering_id: Some("d".to_owned()),
        zone_id: Some("z".to_owned()),
        force: Some(true),
        delete_vm: Some(true),
        client_wait_seconds: Some(30),
        deadline_seconds: Some(7),
        ..NewOperation::of(Kind::Cleanup)
    };
    let written = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<NewOperation>(&written).unwrap(), whole);
    let names = Field::ALL.map(Field::name);
    for (field, name) in Field::ALL.into_iter().zip(names).chain([(Field::VolumeId, "type")]) {
        assert!(whole.says(field) && whole.fields().len() == names.len());
        let renamed = written.replace(&format!("\"{name}\""), "\"other\"");
        assert!(serde_json::from_str::<NewOperation>(&renamed).is_err(), "{renamed}");
        let twice = written.replacen('{', &format!("{{\"{name}\":null,"), 1);
        assert!(serde_json::from_str::<NewOperation>(&twice).is_err(), "said twice: {twice}");
    }
    let little = NewOperation::of(Kind::AttachRoot);
    assert_eq!(serde_json::to_string(&little).unwrap(), r#"{"type":"attach-root"}"#);
    assert!(Field::ALL.into_iter().all(|field| !little.says(field)));
}

#[test]
fn what_an_operation_shows_as_its_request_asks_for_the_same_again() {
    use crate::operation::{Attach, CleanUp, Create, Detach, Place, Request};
    let volume = VOLUME_ID.parse().unwrap();
    let vm = "00000001-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
    let own = "00000002-1b59-4f62-97e8-cefffdfe3804".parse().unwrap();
    let id = |text: &str| text.parse().unwrap();
    let create = Create {
        name: "disk 1".parse().unwrap(),
        size: 7.try_into().unwrap(),
        disk_offering: id("offering"),
        zone: id("zone"),
    };
    let requests = [
        Request::Create(create),
        Request::Attach(Attach { volume, to: Place::Here }),
        Request::AttachRoot(Attach { volume, to: Place::Vm(vm) }),
        Request::Detach(Detach { volume, from: None, force: true, client_wait_seconds: 0 }),
        Request::Delete(Detach { volume, from: Some(Place::Here), force: false, client_wait_seconds: 0 }),
        Request::Cleanup(CleanUp { volume, test_vm: vm, delete_vm: true, force: false, back_to: Place::Here }),
    ];
    for request in requests {
        let shown = as_asked(&request, Some(own));
        let needed = |field: &Field| field.is_needed(request.kind()) == Some(true);
        assert!(Field::ALL.iter().filter(|field| needed(field)).all(|field| shown.says(*field)), "{shown:?}");
        let (again, _) = shown.request().unwrap();
        assert_eq!(again.seen_from(Some(own)), request);
    }
}

#[test]
fn a_state_is_written_by_its_name() {
    use crate::volume::State;
    for state in State::ALL {
        let written = serde_json::to_string(&state).unwrap();
        assert_eq!(written, format!("\"{state}\""));
        assert_eq!(serde_json::from_str::<State>(&written).unwrap(), state);
    }
    assert!(serde_json::from_str::<State>("\"served\"").is_err());
    let words = [BackendState::Up.to_string(), ExportState::Published.to_string(), HealthStatus::Unhealthy.to_string()];
    assert_eq!(words, ["up", "published", "unhealthy"], "shown as it is written");
}
