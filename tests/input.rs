//! Bad input and failing parts: each gives a clear error with a code, and nothing is lost or half done.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use common::*;
use lab::{Api, Lab};
use serde_json::json;

/// Sends a body unchanged and returns status and code.
fn post(api: &Api, body: &str) -> (u16, String) {
    let reply = api.request("POST", "/api/v1/intents", Some(body), SOON).unwrap();
    assert!(reply.json["error"].as_str().is_some_and(|text| text.len() > 10), "{body}: {}", reply.text);
    (reply.status, reply.json["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn each_malformed_request_gets_its_status_its_code_and_a_sentence() {
    let (_lab, _attachd, api) = up();
    let id = "b3bb9310-1b59-4f62-97e8-cefffdfe3804";
    for (body, status, code) in [
        ("", 400, "EMPTY_BODY"),
        ("{", 400, "BAD_JSON"),
        ("volume_id=x", 400, "BAD_JSON"),
        ("[]", 422, "INVALID_BODY"),
        (&format!(r#"["{id}", null, null, null]"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "volume_id": "{id}"}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "size_bytes": 1.5}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "size_bytes": "1"}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "deadline_seconds": 4294967296}}"#), 422, "INVALID_BODY"),
        ("{}", 422, "INVALID_BODY"),
        (r#"{"volume_id": 7}"#, 422, "INVALID_BODY"),
        (r#"{"volume_id": "vol-1"}"#, 400, "NOT_A_VOLUME_ID"),
        (r#"{"volume_id": "b3bb93101b594f6297e8cefffdfe3804"}"#, 400, "NOT_A_VOLUME_ID"),
        (&format!(r#"{{"volume_id": "{id}", "volume": "x"}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "size_bytes": -1}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "size_bytes": 0}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "size_bytes": 9223372036854775808}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "deadline_seconds": 1e99}}"#), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "vm_id": "{}"}}"#, "x".repeat(65)), 422, "INVALID_BODY"),
        (&format!(r#"{{"volume_id": "{id}", "vm_id": "a\u0000b"}}"#), 422, "INVALID_BODY"),
    ] {
        assert_eq!(post(&api, body), (status, code.to_owned()), "{body}");
    }
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": "vol-1" })).unwrap();
    assert!(refused.text.contains("like b3bb9310-1b59-4f62-97e8-cefffdfe3804"), "{}", refused.text);
    for (method, path, status, code) in [
        ("GET", "/", 404, "NO_SUCH_ROUTE"),
        ("GET", "/api/v1/volume", 404, "NO_SUCH_ROUTE"),
        ("PUT", "/api/v1/intents", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/api/v1/volumes", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/volumes/vol-1", 400, "NOT_A_VOLUME_ID"),
        ("GET", "/api/v1/volumes/%2e%2e%2f", 400, "NOT_A_VOLUME_ID"),
        ("GET", "/api/v1/volumes/%ff", 400, "NOT_A_VOLUME_ID"),
        ("GET", &format!("/api/v1/volumes/{id}"), 404, "NO_SUCH_INTENT"),
        ("GET", &format!("/api/v1/volumes/{id}?wait=redy"), 400, "INVALID_QUERY"),
        ("GET", &format!("/api/v1/volumes/{id}?wait=ready"), 404, "NO_SUCH_INTENT"),
        ("GET", "/api/v1/volumes?stat=ready", 400, "INVALID_QUERY"),
        ("GET", "/api/v1/volumes?state=ready&state=lost", 400, "INVALID_QUERY"),
        ("GET", "/api/v1/volumes?vm_id=%ff", 400, "INVALID_QUERY"),
        ("GET", "/api/v1/intents?state=ready", 400, "INVALID_QUERY"),
        ("GET", "/api/v1/devices?all", 400, "INVALID_QUERY"),
        ("POST", "/api/v1/resync?force=true", 400, "INVALID_QUERY"),
        ("GET", &format!("/api/v1/volumes/{id}?wait=ready&timeout_seconds=3601"), 400, "INVALID_QUERY"),
        ("GET", &format!("/api/v1/volumes/{id}?wait=ready&timeout_seconds=-1"), 400, "INVALID_QUERY"),
        ("GET", "/api/v1/events?volume_id=x", 400, "NOT_A_VOLUME_ID"),
        ("DELETE", &format!("/api/v1/intents/{id}"), 404, "NO_SUCH_INTENT"),
        ("DELETE", &format!("/api/v1/intents/{id}?force=maybe"), 400, "INVALID_QUERY"),
    ] {
        let reply = api.request(method, path, None, SOON).unwrap();
        assert_eq!((reply.status, &reply.json["code"]), (status, &json!(code)), "{method} {path}: {}", reply.text);
    }
    let allow = api.request("PUT", "/api/v1/intents", None, SOON).unwrap();
    assert_eq!(allow.header("allow").map(|allow| allow.contains("POST")), Some(true), "{:?}", allow.headers);
    let list = api.get("/api/v1/intents").unwrap().expect(200).unwrap();
    assert_eq!(list["count"], 0, "nothing of all this was accepted");
}

/// In JSON, 7.0 is a whole number.
#[test]
fn a_whole_number_may_be_written_with_a_point() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    let body = format!(r#"{{"volume_id": "{}", "size_bytes": 189518.0, "deadline_seconds": 6e2}}"#, volume.id);
    let reply = api.request("POST", "/api/v1/intents", Some(&body), SOON).unwrap().expect(201).unwrap();
    assert_eq!((&reply["size_bytes"], &reply["deadline_seconds"]), (&json!(189_518), &json!(600)), "{reply:#}");
    let asked = json!({ "volume_id": volume.id, "size_bytes": 189_518, "deadline_seconds": 600 });
    api.post("/api/v1/intents", &asked).unwrap().expect(200).unwrap();
}

/// No client can block the daemon: neither with half a request nor with many of them.
#[test]
fn half_sent_requests_delay_no_other_and_are_ended() {
    let (lab, mut attachd, api) = up();
    let half: Vec<_> =
        ["GET /api/v1/hea", "POST /api/v1/intents HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{", ""]
            .iter()
            .cycle()
            .take(150)
            .map(|text| {
                let mut stream = api.connect(SOON).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
                stream
            })
            .collect();
    let (volume, _disk) = served(&lab, &api);
    assert_eq!(show(&api, &volume)["state"], "ready", "with 150 half-sent requests open");
    // The daemon ends each of them by itself, with an error response if there is a request to answer.
    for mut stream in half {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert!(attachd.terminate().unwrap().success());
}

#[test]
fn event_listeners_are_limited_and_get_an_error_above_the_limit() {
    let (_lab, _attachd, api) = up();
    let listeners: Vec<_> = (0..128).map(|_| api.events().unwrap()).collect();
    let refused = api.get("/api/v1/events").unwrap();
    assert_eq!((refused.status, &refused.json["code"]), (503, &json!("TOO_MANY_LISTENERS")));
    api.get("/api/v1/health").unwrap().expect(200).unwrap();
    drop(listeners);
}

#[test]
fn every_mistake_in_the_configuration_is_reported_with_line_and_column() {
    let mut lab = Lab::new();
    lab.nbdkit_start().unwrap();
    lab.attachd_config("[device]\nscheme = [\"loop\"]\n[export]\nlisten = \"0.0.0.0:10809\"\n").unwrap();
    let text = start_fails(&lab);
    assert!(text.contains("attachd.toml:2:1: [device] has no key \"scheme\"; it has schemes"), "{text}");
    assert!(text.contains("attachd.toml:4:10: [export] other hosts reach this address"), "{text}");
}

#[test]
fn a_database_file_that_is_not_a_database_is_named_and_left_alone() {
    let lab = with_nbdkit();
    let garbage = "this is not a database, it is a letter to somebody ".repeat(100);
    fs::write("/var/lib/attachd/attachd.db", &garbage).unwrap();
    std::os::unix::fs::chown("/var/lib/attachd/attachd.db", Some(lab::people::ATTACHD.id), None).unwrap();
    let text = start_fails(&lab);
    assert!(text.contains("/var/lib/attachd/attachd.db") && text.contains("not a database"), "{text}");
    assert_eq!(fs::read_to_string("/var/lib/attachd/attachd.db").unwrap(), garbage);
}

#[test]
fn a_second_daemon_on_the_same_store_is_refused_and_the_first_goes_on() {
    let (lab, attachd, api) = up();
    let text = start_fails(&lab);
    let holder = format!("its lock is held by attachd (process {} of ", attachd.pid().unwrap());
    assert!(text.contains(&format!("another attachd uses /var/lib/attachd/attachd.db: {holder}")), "{text}");
    assert!(text.contains("systemctl restart attachd"), "{text}");
    api.get("/api/v1/health").unwrap().expect(200).unwrap();
}

/// If the disk is full from the start, the intent is refused and leaves nothing behind. If it is full at the match,
/// the volume waits and continues by itself.
#[test]
fn a_full_disk_refuses_intents_and_delays_mappings_and_loses_neither() {
    let mut lab = Lab::new();
    let small = "/run/small";
    fs::create_dir(small).unwrap();
    let owner = format!("size=2m,mode=0755,uid={},gid={}", lab::people::ATTACHD.id, lab::people::ATTACHD.id);
    run("mount", &["-t", "tmpfs", "-o", &owner, "tmpfs", small]);
    // The rules test for claims at the default path.
    lab.attachd_config(&format!("{CONFIG}[store]\npath = \"{small}/attachd.db\"\n")).unwrap();
    lab.nbdkit_start().unwrap();
    let mut attachd = start(&lab);
    let api = attachd.api();
    let early = lab.volume();
    intend(&api, &early);

    let filler = Path::new(small).join("filler");
    fill(&filler);
    // The log's file has some room beforehand. What is left at its end may be too small for an intent, and large enough for the
    // smaller write by which health looks whether the store can be written.
    let (mut accepted, mut full) = (1, None);
    for _ in 0..2000 {
        let volume = lab.volume();
        let reply = api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap();
        if reply.status == 201 {
            accepted += 1;
            continue;
        }
        let sick = api.get("/api/v1/health").unwrap();
        if sick.status == 503 {
            full = Some((volume, reply.expect(503).unwrap(), sick));
            break;
        }
    }
    let (refused, reply, sick) = full.unwrap();
    assert_eq!(reply["code"], "STORE_FULL");
    assert!(reply["error"].as_str().unwrap().contains("full"), "{reply:#}");
    assert_eq!(api.get(&format!("/api/v1/intents/{}", refused.id)).unwrap().status, 404);
    assert_eq!(sick.json["status"], "unhealthy");

    let mut disk = lab.disk(&early.serial, MIB).unwrap();
    let mut events = api.events().unwrap();
    disk.attach().unwrap();
    let stuck = events.wait_for(|event| event["reason"]["code"] == "STORE_FULL", SOON).unwrap();
    assert_eq!(stuck["state"], "matched");
    assert!(!lab.nbd_connects(&early.export()), "nothing is served that is not recorded");

    fs::remove_file(&filler).unwrap();
    assert_eq!(health(&api)["store"]["state"], "ok", "health tells what is true now");
    wait(&api, &early, "ready");
    intend(&api, &refused);
    attachd.kill9().unwrap();
    let attachd = start(&lab);
    let listed = attachd.api().get("/api/v1/intents").unwrap().expect(200).unwrap();
    assert_eq!(listed["count"], accepted + 1, "those that the log had room for, and the refused one");
    assert_eq!(health(&attachd.api())["store"]["state"], "ok");
    // It is mounted in this lab's namespace only, but the file system must not stay busy.
    drop(attachd);
    run("umount", &[small]);
}

#[test]
fn a_claim_that_cannot_be_written_takes_the_intent_back() {
    let (lab, _attachd, api) = up();
    let claims = "/var/lib/attachd/claims";
    run("chown", &["root", claims]);
    let volume = lab.volume();
    let reply = api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap().expect(503).unwrap();
    assert!(reply["error"].as_str().unwrap().contains("claim"), "{reply:#}");
    assert_eq!(api.get("/api/v1/intents").unwrap().expect(200).unwrap()["count"], 0);
    run("chown", &["attachd", claims]);
    intend(&api, &volume);
}

#[test]
fn a_wait_for_a_state_that_is_reached_already_is_answered_while_the_daemon_stops() {
    let (lab, mut attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let mut events = api.events().unwrap();
    let mut caller = api.connect(SOON).unwrap();
    write!(caller, "GET /api/v1/volumes/{}?wait=ready HTTP/1.1\r\nHost: x\r\n", volume.id).unwrap();
    // Connections are accepted in order: when the later one is answered, the daemon has the earlier one.
    health(&api);
    attachd.signal(rustix::process::Signal::TERM).unwrap();
    // The end of the stream is reported as an error.
    while let Ok(event) = events.next(SOON) {
        assert!(event.is_some(), "the daemon does not stop");
    }
    write!(caller, "Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    attachd.wait_exit(SOON).unwrap();
}

#[test]
fn an_unwritable_folder_of_exports_is_reported_and_recovers() {
    let (lab, _attachd, api) = up();
    let exports = "/run/attachd/exports";
    run("chown", &["root", exports]);
    let volume = lab.volume();
    intend(&api, &volume);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    let mut events = api.events().unwrap();
    disk.attach().unwrap();
    let stuck = events.wait_for(|event| event["reason"]["code"] == "EXPORT_FOLDER", SOON).unwrap();
    assert_eq!(stuck["state"], "exporting");
    let message = stuck["reason"]["message"].as_str().unwrap();
    assert!(message.contains("is not attachd's: it belongs to the user 0"), "{stuck:#}");
    run("chown", &["attachd", exports]);
    wait(&api, &volume, "ready");
}

#[test]
fn a_volume_is_not_ready_once_the_folder_of_exports_is_found_gone_and_is_served_when_it_is_back() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let exports = "/run/attachd/exports";
    fs::remove_dir_all(exports).unwrap();
    assert!(!lab.nbd_connects(&volume.export()), "the control: nobody is let in");
    resync(&api);
    assert_eq!(wait_reason(&api, &volume, "EXPORT_FOLDER")["state"], "exporting");
    run("install", &["-d", "-o", "attachd", exports]);
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// Invariant 1: an export that may serve any disk under a volume's name is removed without a resync.
#[test]
fn an_unrecorded_export_that_cannot_be_removed_is_reported_and_removed_later() {
    let (lab, mut attachd, api) = up();
    let (kept, disk) = served(&lab, &api);
    let exports = "/run/attachd/exports";
    let stuck = |api: &Api| {
        let health = health(api);
        let problems = health["problems"].as_array().unwrap().iter();
        let mut told = problems.filter(|problem| problem["code"] == "EXPORT_STUCK");
        told.next().map(|problem| problem["message"].as_str().unwrap().to_owned())
    };
    let stray = lab.volume();
    let leave_stray = || {
        lab.publish(&stray.export(), &disk.link()).unwrap();
        run("chown", &["root", exports]);
    };
    leave_stray();
    (0..3).for_each(|_| resync(&api));
    // The same at a resync and at a start.
    for (round, restart) in [(1, true), (2, false)] {
        let api = attachd.api();
        let said = stuck(&api).expect("health says it");
        // In a folder that it holds open it tries to remove the link; a folder that it never found to be its own is
        // not touched.
        let why = if restart { "Permission denied" } else { "is not attachd's: it belongs to the user 0" };
        assert!(said.contains(&stray.export()) && said.contains(why), "{said}");
        assert!(lab.nbd_connects(&stray.export()), "the control: it is served as long as that lasts");
        run("chown", &["attachd", exports]);
        let begun = std::time::Instant::now();
        while stuck(&api).is_some() {
            assert!(begun.elapsed() < SOON);
            std::thread::yield_now();
        }
        assert_eq!(lab.nbd_list().unwrap(), [kept.export()]);
        assert_eq!(show(&api, &kept)["state"], "ready");
        let times = attachd.stderr_text().matches("cannot be taken away").count();
        assert_eq!(times, round, "said once, not at each try: {}", attachd.stderr_text());
        if restart {
            attachd.kill9().unwrap();
            leave_stray();
            attachd = start(&lab);
        }
    }
}

/// An export that may serve another disk must not exist, whatever the state of its volume.
#[test]
fn an_export_of_a_lost_volume_that_cannot_be_removed_is_a_problem_in_health() {
    let (lab, _attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    let exports = "/run/attachd/exports";
    run("chown", &["root", exports]);
    disk.detach().unwrap();
    wait_reason(&api, &volume, "EXPORT_STUCK");
    let told = |api: &Api| {
        let health = health(api);
        health["problems"].as_array().unwrap().iter().any(|problem| problem["code"] == "EXPORT_STUCK")
    };
    assert!(told(&api), "{:#}", health(&api));
    run("chown", &["attachd", exports]);
    wait_reason(&api, &volume, "DEVICE_GONE");
    assert!(!told(&api), "{:#}", health(&api));
}

/// attachd tries again whenever something happens to the volume, and the journal must not fill up with it.
#[test]
fn a_foreign_file_with_an_exports_name_is_reported_once_and_again_after_a_change() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let attachd = start(&lab);
    let (api, volume) = (attachd.api(), lab.volume());
    let foreign = format!("{}/{}.conf", lab::nbd_server::FOLDER, volume.export());
    fs::write(&foreign, "[a letter]\n").unwrap();
    intend(&api, &volume);
    let said = |times| {
        let count = || attachd.stderr_text().matches("the export cannot be prepared").count();
        until(|| count() == times);
        (0..3).for_each(|_| resync(&api));
        assert_eq!(count(), times, "{}", attachd.stderr_text());
    };
    said(1);
    // The exchange is one step. While nothing is there, attachd would write its own section.
    let aside = "/run/attachd/aside";
    fs::create_dir(aside).unwrap();
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, aside, here, &foreign, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    said(2);
    // The control: attachd tries again by itself.
    fs::remove_dir(&foreign).unwrap();
    until(|| fs::read_to_string(&foreign).is_ok_and(|text| text.contains(&volume.export())));
}

#[test]
fn foreign_files_in_the_served_folder_are_named() {
    let (_lab, _attachd, api) = up();
    fs::write("/run/attachd/exports/by-hand", "").unwrap();
    resync(&api);
    let sick = health(&api);
    let mut codes = sick["problems"].as_array().unwrap().iter().map(|problem| &problem["code"]);
    assert!(codes.any(|code| code == "FOREIGN_EXPORTS"), "{sick:#}");
    assert!(Path::new("/run/attachd/exports/by-hand").exists(), "foreign files are not touched");
}

#[test]
fn every_route_is_in_the_openapi_document_and_metrics_are_readable() {
    let (lab, _attachd, api) = up();
    let (_volume, _disk) = served(&lab, &api);
    let document = api.get("/api/v1/openapi.json").unwrap().expect(200).unwrap();
    for path in [
        "/api/v1/intents",
        "/api/v1/intents/{volume_id}",
        "/api/v1/volumes",
        "/api/v1/volumes/{volume_id}",
        "/api/v1/devices",
        "/api/v1/exports",
        "/api/v1/resync",
        "/api/v1/events",
        "/api/v1/health",
        "/metrics",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let names: Vec<&str> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    let different: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), different.len(), "each operation has a name of its own: {names:?}");
    let metrics = api.get("/metrics").unwrap();
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("attachd_volumes{state=\"ready\"} 1"), "{}", metrics.text);
    assert!(metrics.text.contains("attachd_backend_up 1"), "{}", metrics.text);
}

/// Waits for something that causes no event.
fn until(is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON);
        std::thread::yield_now();
    }
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let piece = [0; 4096];
    while file.write_all(&piece).is_ok() {}
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
