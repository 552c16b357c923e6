//! Operations as callers see them: the API's routes, the stream of events, and attachctl, with a stand-in for CloudStack.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::io::{Read, Write};

use common::cloud::lab_in_cloud;
use common::*;
use lab::{Api, Attachd, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::{Gate, JobFault, Vm};

const OPERATIONS: &str = "/api/v1/operations";

/// A lab whose host is a VM of the stand-in.
fn with_cloud() -> (Lab, LabCloud, Attachd, Api) {
    let (lab, cloud) = lab_in_cloud();
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
    let refused = api.post(OPERATIONS, &json!({ "type": "attach", "volume_id": Volume::random().id })).unwrap();
    assert_eq!(refused.header("retry-after"), None, "it would be the same a moment later");
    assert_eq!(api.get(OPERATIONS).unwrap().text, "null");
}

/// A lab as [`with_cloud`], with the helper.
fn with_cloud_and_helper() -> (Lab, LabCloud, Attachd, Api, Helper) {
    let (lab, cloud) = lab_in_cloud();
    let helper = Helper::start();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, cloud, attachd, api, helper)
}

fn volume_in(cloud: &LabCloud) -> Volume {
    let volume = Volume::random();
    cloud.add(&volume, 4 * MIB);
    volume
}

fn begin(api: &Api, body: &Value) -> Value {
    api.post(OPERATIONS, body).unwrap().expect(201).unwrap()
}

fn done(api: &Api, operation: &Value) -> Value {
    let id = operation["id"].as_str().unwrap();
    api.get(&format!("{OPERATIONS}/{id}?wait=done&timeout_seconds=20")).unwrap().expect(200).unwrap()
}

#[test]
fn an_attach_is_followed_to_its_end_by_the_answer_the_events_and_the_list() {
    let (_lab, cloud, _attachd, api, _helper) = with_cloud_and_helper();
    let volume = volume_in(&cloud);
    let mut events = api.events().unwrap();
    let begun = begin(&api, &json!({ "type": "attach", "volume_id": volume.id, "deadline_seconds": 60 }));
    assert_eq!((&begun["type"], &begun["volume_id"], &begun["uid"]), (&json!("attach"), &json!(volume.id), &json!(0)));
    assert_eq!(begun["request"]["deadline_seconds"], 60);
    let ended = done(&api, &begun);
    assert_eq!((&ended["status"], &ended["id"]), (&json!("completed"), &begun["id"]), "{ended}");
    assert_eq!(ended["response"]["device_path"], volume.link().to_str().unwrap());
    assert_eq!((&ended["vm_id"], &ended["request"]["vm_id"]), (&json!(cloud.vm_here()), &json!(cloud.vm_here())));
    assert!(ended["completed_at"].is_string() && ended["step"].is_null() && ended.get("error").is_none(), "{ended}");
    let state = api.get(&format!("/api/v1/volumes/{}", volume.id)).unwrap().expect(200).unwrap()["state"].clone();
    assert_eq!(state, "ready", "completed means served");

    // The stream has told of it: it was under way, and it has ended.
    let of_it = |status: &str| {
        let (id, status) = (begun["id"].clone(), status.to_owned());
        move |event: &Value| event["id"] == id && event["status"] == *status
    };
    let under_way = events.wait_for(of_it("executing"), SOON).unwrap();
    assert!(under_way["step"]["waits_for"].is_string() && under_way["step"]["since"].is_string(), "{under_way}");
    events.wait_for(of_it("completed"), SOON).unwrap();
    let list = api.get(OPERATIONS).unwrap().expect(200).unwrap();
    assert_eq!(list, json!([ended]), "a bare array");
}

#[test]
fn the_same_request_again_is_the_same_operation_and_a_key_used_for_another_names_the_field_that_differs() {
    let (_lab, cloud, _attachd, api, _helper) = with_cloud_and_helper();
    let (volume, other) = (volume_in(&cloud), volume_in(&cloud));
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let attach = |volume: &Volume| json!({ "type": "attach", "volume_id": volume.id }).to_string();
    let keyed = |body: &str| send(&api, "POST", OPERATIONS, "Idempotency-Key: job-17\r\n", body);
    let (status, _, first) = keyed(&attach(&volume));
    assert_eq!((status, &first["key"]), (201, &json!("job-17")));
    let (status, _, again) = keyed(&attach(&volume));
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let (status, _, natural) = send(&api, "POST", OPERATIONS, "", &attach(&volume));
    assert_eq!((status, &natural["id"]), (200, &first["id"]), "while it is open, what it asks for is its name");
    let (status, code, refused) = keyed(&attach(&other));
    assert_eq!((status, code.as_str()), (409, "IDEMPOTENCY_KEY_USED"), "{refused}");
    assert_eq!((&refused["details"]["field"], &refused["details"]["operation"]), (&json!("volume_id"), &first["id"]));
    assert_eq!((&refused["details"]["have"], &refused["details"]["asked"]), (&json!(volume.id), &json!(other.id)));
    let detach = json!({ "type": "detach", "volume_id": volume.id }).to_string();
    assert_eq!(keyed(&detach).2["details"]["field"], "type");
    // This host, said or not, is one VM; another one differs, whichever of the two was first.
    let elsewhere = Volume::random().id;
    cloud.add_vm(Vm::running(&elsewhere, "other"));
    let to = |volume: &Volume, vm: &str| json!({ "type": "attach", "volume_id": volume.id, "vm_id": vm }).to_string();
    let (status, _, here) = keyed(&to(&volume, cloud.vm_here()));
    assert_eq!((status, &here["id"]), (200, &first["id"]), "{here}");
    let (_, _, refused) = keyed(&to(&volume, &elsewhere));
    let details = &refused["details"];
    assert_eq!((&details["have"], &details["asked"]), (&json!(cloud.vm_here()), &json!(elsewhere)), "{refused}");
    let other_key = |body: &str| send(&api, "POST", OPERATIONS, "Idempotency-Key: job-18\r\n", body);
    assert_eq!(other_key(&to(&other, &elsewhere)).0, 201);
    let (_, _, refused) = other_key(&attach(&other));
    let details = &refused["details"];
    assert_eq!((&details["field"], &details["have"]), (&json!("vm_id"), &json!(elsewhere)), "{refused}");

    gate.open();
    assert_eq!(done(&api, &first)["status"], "completed");
    let (status, _, ended) = keyed(&attach(&volume));
    assert_eq!(
        (status, &ended["id"], &ended["status"]),
        (200, &first["id"], &json!("completed")),
        "also after its end"
    );
    let (status, _, new) = send(&api, "POST", OPERATIONS, "", &attach(&volume));
    assert_eq!(status, 201, "without the key it is another one: {new}");
    let adopted = done(&api, &new);
    assert_eq!((&adopted["status"], &adopted["response"]["adopted"]), (&json!("completed"), &json!(true)), "{adopted}");
    let calls = cloud.calls_of("attachVolume");
    let of_it = calls.iter().filter(|call| call.get("id") == volume.id).count();
    assert_eq!(of_it, 1, "CloudStack was asked once");
}

#[test]
fn who_waits_is_told_where_it_is_and_what_waits_for_its_turn_can_be_cancelled_and_what_was_asked_for_cannot() {
    let (_lab, cloud, _attachd, api, _helper) = with_cloud_and_helper();
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let attach = begin(&api, &json!({ "type": "attach", "volume_id": volume.id }));
    cloud.wait_calls("attachVolume", 1, SOON).unwrap();
    let path = |operation: &Value| format!("{OPERATIONS}/{}", operation["id"].as_str().unwrap());
    let waited = api.get(&format!("{}?wait=done&timeout_seconds=0", path(&attach))).unwrap().expect(504).unwrap();
    assert_eq!((&waited["code"], &waited["details"]["status"]), (&json!("WAIT_TIMEOUT"), &json!("executing")));
    let step = &waited["details"]["step"];
    assert_eq!((&step["name"], &step["waits_for"]), (&json!("attach"), &json!("cloud")), "{waited}");
    assert!(step["job_id"].is_string() && step["cancellable"] == false, "{waited}");
    let late = api.delete(&path(&attach)).unwrap().expect(409).unwrap();
    assert_eq!((&late["code"], &late["details"]["operation"]["status"]), (&json!("TOO_LATE"), &json!("executing")));

    let detach = begin(&api, &json!({ "type": "detach", "volume_id": volume.id }));
    let shown = api.get(&path(&detach)).unwrap().expect(200).unwrap();
    assert_eq!((&shown["status"], &shown["step"]["waits_for"]), (&json!("pending"), &json!("turn")), "{shown}");
    assert!(shown["step"]["text"].as_str().unwrap().contains(attach["id"].as_str().unwrap()), "{shown}");
    let cancelled = api.delete(&path(&detach)).unwrap().expect(200).unwrap();
    assert_eq!(cancelled["status"], "cancelled");
    let again = api.delete(&path(&detach)).unwrap().expect(200).unwrap();
    assert_eq!(again["status"], "cancelled", "asked twice, the same answer");
    gate.open();
    assert_eq!(done(&api, &attach)["status"], "completed");
    assert_eq!(api.delete(&path(&attach)).unwrap().expect(409).unwrap()["code"], "TOO_LATE");
    assert_eq!(cloud.calls_of("detachVolume").len(), 0, "what was cancelled was never asked for");
}

#[test]
fn a_list_goes_on_where_its_last_part_ended_also_when_new_operations_come_in_between() {
    let (_lab, cloud, _attachd, api) = with_cloud();
    let nobody = || json!({ "type": "attach", "volume_id": Volume::random().id });
    let ids: Vec<Value> = (0..5).map(|_| done(&api, &begin(&api, &nobody()))["id"].clone()).collect();
    let newest_first: Vec<&Value> = ids.iter().rev().collect();
    let mut path = format!("{OPERATIONS}?status=failed&limit=2");
    let mut seen = Vec::new();
    loop {
        let part = api.get(&path).unwrap();
        assert_eq!(part.status, 200, "{}", part.text);
        let operations = part.json.as_array().unwrap();
        assert!(operations.iter().all(|operation| operation["code"] == "NO_SUCH_VOLUME"), "{}", part.text);
        seen.extend(operations.iter().map(|operation| operation["id"].clone()));
        // Rows that came in at the front would move an offset.
        done(&api, &begin(&api, &nobody()));
        let Some(link) = part.header("link") else { break };
        let (target, relation) = link.split_once(">; ").unwrap();
        assert_eq!(relation, "rel=\"next\"");
        target.strip_prefix('<').unwrap().clone_into(&mut path);
        assert!(path.contains("status=failed"), "the filter stays: {path}");
    }
    assert_eq!(seen.iter().collect::<Vec<_>>(), newest_first, "each once, and none that came later");
    let other = api.get(&format!("{OPERATIONS}?status=completed")).unwrap();
    assert_eq!((other.status, other.text.as_str()), (200, "null"));
    let volume = api.get(&format!("{OPERATIONS}/{}", ids[0].as_str().unwrap())).unwrap().json["volume_id"].clone();
    let filter = format!("{OPERATIONS}?type=attach&volume_id={}&vm_id={}", volume.as_str().unwrap(), cloud.vm_here());
    assert_eq!(api.get(&filter).unwrap().json.as_array().unwrap().len(), 1);
}

#[test]
fn no_answer_of_the_api_and_no_line_of_the_daemon_has_the_key_or_the_secret() {
    let (lab, cloud, attachd, api) = with_cloud();
    lab.not_restarted("health tells what the last call of CloudStack has met, and after a start none was made");
    let key = cloud.key();
    cloud.change_keys(Vec::clear);
    // Keys that were written less than 5 s ago are looked at again for up to 3.3 s, should they be changing.
    let create = json!({
        "type": "create", "name": "n", "size_bytes": 1, "disk_offering_id": cloud.offering(), "zone_id": cloud.zone(),
        "deadline_seconds": 8
    });
    let failed = done(&api, &begin(&api, &create));
    assert_eq!(failed["status"], "failed", "{failed}");
    let why = failed["error"].as_str().unwrap();
    assert!(why.contains("verify user credentials"), "the control: the keys were used: {why}");
    let paths = ["/api/v1/operations", "/api/v1/health", "/metrics", "/api/v1/openapi.json"];
    let mut said: String = paths.map(|path| api.get(path).unwrap().text).concat();
    said += &attachd.stderr_text();
    for secret in [&key.key, &key.secret] {
        assert!(!said.contains(secret.as_str()), "{said}");
    }
}

#[test]
fn health_and_metrics_count_what_is_open_and_what_has_failed_also_after_a_restart() {
    let (lab, cloud, mut attachd, api, _helper) = with_cloud_and_helper();
    let health = || api.get("/api/v1/health").unwrap().json["operations"].clone();
    assert_eq!(health(), json!({ "open": 0, "oldest_at": null, "late": 0, "failed_last_hour": 0 }), "the control");
    let failed = done(&api, &begin(&api, &json!({ "type": "attach", "volume_id": Volume::random().id })));
    assert_eq!(failed["status"], "failed");
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let open = begin(&api, &json!({ "type": "attach", "volume_id": volume.id }));
    cloud.wait_calls("attachVolume", 1, SOON).unwrap();
    assert_eq!(health(), json!({ "open": 1, "oldest_at": open["created_at"], "late": 0, "failed_last_hour": 1 }));
    let metrics = api.get("/metrics").unwrap().text;
    let sample = "attachd_operations_open{type=\"attach\",state=\"executing\"} 1.0\n";
    assert!(metrics.contains(sample), "{metrics}");
    gate.open();
    assert_eq!(done(&api, &open)["status"], "completed");
    assert!(!api.get("/metrics").unwrap().text.contains(sample), "it has ended");
    attachd.kill9().unwrap();
    let _attachd = start(&lab);
    assert_eq!((&health()["open"], &health()["failed_last_hour"]), (&json!(0), &json!(1)));
}

#[test]
fn the_stream_can_be_of_one_operation_or_of_one_volume_with_its_operations() {
    let (_lab, cloud, _attachd, api, _helper) = with_cloud_and_helper();
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let mut all = api.events().unwrap();
    let mut of_volume = api.events_of(&format!("?volume_id={}", volume.id)).unwrap();
    let attach = begin(&api, &json!({ "type": "attach", "volume_id": volume.id }));
    cloud.wait_calls("attachVolume", 1, SOON).unwrap();
    let mut of_attach = api.events_of(&format!("?operation={}", attach["id"].as_str().unwrap())).unwrap();
    // Events of others, and of the volume, come in between.
    let other = done(&api, &begin(&api, &json!({ "type": "attach", "volume_id": Volume::random().id })));
    gate.open();
    assert_eq!(done(&api, &attach)["status"], "completed");

    let of_other = |event: &Value| event["id"] == other["id"];
    all.wait_for(of_other, SOON).unwrap();
    // Each stream up to the end of the attach, by name and what it is about.
    let up_to_the_end = |events: &mut lab::sse::Events| {
        let mut names = Vec::new();
        loop {
            let event = events.next(SOON).unwrap().unwrap();
            assert!(!of_other(&event.data), "it was not asked for: {event:?}");
            let ended = event.data["id"] == attach["id"] && event.data["status"] == "completed";
            names.push(event.name);
            if ended {
                return names;
            }
        }
    };
    assert!(up_to_the_end(&mut of_attach).iter().all(|name| name == "operation"));
    let names = up_to_the_end(&mut of_volume);
    assert!(names.contains(&"operation".to_owned()) && names.contains(&"volume".to_owned()), "{names:?}");
}

#[test]
fn who_waits_for_an_operation_takes_one_of_its_users_slots_and_is_answered_when_attachd_stops() {
    /// A user's share of the requests that wait.
    const WAITING: usize = 64;
    let (_lab, cloud, mut attachd, api, _helper) = with_cloud_and_helper();
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let attach = begin(&api, &json!({ "type": "attach", "volume_id": volume.id }));
    let path = format!("{OPERATIONS}/{}?wait=done&timeout_seconds=3600", attach["id"].as_str().unwrap());
    let somebody = api.by(60_001);
    let listening: Vec<_> = (0..WAITING).map(|_| somebody.events().unwrap()).collect();
    let refused = somebody.get(&path).unwrap();
    assert_eq!((refused.status, &refused.json["code"]), (503, &json!("TOO_MANY_LISTENERS")), "{}", refused.text);
    drop(listening);

    let mut waiting = api.connect(SOON).unwrap();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: attachd\r\n\r\n");
    waiting.write_all((request("/api/v1/health") + &request(&path)).as_bytes()).unwrap();
    // The first answer is here, so the second request, which came with the first one, is being answered.
    assert!(waiting.read(&mut [0; 16]).unwrap() > 0);
    attachd.terminate().unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\r\nretry-after: 1\r\n") && answer.ends_with('}'), "whole: {answer}");
    assert!(answer.contains("HTTP/1.1 503") && answer.contains("\"STOPPING\""), "{answer}");
    gate.open();
}
