//! Calls of the predecessor's routes, as its callers make them, beside a stand-in for CloudStack.

use lab::{Api, Attachd, Lab, LabCloud, Volume};
use serde_json::{Value, json};

use super::cloud::lab_in_cloud;
use super::{Helper, MIB, SOON, start};

/// A lab whose host is a VM of the stand-in, with the helper.
pub(crate) fn with_cloud() -> (Lab, LabCloud, Helper, Attachd, Api) {
    let (lab, cloud) = lab_in_cloud();
    let helper = Helper::start();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, cloud, helper, attachd, api)
}

pub(crate) fn volume_in(cloud: &LabCloud) -> Volume {
    let volume = Volume::random();
    cloud.add(&volume, 4 * MIB);
    volume
}

/// Sends a request as `curl -d` does: without a Content-Type. Returns status and body.
pub(crate) fn send(api: &Api, method: &str, path: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost:8090\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let answer = String::from_utf8(api.raw(request.as_bytes(), SOON).unwrap()).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() })
}

/// Begins an operation, and returns it as it was answered.
pub(crate) fn begin(api: &Api, method: &str, path: &str, body: &str) -> Value {
    let (status, operation) = send(api, method, path, body);
    assert_eq!(status, 201, "{method} {path}: {operation}");
    operation
}

/// Waits for the end of an operation.
pub(crate) fn ended(api: &Api, operation: &Value) -> Value {
    let id = operation["id"].as_str().unwrap();
    api.get(&format!("/api/v1/operations/{id}?wait=done&timeout_seconds=60")).unwrap().expect(200).unwrap()
}

pub(crate) fn path(volume: &Volume, what: &str) -> String {
    format!("/api/v1/volumes/{}{what}", volume.id)
}

pub(crate) fn attach(api: &Api, volume: &Volume, vm: &str) -> Value {
    let operation = begin(api, "POST", &path(volume, "/attach"), &json!({ "vm_id": vm }).to_string());
    ended(api, &operation)
}

/// How many calls that change something the stand-in has had.
pub(crate) fn changes(cloud: &LabCloud) -> usize {
    let changing = ["createVolume", "attachVolume", "detachVolume", "deleteVolume", "stopVirtualMachine"];
    cloud.calls().iter().filter(|call| changing.contains(&call.command.as_str())).count()
}
