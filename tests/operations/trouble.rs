//! Jobs that go wrong, keys that are wrong, a CloudStack that is away.

use jiff::SignedDuration;
use lab::Volume;
use serde_json::{Value, json};
use stand_in::{Gate, JobFault, Key};

use crate::common::*;
use crate::world::World;

#[test]
fn a_cancelled_job_is_told_and_leaves_nothing_of_an_attach() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.next_job("attachVolume", JobFault::Cancelled);
    let error = world.failed("attach", &volume, json!({}), "JOB_CANCELLED");
    assert!(error.contains("cancelled") && error.contains("ask again"), "{error}");
    world.is_unknown_here(&volume);
    world.completed("attach", &volume, json!({}));
    world.is_served(&volume);
    world.cloud.next_job("detachVolume", JobFault::Cancelled);
    world.failed("detach", &volume, json!({}), "JOB_CANCELLED");
    world.is_served(&volume);
}

#[test]
fn a_job_that_was_done_and_says_that_it_was_not_is_seen_through() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.next_job("attachVolume", JobFault::CancelledAfter);
    world.completed("attach", &volume, json!({}));
    world.is_served(&volume);
    for fault in [JobFault::CancelledAfter, JobFault::FailsAfter(stand_in::Refusal::runtime("no answer of the agent"))]
    {
        world.cloud.next_job("detachVolume", fault);
        world.completed("detach", &volume, json!({}));
        world.is_unknown_here(&volume);
        world.completed("attach", &volume, json!({}));
    }
    world.cloud.next_job("detachVolume", JobFault::Forgotten);
    world.completed("detach", &volume, json!({}));
    assert_eq!(world.calls("detachVolume"), 3, "none was asked for twice: {}", world.cloud.told());
}

#[test]
fn a_disk_that_comes_after_the_job_has_succeeded_is_waited_for() {
    let world = World::new();
    let (volume, gate) = (world.volume(), Gate::new());
    world.cloud.next_job("attachVolume", JobFault::DiskLater(gate.clone()));
    let begun = world.begin("attach", &volume, json!({}));
    assert!(gate.reached(SOON));
    assert_eq!(world.cloud.jobs()[0].status, 1, "the control: the job has succeeded");
    gate.open();
    assert_eq!(world.end(&begun)["status"], "completed");
    world.is_served(&volume);
}

/// apache/cloudstack#14214: a job to detach that comes late takes the newer attachment.
#[test]
fn a_detach_that_straggles_takes_a_newer_attachment_and_that_is_noticed_at_once() {
    let world = World::new();
    let (volume, gate) = (world.attached(), Gate::new());
    world.cloud.next_job("detachVolume", JobFault::Straggles(gate.clone()));
    world.failed("detach", &volume, json!({}), "JOB_CANCELLED");
    world.is_served(&volume);
    world.completed("detach", &volume, json!({}));
    world.completed("attach", &volume, json!({}));
    world.is_served(&volume);
    let mut events = world.api.events().unwrap();
    gate.open();
    let lost = |event: &Value| event["volume_id"] == volume.id && event["state"] == "lost";
    events.wait_for(lost, SOON).unwrap();
    world.cloud.wait_quiet(SOON).unwrap();
    assert!(!world.lab.nbd_connects(&volume.export()));
    // It is attached again by asking again.
    world.completed("attach", &volume, json!({}));
    world.is_served(&volume);
}

/// apache/cloudstack#13014.
#[test]
fn a_detach_that_the_guest_does_not_carry_out_gives_the_export_back() {
    let world = World::new();
    let volume = world.attached();
    world.cloud.next_job("detachVolume", JobFault::NotLetGo);
    let error = world.failed("detach", &volume, json!({}), "CLOUD_REFUSED");
    assert!(error.contains("waiting for [10000] milliseconds"), "{error}");
    assert_eq!(world.vm_of(&volume).as_deref(), Some(world.cloud.vm_here()));
    // The client's next connection works.
    world.is_served(&volume);
    world.lab.nbd_client(&volume.export()).unwrap().read(0, 512).unwrap();
}

/// Keys that CloudStack does not take, one way or another, before an operation and in the middle of one.
fn not_let_in(world: &World, volume: &Volume, words: &str) {
    let error = world.failed("attach", volume, json!({}), "CLOUD_NOT_LET_IN");
    assert!(error.contains(words), "{error}");
    assert!(!error.contains(&world.cloud.key().secret), "no secret is told");
    world.is_unknown_here(volume);
}

#[test]
fn keys_that_are_wrong_or_expired_are_told_with_what_it_can_be() {
    let world = World::new();
    let (volume, served) = (world.volume(), world.attached());
    let good = world.cloud.key();
    world.cloud.change_keys(|keys| keys[0].valid = false);
    not_let_in(&world, &volume, "expired");
    world.cloud.change_keys(|keys| keys[0].valid = true);
    world.cloud.write_keys(&good.key, "another").unwrap();
    not_let_in(&world, &volume, "wrong");
    world.cloud.write_keys(&good.key, &good.secret).unwrap();
    world.completed("attach", &volume, json!({}));
    world.is_served(&served);
}

#[test]
fn while_it_cannot_be_confirmed_which_vm_this_host_is_an_attach_is_refused_with_the_reason() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.change_keys(|keys| keys[0].valid = false);
    let asked = json!({ "type": "attach", "volume_id": volume.id });
    let refused = world.api.post("/api/v1/operations", &asked).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "OWN_VM_UNKNOWN");
    let error = refused["error"].as_str().unwrap();
    assert!(error.contains(world.cloud.vm_here()) && error.contains("expired"), "{error}");
    world.cloud.change_keys(|keys| keys[0].valid = true);
    let known = || world.api.post("/api/v1/operations", &asked).unwrap();
    let deadline = std::time::Instant::now() + SOON;
    let mut reply = known();
    while reply.status == 409 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
        reply = known();
    }
    assert_eq!(world.end(&reply.expect(201).unwrap())["status"], "completed", "it heals by itself");
}

#[test]
fn keys_that_are_rotated_in_the_middle_of_an_operation_are_taken_up() {
    let world = World::new();
    let (volume, gate) = (world.attached(), Gate::new());
    world.cloud.next_job("detachVolume", JobFault::Held(gate.clone()));
    let begun = world.begin("detach", &volume, json!({}));
    assert!(gate.reached(SOON));
    world.cloud.change_keys(|keys| *keys = vec![Key::new("fresh", "pair")]);
    let refused = |cloud: &stand_in::Cloud| {
        cloud.calls().iter().any(|call| matches!(&call.outcome, stand_in::Outcome::Refused { http: 401, .. }))
    };
    assert!(world.cloud.wait(SOON, refused), "the control: the old pair is not let in: {}", world.cloud.told());
    world.cloud.write_keys("fresh", "pair").unwrap();
    gate.open();
    assert_eq!(world.end(&begun)["status"], "completed");
    world.is_unknown_here(&volume);
    assert_eq!(world.calls("detachVolume"), 1);
}

#[test]
fn clocks_that_differ_are_told_as_what_it_is() {
    let world = World::new();
    let (volume, _served) = (world.volume(), world.attached());
    world.cloud.set_skew(SignedDuration::from_mins(20));
    not_let_in(&world, &volume, "clock");
    world.cloud.set_skew(SignedDuration::ZERO);
    world.completed("attach", &volume, json!({}));
}

#[test]
fn a_volume_is_served_by_its_disk_also_when_cloudstack_goes_away_before_it_has_said_so() {
    let world = World::new();
    let (volume, gate) = (world.volume(), Gate::new());
    world.cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let begun = world.begin("attach", &volume, json!({}));
    assert!(gate.reached(SOON));
    world.cloud.go_away();
    gate.open();
    assert_eq!(world.end(&begun)["status"], "completed");
    world.is_served(&volume);
    world.cloud.come_back().unwrap();
    // It is known to be back when it is asked for something.
    world.attached();
}
