//! A CloudStack that does not know `customjobid`: it gives each job an id of its own.

use serde_json::json;
use stand_in::{Age, Gate, JobFault, Refusal, Setup};

use crate::common::*;
use crate::world::World;

#[test]
fn the_job_of_an_old_server_is_followed_by_the_id_that_it_gives_also_after_a_restart() {
    let mut world = World::with(Setup { age: Age::Old, ..Setup::default() });
    let (volume, gate) = (world.attached(), Gate::new());
    world.cloud.next_job("detachVolume", JobFault::Held(gate.clone()));
    let begun = world.begin("detach", &volume, json!({}));
    assert!(gate.reached(SOON));
    let job = world.cloud.jobs().pop().unwrap().id;
    let asked = world.cloud.calls_of("detachVolume")[0].get("customjobid").to_owned();
    assert!(!asked.is_empty() && asked != job, "the control: the server did not take the id that it was given");
    let asks = |world: &World| {
        let asked = world.cloud.calls_of("queryAsyncJobResult");
        asked.iter().filter(|call| call.get("jobid") == job).count()
    };
    assert!(world.cloud.wait(SOON, |_| asks(&world) > 0), "{}", world.cloud.told());
    let path = format!("/api/v1/operations/{}", begun["id"].as_str().unwrap());
    let shown = world.api.get(&path).unwrap().expect(200).unwrap();
    assert_eq!(shown["step"]["job_id"], job, "it is on record: {shown:#}");
    world.attachd.kill9().unwrap();
    let before = asks(&world);
    world.attachd = start(&world.lab);
    world.api = world.attachd.api();
    assert!(world.cloud.wait(SOON, |_| asks(&world) > before), "{}", world.cloud.told());
    gate.open();
    assert_eq!(world.end(&begun)["status"], "completed");
    world.is_unknown_here(&volume);
    assert_eq!(world.calls("detachVolume"), 1, "{}", world.cloud.told());
}

/// Without the id of its job nobody could be told why it has failed.
#[test]
fn what_the_job_of_an_old_server_says_is_told() {
    let world = World::with(Setup { age: Age::Old, ..Setup::default() });
    let volume = world.volume();
    world.cloud.next_job("attachVolume", JobFault::Fails(Refusal::runtime("the rack is on fire")));
    let error = world.failed("attach", &volume, json!({}), "CLOUD_REFUSED");
    assert!(error.contains("the rack is on fire"), "{error}");
    world.is_unknown_here(&volume);
    world.completed("attach", &volume, json!({}));
    assert_eq!(world.calls("attachVolume"), 2, "{}", world.cloud.told());
}
