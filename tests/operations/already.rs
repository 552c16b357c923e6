//! What is so already is not done again.

use lab::Volume;
use serde_json::json;

use crate::common::*;
use crate::world::{OTHER, World};

#[test]
fn what_is_attached_here_already_is_adopted_and_served() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.attach(&volume.id, world.cloud.vm_here()).unwrap();
    let done = world.completed("attach", &volume, json!({}));
    assert_eq!(done["response"]["adopted"], true, "{done:#}");
    world.is_served(&volume);
    let again = world.completed("attach", &volume, json!({}));
    assert_ne!(again["id"], done["id"], "that one has ended");
    assert_eq!(world.calls("attachVolume"), 0, "{}", world.cloud.told());
    let control = world.attached();
    assert_eq!(world.calls("attachVolume"), 1, "the control: one that is not attached is");
    world.is_served(&control);
}

#[test]
fn what_is_detached_already_is_detached_here_and_cloudstack_is_not_asked_to() {
    let world = World::new();
    let (volume, control) = (world.attached(), world.attached());
    world.cloud.detach(&volume.id).unwrap();
    wait(&world.api, &volume, "lost");
    let done = world.completed("detach", &volume, json!({}));
    assert_eq!(done["response"]["adopted"], true, "{done:#}");
    world.is_unknown_here(&volume);
    world.completed("detach", &volume, json!({}));
    assert_eq!(world.calls("detachVolume"), 0, "{}", world.cloud.told());
    world.completed("detach", &control, json!({}));
    assert_eq!(world.calls("detachVolume"), 1, "the control: one that is attached is detached");
    assert_eq!(world.vm_of(&control), None);
}

#[test]
fn what_is_deleted_already_is_deleted_and_cannot_be_detached() {
    let world = World::new();
    let volume = world.attached();
    let done = world.completed("delete", &volume, json!({}));
    assert_eq!(done["response"]["adopted"], false, "{done:#}");
    assert!(world.cloud.volume(&volume.id).unwrap().removed);
    world.is_unknown_here(&volume);
    let again = world.completed("delete", &volume, json!({}));
    assert_eq!(again["response"]["adopted"], true, "{again:#}");
    assert_eq!((world.calls("detachVolume"), world.calls("deleteVolume")), (1, 1), "{}", world.cloud.told());
    let error = world.failed("detach", &volume, json!({}), "NO_SUCH_VOLUME");
    assert!(error.contains(&volume.id), "{error}");
}

#[test]
fn what_is_attached_to_another_vm_stays_there_and_that_vm_is_named() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.attach(&volume.id, OTHER).unwrap();
    for kind in ["attach", "detach", "delete"] {
        let error = world.failed(kind, &volume, json!({}), "VOLUME_ELSEWHERE");
        assert!(error.contains(OTHER), "{kind}: {error}");
    }
    assert_eq!(world.vm_of(&volume).as_deref(), Some(OTHER));
    world.is_unknown_here(&volume);
    assert!(["attachVolume", "detachVolume", "deleteVolume"].iter().all(|command| world.calls(command) == 0));
    // Named, it is detached there.
    world.completed("detach", &volume, json!({ "vm_id": OTHER }));
    assert_eq!(world.vm_of(&volume), None);
}

#[test]
fn a_volume_of_another_vm_has_a_placeholder_and_no_export() {
    let world = World::new();
    let volume = world.volume();
    let done = world.completed("attach", &volume, json!({ "vm_id": OTHER }));
    assert_eq!(done["response"]["device_path"], format!("remote-vm-{OTHER}-{}", volume.id), "{done:#}");
    assert_eq!(world.vm_of(&volume).as_deref(), Some(OTHER));
    world.is_unknown_here(&volume);
    world.completed("detach", &volume, json!({ "vm_id": OTHER }));
    assert_eq!(world.vm_of(&volume), None);
}

#[test]
fn an_unknown_volume_is_said_to_be_one_and_nothing_is_begun() {
    let world = World::new();
    let volume = Volume::random();
    for kind in ["attach", "detach"] {
        let error = world.failed(kind, &volume, json!({}), "NO_SUCH_VOLUME");
        assert!(error.contains(&volume.id), "{error}");
    }
    world.is_unknown_here(&volume);
    assert!(world.cloud.jobs().is_empty(), "{}", world.cloud.told());
}
