//! A CloudStack that is away for a minute. The minute really passes; it costs no processor time.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stand_in::{Gate, JobFault};

use crate::common::*;
use crate::world::World;

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_cloudstack_that_is_away_for_a_minute_is_waited_for_and_the_operations_are_completed_then() {
    let world = World::new();
    let (served, loose, gate) = (world.attached(), world.volume(), Gate::new());
    world.cloud.next_job("detachVolume", JobFault::Held(gate.clone()));
    let detach = world.begin("detach", &served, json!({}));
    assert!(gate.reached(SOON));
    assert_eq!(cloud_problem(&world), None, "the control: before it went");
    let away = Instant::now();
    world.cloud.go_away();
    gate.open();
    world.cloud.wait_quiet(SOON).unwrap();
    let attach = world.begin("attach", &loose, json!({}));
    let calls = world.cloud.calls().len();

    // It waits for the end of an operation, which does not come.
    let path = |operation: &Value, seconds: u64| {
        format!("/api/v1/operations/{}?wait=done&timeout_seconds={seconds}", operation["id"].as_str().unwrap())
    };
    let waited = world.api.request("GET", &path(&attach, 60), None, MINUTE + SOON).unwrap();
    assert_eq!(waited.json["code"], "WAIT_TIMEOUT", "{}", waited.text);
    assert!(away.elapsed() >= MINUTE, "{:?}", away.elapsed());
    let now = world.api.get(&path(&detach, 0)).unwrap();
    assert_eq!(now.json["code"], "WAIT_TIMEOUT", "{}", now.text);
    assert!(!world.lab.nbd_connects(&served.export()), "nobody knows where that volume is: it is not served");
    let problem = cloud_problem(&world).expect("health names what is wrong");
    assert!(problem.contains("since"), "{problem}");
    assert_eq!(world.cloud.calls().len(), calls, "the control: nothing has reached CloudStack");

    world.cloud.come_back().unwrap();
    for operation in [&detach, &attach] {
        let ended = world.end(operation);
        assert_eq!(ended["status"], "completed", "{ended:#}{}", world.cloud.told());
    }
    world.is_unknown_here(&served);
    world.is_served(&loose);
    assert_eq!((world.calls("detachVolume"), world.calls("attachVolume")), (1, 2), "{}", world.cloud.told());
    assert_eq!(cloud_problem(&world), None, "health says that it is back");
}

/// What health says of a CloudStack that does not answer.
fn cloud_problem(world: &World) -> Option<String> {
    let health = health(&world.api);
    let all = ["problems", "remarks"].map(|list| health[list].as_array().cloned().unwrap_or_default()).concat();
    let found = all.into_iter().find(|problem| problem["code"] == "CLOUD_UNREACHABLE");
    found.map(|problem| problem["message"].as_str().unwrap().to_owned())
}
