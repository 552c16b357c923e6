//! How many operations may be open, and what health says of one that does not end.

use std::process::Command;

use lab::Volume;
use serde_json::{Value, json};
use stand_in::{Fault, Gate, JobFault};

use crate::common::*;
use crate::world::{OTHER, World};

const OPERATIONS: &str = "/api/v1/operations";

/// A user's share of open operations.
const SHARE: u64 = 256;

const SOMEBODY: u32 = 60_001;
const SOMEBODY_ELSE: u32 = 60_002;

/// What health says of operations that are late, if it does.
fn late(world: &World) -> Option<Value> {
    let health = health(&world.api);
    let problem = health["problems"].as_array().unwrap().iter().find(|one| one["code"] == "OPERATIONS_LATE").cloned();
    assert_eq!(health["operations"]["late"], json!(u8::from(problem.is_some())), "{health:#}");
    problem
}

#[test]
fn health_names_an_operation_that_has_not_ended_although_its_time_is_over_until_it_has() {
    let mut world = World::new();
    let (volume, job, answers) = (world.volume(), Gate::new(), Gate::new());
    world.cloud.next_job("attachVolume", JobFault::Held(job.clone()));
    let begun = world.begin("attach", &volume, json!({ "vm_id": OTHER }));
    let id = begun["id"].as_str().unwrap();
    assert!(job.reached(SOON));
    assert_eq!(late(&world), None, "the control: it is open, and in time");

    // A minute after its time it waits for CloudStack to say which VM this host is.
    world.attachd.kill9().unwrap();
    let passed = "UPDATE operations SET waits_until = waits_until - 1000000 * (limit_seconds + 60)";
    let status = Command::new("sqlite3").args(["/var/lib/attachd/attachd.db", passed]).status().unwrap();
    assert!(status.success());
    world.cloud.each("listVirtualMachines", Fault::Held(answers.clone()));
    world.attachd = start(&world.lab);
    world.api = world.attachd.api();
    assert!(answers.reached(SOON), "{}", world.cloud.told());
    let problem = late(&world).unwrap();
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains(id) && message.contains("(attach)"), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("`attachctl operations`"), "{problem}");
    assert_eq!(health(&world.api)["status"], "degraded");

    world.cloud.calm();
    job.open();
    answers.open();
    world.is_failed(&world.end(&begun), "TIME_IS_UP");
    assert_eq!(late(&world), None, "it has ended");
    // CloudStack attaches it after all.
    world.cloud.wait_quiet(SOON).unwrap();
    assert_eq!(world.vm_of(&volume).as_deref(), Some(OTHER));
}

#[test]
fn a_user_with_its_share_of_open_operations_is_told_so_while_others_and_root_are_served() {
    let world = World::new();
    let answers = Gate::new();
    world.cloud.each("listVolumes", Fault::Held(answers.clone()));
    let (somebody, somebody_else) = (world.api.by(SOMEBODY), world.api.by(SOMEBODY_ELSE));
    let attach = || json!({ "type": "attach", "volume_id": Volume::random().id });
    let mut last = Value::Null;
    for _ in 0..SHARE {
        last = somebody.post(OPERATIONS, &attach()).unwrap().expect(201).unwrap();
    }
    let refused = somebody.post(OPERATIONS, &attach()).unwrap();
    assert_eq!((refused.status, &refused.json["code"]), (429, &json!("TOO_MANY_OPERATIONS")), "{}", refused.text);
    assert_eq!(refused.json["details"], json!({ "used": SHARE, "limit": SHARE }));
    assert!(refused.json["error"].as_str().unwrap().contains("wait until some have ended"), "{}", refused.text);
    let on_record = || world.api.get(&format!("{OPERATIONS}?limit=1000")).unwrap().json.as_array().unwrap().len();
    assert_eq!(on_record(), 256, "nothing was begun");
    let again = json!({ "type": "attach", "volume_id": last["volume_id"] });
    assert_eq!(somebody.post(OPERATIONS, &again).unwrap().expect(200).unwrap()["id"], last["id"], "it is open already");
    // The control: it is this user's share.
    for other in [&world.api, &somebody_else] {
        other.post(OPERATIONS, &attach()).unwrap().expect(201).unwrap();
    }

    world.cloud.calm();
    answers.open();
    world.end(&last);
    let next = somebody.post(OPERATIONS, &attach()).unwrap().expect(201).unwrap();
    assert_eq!(world.end(&next)["code"], "NO_SUCH_VOLUME", "as the others, which CloudStack does not know either");
}
