//! The predecessor's routes beside the drop-in set: exports and their upkeep, a resync, devices by their path, metrics;
//! and its table `volume_operations`.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::path::Path;
use std::process::Command;

use common::predecessor::*;
use common::*;
use lab::Volume;
use lab::nbd::NbdClient;
use serde_json::{Value, json};
use stand_in::{Gate, JobFault, Vm};

const SERVER: &str = "127.0.0.1:10809";
const EXPORTS: &str = "/api/v1/exports";

#[test]
fn exports_are_listed_by_what_is_asked_for_and_made_and_taken_away_with_their_volume() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let (one, two) = (volume_in(&cloud), volume_in(&cloud));
    let new =
        |volume: &Volume| send(&api, "POST", EXPORTS, &json!({ "volume_id": volume.id, "vm_name": "v" }).to_string());
    let (status, refused) = new(&one);
    assert_eq!((status, &refused["code"]), (404, &json!("NO_EXPORT")), "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("attach it"), "{refused}");
    for volume in [&one, &two] {
        assert_eq!(attach(&api, volume, cloud.vm_here())["status"], "completed");
    }
    let (status, export) = new(&one);
    assert_eq!((status, &export["status"]), (201, &json!("active")), "{export}");
    let listed = |query: &str| {
        let list = send(&api, "GET", &format!("{EXPORTS}?{query}"), "").1;
        let exports = list["exports"].as_array().unwrap_or_else(|| panic!("{list}"));
        assert_eq!(list["count"], exports.len());
        exports.iter().map(|export| export["volume_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&format!("volume_id={}", one.id)), [&*one.id]);
    assert_eq!(listed(&format!("vm_name={}&status=active", &two.id[..13])), [&*two.id]);
    assert_eq!((listed("status=pending").len(), listed("limit=1").len(), listed("").len()), (0, 1, 2));

    // Nobody is cut off.
    let client = NbdClient::connect(SERVER, &one.export()).unwrap();
    let delete = |volume: &Volume| send(&api, "DELETE", &format!("{EXPORTS}/{}", volume.id), "");
    let (status, refused) = delete(&one);
    assert_eq!((status, &refused["code"]), (500, &json!("CLIENTS_CONNECTED")), "{refused}");
    drop(client);
    let done = (200, json!({ "message": "NBD export deleted successfully" }));
    assert_eq!(delete(&two), done);
    assert_eq!(send(&api, "GET", &format!("{EXPORTS}/{}", two.id), "").0, 404);
    assert_eq!(delete(&two), done, "what is gone is no error");
    assert_eq!(listed(""), [&*one.id]);
    assert_eq!(attach(&api, &two, cloud.vm_here())["response"]["adopted"], true, "CloudStack has it attached still");
    assert_eq!(new(&two).0, 201, "so its export is there again");
}

#[test]
fn cleaning_up_deletes_no_export_whatever_it_is_told_and_names_what_attachd_did_not_make() {
    let (lab, cloud, _helper, _attachd, api) = with_cloud();
    lab.not_restarted("what attachd did not make is in its folder");
    let volume = volume_in(&cloud);
    assert_eq!(attach(&api, &volume, cloud.vm_here())["status"], "completed");
    let theirs = Path::new("/run/attachd/exports/theirs");
    std::fs::write(theirs, "").unwrap();
    resync(&api);
    let post = |path: &str, body: &str| {
        let (status, result) = send(&api, "POST", &format!("{EXPORTS}{path}"), body);
        assert_eq!(status, 200, "{path} {body}: {result}");
        result
    };
    for (path, body, dry) in [
        ("/cleanup", "", true),
        ("/cleanup", "{}", true),
        ("/cleanup", "{\"dry_run\": null}", true),
        ("/cleanup", "{\"dry_run\": false}", false),
        ("/cleanup/age", "{\"max_age_hours\": 0}", true),
        ("/cleanup/age", "{\"max_age_hours\": -5, \"dry_run\": false}", false),
    ] {
        let result = post(path, body);
        assert_eq!((&result["cleaned_exports"], &result["total_exports"]), (&json!(0), &json!(1)), "{body}: {result}");
        assert_eq!((&result["orphaned_exports"], &result["dry_run"]), (&json!(1), &json!(dry)), "{body}: {result}");
        assert_eq!(result["orphaned_export_details"][0]["export_name"], "theirs", "named first: {result}");
        assert_eq!(result["cleanup_errors"].as_array().unwrap().len(), usize::from(!dry), "{result}");
        assert!(result["operation_time"].is_u64(), "{result}");
    }
    for (path, body) in
        [("/cleanup", "{\"dry_run\": \"false\"}"), ("/cleanup", "x"), ("/cleanup/age", "{}"), ("/cleanup/age", "")]
    {
        assert_eq!(send(&api, "POST", &format!("{EXPORTS}{path}"), body).0, 400, "{path} {body}");
    }
    assert_eq!(send(&api, "GET", &format!("{EXPORTS}/orphaned/count"), "").1["orphaned_exports_count"], 1);
    assert!(theirs.exists(), "it is left alone");
    NbdClient::connect(SERVER, &volume.export()).expect("and the export is served");

    // The control: what is amiss is found.
    let valid = post("/validate", "");
    assert_eq!(valid["served"], json!({ "due": 1, "openable": 1 }), "{valid}");
    std::fs::remove_file(theirs).unwrap();
    let valid = post("/validate", "");
    assert_eq!(valid["message"], "NBD exports validation completed successfully", "{valid}");
    assert_eq!(send(&api, "POST", "/api/v1/admin/force-sync", "").1["message"], "Force sync completed successfully");
    assert_eq!(send(&api, "GET", &format!("{EXPORTS}/orphaned/count"), "").1["orphaned_exports_count"], 0);
}

#[test]
fn a_device_is_found_by_its_path_and_the_metrics_are_true() {
    let (_lab, cloud, _helper, _attachd, api) = with_cloud();
    let vm = Volume::random().id;
    cloud.add_vm(Vm::running(&vm, "other"));
    let (here, there) = (volume_in(&cloud), volume_in(&cloud));
    assert_eq!(attach(&api, &here, cloud.vm_here())["status"], "completed");
    assert_eq!(attach(&api, &there, &vm)["status"], "completed");
    begin(&api, "POST", &path(&here, "/attach"), "{}");
    let of = |path: &str| send(&api, "GET", &format!("/api/v1/devices/{path}/volume"), "");
    let node = show(&api, &here)["device_node"].as_str().unwrap().to_owned();
    let link = here.link().to_str().unwrap().to_owned();
    for path in [node.as_str(), link.trim_start_matches('/'), &link] {
        let (status, found) = of(&path.replace('/', "%2F"));
        assert_eq!((status, &found["volume_uuid"]), (200, &json!(here.id)), "{path}: {found}");
    }
    let (_, found) = of(&format!("remote-vm-{vm}-{}", there.id));
    assert_eq!(found["volume_uuid"], there.id, "{found}");
    let long = "x".repeat(10_000);
    for (path, status, code) in [
        ("%2Fdev%2Fvdz", 404, "NO_DEVICE"),
        ("..%2F..%2Fetc%2Fpasswd", 404, "NO_DEVICE"),
        (&*long, 404, "NO_DEVICE"),
        ("%ff", 400, "BAD_HTTP"),
        ("dev/vdb", 404, "NO_SUCH_ROUTE"),
    ] {
        let (is, answer) = of(path);
        assert_eq!((is, &answer["code"]), (status, &json!(code)), "{answer}");
    }
    let (_, metrics) = send(&api, "GET", "/api/v1/metrics", "");
    assert_eq!((&metrics["total_operations"], &metrics["pending_operations"]), (&json!(3), &json!(0)), "{metrics}");
    assert_eq!(metrics["operations_by_type"], json!({ "attach": 3 }));
    assert_eq!(metrics["operations_by_status"], json!({ "completed": 2, "failed": 1 }));
    assert_eq!(metrics["active_mappings"], 1);
    let rate = metrics["error_rate_percent"].as_f64().unwrap();
    assert!(
        (rate - 100.0 / 3.0).abs() < 0.01 && metrics["average_response_time_ms"].as_f64().unwrap() > 0.0,
        "{metrics}"
    );
}

#[test]
fn a_snapshot_that_a_caller_keeps_track_of_outlives_the_attachment_of_its_volume_and_a_restart() {
    let (lab, cloud, _helper, mut attachd, api) = with_cloud();
    let (one, two) = (volume_in(&cloud), volume_in(&cloud));
    let track = |volume: &Volume, snapshot: &str| {
        let body = json!({
            "volume_uuid": volume.id, "vm_context_id": "ctx-pgtest1", "snapshot_id": snapshot, "snapshot_name": "n",
            "disk_id": "disk-2000"
        });
        send(&api, "POST", "/api/v1/snapshots/track", &body.to_string())
    };
    let of = |api: &lab::Api| send(api, "GET", "/api/v1/snapshots/vm/ctx-pgtest1", "").1;
    assert_eq!(of(&api), json!({ "vm_context_id": "ctx-pgtest1", "snapshots": null, "count": 0 }));
    let (status, tracked) = track(&one, "snap-1");
    assert_eq!((status, &tracked["snapshot_id"]), (200, &json!("snap-1")), "{tracked}");
    assert_eq!(track(&one, "snap-2").0, 200, "in place of the earlier one");
    assert_eq!(track(&two, "snap-3").0, 200);
    assert_eq!(attach(&api, &one, cloud.vm_here())["status"], "completed");
    let one_of = |list: &Value| {
        assert_eq!(list["count"], 2, "{list}");
        let all = list["snapshots"].as_array().unwrap();
        all.iter().find(|snapshot| snapshot["volume_uuid"] == *one.id).unwrap().clone()
    };
    let shown = one_of(&of(&api));
    assert_eq!((&shown["snapshot_id"], &shown["snapshot_status"]), (&json!("snap-2"), &json!("ready")), "{shown}");
    assert_eq!((&shown["operation_mode"], &shown["device_path"]), (&json!("oma"), &json!(one.link())), "{shown}");
    let put = |volume: &str, body: &str| send(&api, "PUT", &format!("/api/v1/snapshots/{volume}"), body);
    assert_eq!(put(&one.id, "{\"snapshot_status\": \"reverted\"}").0, 200);
    let detached = ended(&api, &begin(&api, "POST", &path(&one, "/detach"), ""));
    assert_eq!(detached["status"], "completed");
    let shown = one_of(&of(&api));
    assert_eq!((&shown["snapshot_id"], &shown["snapshot_status"]), (&json!("snap-2"), &json!("reverted")), "{shown}");
    assert_eq!(shown["device_path"], "", "it is attached no more");

    let unknown = Volume::random().id;
    let long = format!("{{\"snapshot_name\": \"{}\"}}", "x".repeat(192));
    for ((status, answer), expected, code) in [
        (put(&unknown, "{}"), 404, "NO_SNAPSHOT"),
        (put("vol-1", "{}"), 400, "NOT_A_VOLUME_ID"),
        (put(&one.id, &long), 400, "INVALID_BODY"),
        (put(&one.id, "{\"snapshot_id\": \"\"}"), 400, "INVALID_BODY"),
        (track(&one, ""), 400, "INVALID_BODY"),
        (track(&Volume::of("vol-1"), "s"), 400, "NOT_A_VOLUME_ID"),
        (send(&api, "POST", "/api/v1/snapshots/track", "{}"), 400, "INVALID_BODY"),
    ] {
        assert_eq!((status, &answer["code"]), (expected, &json!(code)), "{answer}");
    }
    let before = of(&api);
    attachd.kill9().unwrap();
    let attachd = start(&lab);
    assert_eq!(of(&attachd.api()), before, "durable");
    let (_, cleared) = send(&attachd.api(), "DELETE", "/api/v1/snapshots/vm/ctx-pgtest1", "");
    assert_eq!(cleared["snapshots_cleared"], 2, "{cleared}");
    assert_eq!(of(&attachd.api())["count"], 0);
}

/// Returns the predecessor's rows of operations, the oldest first.
fn rows() -> Vec<Value> {
    let query = "SELECT json_object('id', id, 'type', type, 'status', status, 'volume_id', volume_id, 'vm_id', vm_id, \
        'request', json(request), 'response', json(response), 'error', error, 'completed', completed_at IS NOT NULL) \
        FROM volume_operations ORDER BY created_at";
    let output = Command::new("sqlite3").args(["/var/lib/attachd/attachd.db", query]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_table_of_operations_says_what_the_routes_say_also_of_one_that_was_under_way_when_attachd_was_killed() {
    let (lab, cloud, _helper, mut attachd, api) = with_cloud();
    let (volume, root) = (volume_in(&cloud), volume_in(&cloud));
    let vm = Volume::random().id;
    cloud.add_vm(Vm { state: "Stopped".to_owned(), ..Vm::running(&vm, "test") });
    let refused = begin(&api, "POST", &path(&volume, "/attach"), "{\"vm_id\": \"\"}");
    let body = json!({ "vm_id": vm }).to_string();
    let rooted = ended(&api, &begin(&api, "POST", &path(&root, "/attach-root"), &body));
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let body = json!({ "vm_id": cloud.vm_here() }).to_string();
    let under_way = begin(&api, "POST", &path(&volume, "/attach"), &body);
    cloud.wait_calls("attachVolume", 2, SOON).unwrap();
    attachd.kill9().unwrap();
    gate.open();
    let mut attachd = start(&lab);
    let done = ended(&attachd.api(), &under_way);
    assert_eq!(done["status"], "completed", "{done}");
    let gone = Volume::random();
    let failed = ended(&attachd.api(), &begin(&attachd.api(), "DELETE", &path(&gone, ""), ""));
    let detached = ended(&attachd.api(), &begin(&attachd.api(), "POST", &path(&volume, "/detach"), ""));
    attachd.terminate().unwrap();

    let rows = rows();
    let shown = [&refused, &rooted, &done, &failed, &detached];
    assert_eq!(rows.len(), shown.len(), "{rows:#?}");
    for (row, shown) in rows.iter().zip(shown) {
        for field in ["id", "type", "status", "volume_id", "vm_id", "request", "error"] {
            assert_eq!(row[field], shown[field], "{field}: {row:#}\n{shown:#}");
        }
        let response = |of: &Value, field: &str| of["response"][field].clone();
        for field in ["volume_id", "vm_id", "device_path", "device_id", "message", "adopted"] {
            assert_eq!(response(row, field), response(shown, field), "{field}: {row:#}\n{shown:#}");
        }
        assert_eq!(row["completed"], 1);
        assert_eq!(row["id"].as_str().unwrap().len(), 36, "a plain UUID");
    }
    assert_eq!(rows[1]["request"]["attach_as"], "root");
    assert!(rows[0]["error"].as_str().unwrap().starts_with("CloudStack volume attachment failed: vm_id"));
}
