//! The predecessor's routes, for the programs that call them today, with a stand-in for CloudStack.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use common::predecessor::*;
use common::*;
use lab::Volume;
use lab::nbd::NbdClient;
use serde_json::{Value, json};
use stand_in::Vm;

#[test]
fn a_volume_is_made_attached_read_detached_and_deleted_by_the_routes_and_in_the_words_of_the_predecessor() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let create = json!({
        "name": "pgtest1-disk-0", "size": 3 * MIB, "disk_offering_id": cloud.offering(), "zone_id": cloud.zone(),
        "metadata": { "job": "17" }, "unknown": [{ "deep": [1] }]
    });
    let begun = begin(&api, "POST", "/api/v1/volumes", &create.to_string());
    assert_eq!((&begun["type"], &begun["volume_id"]), (&json!("create"), &json!("")), "{begun}");
    assert_eq!((&begun["request"]["size"], &begun["request"]["metadata"]), (&json!(3 * MIB), &json!({ "job": "17" })));
    let made = ended(&api, &begun);
    assert_eq!(
        (&made["status"], &made["response"]["message"]),
        (&json!("completed"), &json!("Volume created successfully"))
    );
    let volume = Volume::of(made["response"]["volume_id"].as_str().unwrap());

    for what in ["/device", ""] {
        assert_eq!(send(&api, "GET", &path(&volume, what), "").0, 404, "it is not attached");
    }
    let of_vm = format!("/api/v1/vms/{}/volumes", cloud.vm_here());
    assert_eq!(send(&api, "GET", &of_vm, ""), (200, json!([])));
    let export = format!("/api/v1/exports/{}", volume.id);
    assert_eq!(send(&api, "GET", &export, "").0, 404);

    let body = json!({ "volume_id": Volume::random().id, "vm_id": cloud.vm_here(), "vm_name": "x" });
    let begun = begin(&api, "POST", &path(&volume, "/attach"), &body.to_string());
    assert_eq!(
        (&begun["type"], &begun["volume_id"]),
        (&json!("attach"), &json!(volume.id)),
        "the path's volume: {begun}"
    );
    assert_eq!(begun["request"], json!({ "volume_id": volume.id, "vm_id": cloud.vm_here() }));
    let done = ended(&api, &begun);
    assert_eq!((&done["status"], &done["vm_id"]), (&json!("completed"), &json!(cloud.vm_here())), "{done}");
    let link = volume.link();
    let response = &done["response"];
    assert_eq!(
        (&response["device_path"], &response["message"]),
        (&json!(link), &json!("Volume attached successfully"))
    );

    let (status, device) = send(&api, "GET", &path(&volume, "/device"), "");
    assert_eq!(status, 200, "{device}");
    let size = device["size"].clone();
    for (field, expected) in [
        ("id", json!("")),
        ("vm_context_id", Value::Null),
        ("volume_uuid", json!(volume.id)),
        ("volume_id", json!(volume.id)),
        ("volume_id_numeric", Value::Null),
        ("vm_id", json!(cloud.vm_here())),
        ("operation_mode", json!("oma")),
        ("cloudstack_device_id", Value::Null),
        ("requires_device_correlation", json!(true)),
        ("device_path", json!(link)),
        ("cloudstack_state", json!("attached")),
        ("linux_state", json!("detected")),
        ("snapshot_status", json!("")),
    ] {
        assert_eq!(device.get(field), Some(&expected), "{field}");
    }
    assert!(device.get("ossea_snapshot_id").is_none() && device["last_sync"].is_string(), "{device}");
    let listed = json!([{
        "volume_id": volume.id, "vm_id": cloud.vm_here(), "device_path": link, "state": "attached", "size": size,
        "cloudstack_data": null
    }]);
    assert_eq!(send(&api, "GET", &of_vm, ""), (200, listed));
    let (status, shown) = send(&api, "GET", &export, "");
    assert_eq!((status, &shown["status"], &shown["port"]), (200, &json!("active"), &json!(10_809)), "{shown}");
    assert_eq!((&shown["id"], &shown["device_path"]), (&json!("0"), &json!(link)));
    assert_eq!(shown["export_name"], format!("migration-vol-{}", volume.id));
    assert_eq!(shown["metadata"], json!({ "job_id": "", "config_path": "" }));

    let detached = ended(&api, &begin(&api, "POST", &path(&volume, "/detach"), ""));
    let response = &detached["response"];
    assert_eq!(
        (&response["volume_id"], &response["message"]),
        (&json!(volume.id), &json!("Volume detached successfully"))
    );
    assert_eq!(send(&api, "GET", &path(&volume, "/device"), "").0, 404);
    assert_eq!(response["device_path"], json!(link), "where it was: {detached}");
    let again = ended(&api, &begin(&api, "POST", &path(&volume, "/detach"), "no json"));
    assert_eq!((&again["status"], &again["response"]["device_path"]), (&json!("completed"), &json!("")), "{again}");
    let deleted = ended(&api, &begin(&api, "DELETE", &path(&volume, ""), ""));
    let message = "Volume deleted successfully (detached and cleaned up NBD exports)";
    assert_eq!((&deleted["type"], &deleted["response"]["message"]), (&json!("delete"), &json!(message)), "{deleted}");
    assert!(cloud.volume(&volume.id).is_none_or(|volume| volume.vm.is_none()));
    for path in ["/health", "/api/v1/health"] {
        assert_eq!(send(&api, "GET", path, "").0, 200);
    }
}

#[test]
fn a_request_that_cannot_be_carried_out_is_answered_201_and_has_failed_in_the_predecessors_words() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let volume = volume_in(&cloud);
    let here = cloud.vm_here();
    let create = |field: &str, value: Value| {
        let mut body = json!({ "name": "n", "size": 1, "disk_offering_id": "o", "zone_id": "z" });
        body[field] = value;
        ("POST", "/api/v1/volumes".to_owned(), body)
    };
    let on = |what: &str, body: Value| ("POST", path(&volume, what), body);
    let cleanup = |body: Value| ("POST", "/api/v1/cleanup/test-failover".to_owned(), body);
    let test_vm = Volume::random().id;
    let (creation, attachment) = ("CloudStack volume creation failed: ", "CloudStack volume attachment failed: ");
    let root = "CloudStack volume root attachment failed: ";
    let cleaning = "failed to power off test VM: ";
    let long = "x".repeat(10_000);
    for ((method, path, body), begins, says, code) in [
        (create("size", json!(0)), creation, "size: a volume's size takes from 1", "INVALID_BODY"),
        (create("size", json!(-1)), creation, "not -1", "INVALID_BODY"),
        (create("size", Value::Null), creation, "not 0", "INVALID_BODY"),
        (create("name", json!("")), creation, "name: ", "INVALID_BODY"),
        (create("name", json!("a\nb")), creation, "name: ", "INVALID_BODY"),
        (create("name", json!(long)), creation, "is longer", "INVALID_BODY"),
        (create("zone_id", Value::Null), creation, "zone_id: ", "INVALID_BODY"),
        (create("disk_offering_id", json!("a&b=c")), creation, "disk_offering_id: ", "INVALID_BODY"),
        (on("/attach", json!({})), attachment, "vm_id: \"\" is not a VM id", "INVALID_BODY"),
        (on("/attach", json!({ "vm_id": "i-2-7-VM" })), attachment, "vm_id: \"i-2-7-VM\"", "INVALID_BODY"),
        (on("/attach", json!({ "vm_id": long })), attachment, "is not a VM id", "INVALID_BODY"),
        (on("/attach-root", json!({ "vm_id": here })), root, "it has its root disk", "OWN_VM"),
        (on("/attach-root", json!({ "vm_id": null })), root, "vm_id: ", "INVALID_BODY"),
        (cleanup(json!({})), cleaning, "volume_id: ", "INVALID_BODY"),
        (cleanup(json!({ "volume_id": volume.id, "test_vm_id": here })), cleaning, "own VM", "OWN_VM"),
        (
            cleanup(json!({ "volume_id": volume.id, "test_vm_id": test_vm, "oma_vm_id": test_vm })),
            cleaning,
            "is not this host's VM",
            "VOLUME_ELSEWHERE",
        ),
    ] {
        let operation = begin(&api, method, &path, &body.to_string());
        assert_eq!((&operation["status"], &operation["code"]), (&json!("failed"), &json!(code)), "{body}: {operation}");
        let error = operation["error"].as_str().unwrap();
        assert!(error.starts_with(begins) && error.contains(says), "{body}: {error}");
        assert!(operation.to_string().len() < 4000, "what is kept is bounded: {operation}");
        let polled = ended(&api, &operation);
        assert_eq!(polled, operation, "as a caller polls it");
    }
    assert_eq!(changes(&cloud), 0, "nothing was asked of CloudStack");
    let list = api.get("/api/v1/operations?status=failed").unwrap().json;
    assert_eq!(list.as_array().unwrap().len(), 16, "each is on record");
    // What CloudStack refuses is no other for a caller.
    let gone = Volume::random();
    let failed = ended(&api, &begin(&api, "POST", &self::path(&gone, "/detach"), ""));
    let error = failed["error"].as_str().unwrap();
    assert!(error.starts_with("CloudStack volume detachment failed: CloudStack knows no volume"), "{error}");
    // The control: attachd's own route refuses such a request at once.
    let own = json!({ "type": "attach", "volume_id": volume.id, "vm_id": "" });
    assert_eq!(api.post("/api/v1/operations", &own).unwrap().status, 422);
}

#[test]
fn without_cloudstack_an_operation_is_on_record_as_failed() {
    let (_lab, _attachd, api) = up();
    let operation = begin(&api, "POST", &path(&Volume::random(), "/detach"), "");
    let error = operation["error"].as_str().unwrap();
    assert!(error.starts_with("CloudStack client creation failed: ") && error.contains("[cloudstack] url"), "{error}");
    assert_eq!(ended(&api, &operation)["status"], "failed");
}

#[test]
fn a_request_that_does_not_parse_or_names_no_volume_gets_its_status_and_begins_nothing() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let volume = volume_in(&cloud);
    let (id, upper) = (volume.id.as_str(), volume.id.to_uppercase());
    let long = "a".repeat(10_000);
    let deep = format!("{{\"vm_id\": {}1{}}}", "[".repeat(50), "]".repeat(50));
    let attach = path(&volume, "/attach");
    for (method, path, body, status, code) in [
        ("POST", attach.as_str(), "", 400, "EMPTY_BODY"),
        ("POST", &attach, "{", 400, "BAD_JSON"),
        ("POST", &attach, "[]", 400, "INVALID_BODY"),
        ("POST", &attach, "vm_id=x", 400, "BAD_JSON"),
        ("POST", &attach, "{\"vm_id\": 7}", 400, "INVALID_BODY"),
        ("POST", &attach, &deep, 400, "INVALID_BODY"),
        ("POST", "/api/v1/volumes", "{\"size\": 9223372036854775808}", 400, "INVALID_BODY"),
        ("POST", "/api/v1/volumes", "{\"size\": 1e400}", 400, "INVALID_BODY"),
        ("POST", "/api/v1/volumes", "{\"size\": 1.5}", 400, "INVALID_BODY"),
        ("POST", "/api/v1/volumes", "{\"size\": \"7\"}", 400, "INVALID_BODY"),
        ("POST", "/api/v1/volumes", "{\"metadata\": {\"a\": 7}}", 400, "INVALID_BODY"),
        ("POST", "/api/v1/volumes/vol-1/detach", "", 400, "NOT_A_VOLUME_ID"),
        ("POST", &format!("/api/v1/volumes/{}/detach", id.replace('-', "")), "", 400, "NOT_A_VOLUME_ID"),
        ("POST", &format!("/api/v1/volumes/{long}/detach"), "", 400, "NOT_A_VOLUME_ID"),
        ("POST", "/api/v1/volumes/..%2f..%2fetc/detach", "", 400, "NOT_A_VOLUME_ID"),
        ("POST", "/api/v1/volumes/%ff/detach", "", 400, "NOT_A_VOLUME_ID"),
        ("POST", "/api/v1/volumes/../detach", "", 400, "NOT_A_VOLUME_ID"),
        ("DELETE", "/api/v1/volumes/vol-1", "", 400, "NOT_A_VOLUME_ID"),
        ("GET", "/api/v1/volumes/vol-1/device", "", 404, "NOT_A_VOLUME_ID"),
        ("GET", "/api/v1/exports/vol-1", "", 404, "NOT_A_VOLUME_ID"),
        ("GET", &format!("/api/v1/exports/{long}"), "", 404, "NOT_A_VOLUME_ID"),
        ("GET", &format!("/api/v1/volumes/{upper}/device"), "{}", 404, "NO_DEVICE"),
        ("GET", &format!("/api/v1/exports/{upper}"), "body", 404, "NO_EXPORT"),
        ("POST", "/api/v1/volumes//detach", "", 400, "NOT_A_VOLUME_ID"),
        ("POST", &format!("{attach}/"), "{}", 404, "NO_SUCH_ROUTE"),
        ("POST", "/api/v1/volumes/", "{}", 404, "NO_SUCH_ROUTE"),
        ("GET", &attach, "", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", &attach, "{}", 405, "METHOD_NOT_ALLOWED"),
        ("OPTIONS", "/api/v1/volumes", "", 405, "METHOD_NOT_ALLOWED"),
        ("OPTIONS", &attach, "", 405, "METHOD_NOT_ALLOWED"),
    ] {
        let shown: String = path.chars().take(80).collect();
        let (is, answer) = send(&api, method, path, body);
        assert_eq!((is, answer["code"].as_str()), (status, Some(code)), "{method} {shown} {body}: {answer}");
        assert!(answer["error"].as_str().unwrap().len() > 10, "{answer}");
    }
    assert_eq!(send(&api, "HEAD", &format!("/api/v1/volumes/{id}/device"), ""), (404, Value::Null));
    assert_eq!(send(&api, "HEAD", &attach, ""), (405, Value::Null));
    for path in ["/api/v1/vms/../volumes", "/api/v1/vms/..%2f..%2fetc/volumes", &format!("/api/v1/vms/{long}/volumes")]
    {
        assert_eq!(send(&api, "GET", path, ""), (200, json!([])), "a VM of no name has no volumes");
    }
    let old = format!("POST {attach} HTTP/1.0\r\nContent-Length: 1\r\n\r\n{{");
    let old = String::from_utf8(api.raw(old.as_bytes(), SOON).unwrap()).unwrap();
    assert!(old.starts_with("HTTP/1.0 400 ") && old.contains("BAD_JSON"), "{old}");
    assert_eq!(api.get("/api/v1/operations").unwrap().text, "null", "nothing was begun");
    assert_eq!(changes(&cloud), 0);
    // The control: the same volume in upper case is the same volume.
    let body = json!({ "vm_id": cloud.vm_here().to_uppercase() }).to_string();
    let operation = begin(&api, "POST", &format!("/api/v1/volumes/{upper}/attach"), &body);
    assert_eq!(operation["volume_id"], id);
    assert_eq!(ended(&api, &operation)["status"], "completed");
}

#[test]
fn a_volume_of_another_vm_has_its_place_in_the_answers_and_comes_back_from_a_test() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let vm = Volume::random().id;
    cloud.add_vm(Vm { state: "Stopped".to_owned(), ..Vm::running(&vm, "test") });
    let (root, data) = (volume_in(&cloud), volume_in(&cloud));
    let body = json!({ "vm_id": vm }).to_string();
    let begun = begin(&api, "POST", &path(&root, "/attach-root"), &body);
    assert_eq!(begun["type"], "attach");
    assert_eq!(begun["request"], json!({ "volume_id": root.id, "vm_id": vm, "device_id": 0, "attach_as": "root" }));
    let done = ended(&api, &begun);
    assert_eq!((&done["status"], &done["type"]), (&json!("completed"), &json!("attach")), "{done}");
    let response = &done["response"];
    assert_eq!((&response["device_id"], &response["vm_id"]), (&json!(0), &json!(vm)));
    assert_eq!(response["message"], "Volume attached as root disk successfully");
    let (_, device) = send(&api, "GET", &path(&root, "/device"), "");
    assert_eq!(
        (&device["operation_mode"], &device["cloudstack_device_id"]),
        (&json!("failover"), &json!(0)),
        "{device}"
    );
    assert_eq!((&device["device_path"], &device["size"]), (&response["device_path"], &json!(0)));
    assert!(device["device_path"].as_str().unwrap().starts_with(&format!("remote-vm-{vm}")), "{device}");

    assert_eq!(attach(&api, &data, &vm)["status"], "completed");
    let listed = send(&api, "GET", &format!("/api/v1/vms/{vm}/volumes"), "").1;
    let volumes: Vec<_> = listed.as_array().unwrap().iter().map(|volume| volume["volume_id"].clone()).collect();
    assert_eq!(volumes.len(), 2, "two disks of one VM: {listed}");
    assert!(volumes.contains(&json!(root.id)) && volumes.contains(&json!(data.id)), "{listed}");
    assert_eq!(send(&api, "GET", &format!("/api/v1/exports/{}", data.id), "").0, 404, "another VM's has no export");

    let body = json!({ "test_vm_id": vm, "volume_id": data.id, "oma_vm_id": cloud.vm_here(), "force_clean": true });
    let cleaned = ended(&api, &begin(&api, "POST", "/api/v1/cleanup/test-failover", &body.to_string()));
    let response = &cleaned["response"];
    assert_eq!((&cleaned["status"], &response["test_vm_id"]), (&json!("completed"), &json!(vm)), "{cleaned}");
    assert_eq!((&response["oma_vm_id"], &response["vm_deleted"]), (&json!(cloud.vm_here()), &json!(false)));
    assert_eq!(response["message"], "Test failover cleanup completed successfully");
    let (_, device) = send(&api, "GET", &path(&data, "/device"), "");
    assert_eq!((&device["operation_mode"], &device["device_path"]), (&json!("oma"), &json!(data.link())), "{device}");
}

#[test]
fn the_same_request_while_its_operation_is_open_is_the_same_operation_and_a_new_one_after_its_end() {
    use stand_in::{Gate, JobFault};
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let body = json!({ "vm_id": cloud.vm_here() }).to_string();
    let ask = || begin(&api, "POST", &path(&volume, "/attach"), &body);
    let first = ask();
    cloud.wait_calls("attachVolume", 1, SOON).unwrap();
    assert_eq!(send(&api, "GET", &path(&volume, "/device"), "").0, 404, "it is not attached yet");
    let again = ask();
    assert_eq!((&again["id"], &again["status"]), (&first["id"], &json!("executing")));
    // What was begun by attachd's own route is read in the caller's words.
    let own =
        api.post("/api/v1/operations", &json!({ "type": "detach", "volume_id": volume.id, "client_wait_seconds": 30 }));
    let own = own.unwrap().expect(201).unwrap();
    let theirs = begin(&api, "POST", &path(&volume, "/detach"), "");
    assert_eq!((&theirs["id"], &theirs["request"]), (&own["id"], &json!({ "volume_id": volume.id })));
    gate.open();
    assert_eq!(ended(&api, &first)["status"], "completed");
    assert_eq!(ended(&api, &own)["status"], "completed");
    let another = ended(&api, &ask());
    assert_ne!(another["id"], first["id"], "the control");
    assert_eq!(another["status"], "completed");
}

#[test]
fn a_detach_waits_for_the_clients_that_are_connected_and_serves_them_meanwhile() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let volume = volume_in(&cloud);
    assert_eq!(attach(&api, &volume, cloud.vm_here())["status"], "completed");
    let export = format!("migration-vol-{}", volume.id);
    let mut client = NbdClient::connect("127.0.0.1:10809", &export).unwrap();
    // The control: without the wait it is refused at once.
    let at_once = api.post("/api/v1/operations", &json!({ "type": "detach", "volume_id": volume.id })).unwrap();
    let refused = ended(&api, &at_once.expect(201).unwrap());
    assert_eq!((&refused["status"], &refused["code"]), (&json!("failed"), &json!("CLIENTS_CONNECTED")), "{refused}");

    let detach = begin(&api, "POST", &path(&volume, "/detach"), "");
    let mut events = api.events_of(&format!("?operation={}", detach["id"].as_str().unwrap())).unwrap();
    let seals = |event: &Value| event["step"]["name"] == "seal";
    let shown = api.get(&format!("/api/v1/operations/{}", detach["id"].as_str().unwrap())).unwrap().json;
    let shown = if seals(&shown) { shown } else { events.wait_for(seals, SOON).unwrap() };
    assert!(shown["step"]["text"].as_str().unwrap().contains("waited for up to 30 s"), "{shown}");
    client.write(0, &[7; 512]).unwrap();
    drop(NbdClient::connect("127.0.0.1:10809", &export).expect("also a new client"));
    assert_eq!(changes(&cloud), 1, "CloudStack was asked for the attach only");
    drop(client);
    let done = ended(&api, &detach);
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(done["response"]["flush"]["state"], "done", "{done}");
}
