//! A CloudStack that does not answer keeps nobody from seeing that a volume is served.

use std::time::Duration;

use serde_json::{Value, json};
use stand_in::{Fault, Gate, JobFault};

use crate::common::*;
use crate::world::World;

/// The attach is completed while the last call of this command hangs.
fn completes_while_unanswered(world: &World, command: &str, answer: &Gate, begun: &Value) {
    let ended = world.end(begun);
    assert_eq!(ended["status"], "completed", "{ended:#}{}", world.cloud.told());
    let hangs = world.cloud.calls_of(command).pop().unwrap();
    assert!(!hangs.answered, "the control: {command} has no answer yet: {}", world.cloud.told());
    answer.open();
}

#[test]
fn an_attach_is_completed_by_its_disk_while_the_call_itself_has_no_answer() {
    let world = World::new();
    let (volume, answer) = (world.volume(), Gate::new());
    world.cloud.next("attachVolume", Fault::AnswerHeld(answer.clone()));
    let begun = world.begin("attach", &volume, json!({}));
    assert!(answer.reached(SOON), "{}", world.cloud.told());
    completes_while_unanswered(&world, "attachVolume", &answer, &begun);
    world.is_served(&volume);
    // What is still to come of it is waited for: the next operation of the volume is in its turn.
    world.completed("detach", &volume, json!({}));
    assert_eq!(world.calls("attachVolume"), 1, "{}", world.cloud.told());
}

#[test]
fn an_attach_is_completed_by_its_disk_while_the_question_for_the_job_has_no_answer() {
    let world = World::new();
    let (volume, job, answer) = (world.volume(), Gate::new(), Gate::new());
    world.cloud.next_job("attachVolume", JobFault::Held(job.clone()));
    world.cloud.next("queryAsyncJobResult", Fault::AnswerHeld(answer.clone()));
    let begun = world.begin("attach", &volume, json!({}));
    assert!(answer.reached(SOON), "{}", world.cloud.told());
    job.open();
    completes_while_unanswered(&world, "queryAsyncJobResult", &answer, &begun);
    world.is_served(&volume);
}

#[test]
fn an_attach_is_completed_by_its_disk_while_the_question_for_the_volume_has_no_answer() {
    let world = World::new();
    let (volume, disk, answer) = (world.volume(), Gate::new(), Gate::new());
    world.cloud.next_job("attachVolume", JobFault::DiskLater(disk.clone()));
    // The first one is before the attach.
    world.cloud.next("listVolumes", Fault::Takes(Duration::ZERO));
    world.cloud.next("listVolumes", Fault::AnswerHeld(answer.clone()));
    let begun = world.begin("attach", &volume, json!({}));
    assert!(answer.reached(SOON), "{}", world.cloud.told());
    disk.open();
    completes_while_unanswered(&world, "listVolumes", &answer, &begun);
    world.is_served(&volume);
}
