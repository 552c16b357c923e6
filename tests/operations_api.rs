//! Operations as callers see them: the API's routes, the stream of events, and attachctl, with a stand-in for CloudStack.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use common::*;
use lab::{Api, Attachd, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::Setup;

const OPERATIONS: &str = "/api/v1/operations";

/// A lab whose host is a VM of the stand-in.
fn with_cloud() -> (Lab, LabCloud, Attachd, Api) {
    let mut lab = Lab::new();
    let cloud = lab.cloud(Setup::default()).unwrap();
    lab.attachd_config(&format!("{CONFIG}{}", cloud.config().unwrap())).unwrap();
    lab.nbdkit_start().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, cloud, attachd, api)
}

/// Sends a request with headers of its own and returns status, code and body.
fn send(api: &Api, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, Value) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: attachd\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    let answer = String::from_utf8(api.raw(request.as_bytes(), SOON).unwrap()).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    (status, body["code"].as_str().unwrap_or_default().to_owned(), body)
}

/// How many calls that change something the stand-in has had.
fn changes(cloud: &LabCloud) -> usize {
    let changing = ["createVolume", "attachVolume", "detachVolume", "deleteVolume", "stopVirtualMachine"];
    cloud.calls().iter().filter(|call| changing.contains(&call.command.as_str())).count()
}

#[test]
fn each_request_for_an_operation_that_cannot_be_used_gets_its_status_its_code_and_a_sentence_and_begins_nothing() {
    let (_lab, cloud, _attachd, api) = with_cloud();
    let volume = Volume::random();
    let id = &volume.id;
    let create = |field: &str, value: &str| {
        let fields = [("name", "\"n\""), ("size_bytes", "1"), ("disk_offering_id", "\"o\""), ("zone_id", "\"z\"")];
        let fields = fields.map(|(name, usual)| format!("\"{name}\": {}", if name == field { value } else { usual }));
        format!("{{\"type\": \"create\", {}}}", fields.join(", "))
    };
    let attach = |more: &str| format!("{{\"type\": \"attach\", \"volume_id\": \"{id}\"{more}}}");
    for (body, status, code, says) in [
        (String::new(), 400, "EMPTY_BODY", "no body"),
        ("{".to_owned(), 400, "BAD_JSON", "EOF"),
        ("[]".to_owned(), 422, "INVALID_BODY", "JSON object"),
        ("{}".to_owned(), 422, "INVALID_BODY", "missing field `type`"),
        (r#"{"type": "snapshot"}"#.to_owned(), 422, "INVALID_BODY", "expected one of `create`"),
        (r#"{"type": "attach"}"#.to_owned(), 422, "INVALID_BODY", "volume_id: it is missing"),
        (r#"{"type": "attach", "volume_id": "vol-1"}"#.to_owned(), 422, "INVALID_BODY", "volume_id: \"vol-1\" is not"),
        (attach(", \"vm_id\": \"\""), 422, "INVALID_BODY", "vm_id: \"\" is not a VM id"),
        (attach(", \"vm_id\": \"i-2-7-VM\""), 422, "INVALID_BODY", "leave it out for this host"),
        (attach(&format!(", \"volume_id\": \"{id}\"")), 422, "INVALID_BODY", "duplicate field `volume_id`"),
        (attach(", \"type\": \"attach\""), 422, "INVALID_BODY", "duplicate field `type`"),
        (attach(", \"force\": true"), 422, "INVALID_BODY", "force: type attach does not take it"),
        (attach(", \"vm\": \"x\""), 422, "INVALID_BODY", "unknown field `vm`"),
        (attach(", \"deadline_seconds\": 0"), 422, "INVALID_BODY", "deadline_seconds: it takes from 1 to 86400"),
        (attach(", \"deadline_seconds\": 4294967296"), 422, "INVALID_BODY", "not a whole number"),
        (create("size_bytes", "0"), 422, "INVALID_BODY", "size_bytes: a volume's size takes from 1"),
        (create("size_bytes", "18446744073709551616"), 422, "INVALID_BODY", "is not a whole number from 0"),
        (create("size_bytes", "9223372036854775808"), 422, "INVALID_BODY", "not 9223372036854775808"),
        (create("size_bytes", "1.5"), 422, "INVALID_BODY", "is not a whole number"),
        (create("name", "\"a\\nb\""), 422, "INVALID_BODY", "name: a volume's name takes"),
        (create("name", "\"\""), 422, "INVALID_BODY", "is empty"),
        (create("zone_id", "\"z&command=destroyVirtualMachine\""), 422, "INVALID_BODY", "zone_id"),
        (r#"{"type": "cleanup", "volume_id": ""}"#.to_owned(), 422, "INVALID_BODY", "vm_id: it is missing"),
    ] {
        let (is, is_code, answer) = send(&api, "POST", OPERATIONS, "", &body);
        assert_eq!((is, is_code.as_str()), (status, code), "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(says), "{body}: {answer}");
    }
    let key = |headers: &str| send(&api, "POST", OPERATIONS, headers, &attach(""));
    let long = format!("Idempotency-Key: {}\r\n", "x".repeat(256));
    for headers in ["Idempotency-Key:\r\n", "Idempotency-Key: a b\r\n", "Idempotency-Key: \u{e4}\r\n", &long] {
        let (status, code, answer) = key(headers);
        assert_eq!((status, code.as_str()), (400, "INVALID_KEY"), "{headers:?}: {answer}");
    }
    assert_eq!(key("Idempotency-Key: a\r\nIdempotency-Key: b\r\n").1, "INVALID_KEY", "two keys");
    for (method, path, status, code) in [
        ("GET", format!("{OPERATIONS}/17"), 400, "NOT_AN_OPERATION_ID"),
        ("GET", format!("{OPERATIONS}/%ff"), 400, "NOT_AN_OPERATION_ID"),
        ("GET", format!("{OPERATIONS}/{id}"), 404, "NO_SUCH_OPERATION"),
        ("GET", format!("{OPERATIONS}/{id}?wait=done"), 404, "NO_SUCH_OPERATION"),
        ("GET", format!("{OPERATIONS}/{id}?wait=ready"), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}/{id}?wait=done&timeout_seconds=3601"), 400, "INVALID_QUERY"),
        ("DELETE", format!("{OPERATIONS}/op-1"), 400, "NOT_AN_OPERATION_ID"),
        ("DELETE", format!("{OPERATIONS}/{id}"), 404, "NO_SUCH_OPERATION"),
        ("DELETE", format!("{OPERATIONS}/{id}?force=true"), 400, "INVALID_QUERY"),
        ("DELETE", OPERATIONS.to_owned(), 405, "METHOD_NOT_ALLOWED"),
        ("GET", format!("{OPERATIONS}?type=snapshot"), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}?status=done"), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}?state=failed"), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}?volume_id=vol-1"), 400, "NOT_A_VOLUME_ID"),
        ("GET", format!("{OPERATIONS}?vm_id="), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}?limit=0"), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}?limit=1001"), 400, "INVALID_QUERY"),
        ("GET", format!("{OPERATIONS}?before={id}"), 404, "NO_SUCH_OPERATION"),
        ("GET", "/api/v1/events?operation=x".to_owned(), 400, "NOT_AN_OPERATION_ID"),
    ] {
        let (is, is_code, answer) = send(&api, method, &path, "", "");
        assert_eq!((is, is_code.as_str()), (status, code), "{method} {path}: {answer}");
        assert!(answer["error"].as_str().unwrap().len() > 10, "{answer}");
    }
    assert_eq!(api.get(OPERATIONS).unwrap().text, "null", "nothing was begun, as the predecessor's callers read it");
    assert_eq!(changes(&cloud), 0, "and nothing was asked of CloudStack");
}

#[test]
fn without_cloudstack_an_operation_is_refused_with_the_reason_and_the_list_is_there() {
    let (_lab, _attachd, api) = up();
    let (status, code, answer) =
        send(&api, "POST", OPERATIONS, "", &json!({ "type": "attach", "volume_id": Volume::random().id }).to_string());
    assert_eq!((status, code.as_str()), (503, "NO_CLOUD"), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("[cloudstack] url"), "{answer}");
    assert_eq!(api.get(OPERATIONS).unwrap().text, "null");
}
