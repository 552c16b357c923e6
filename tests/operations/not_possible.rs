//! What CloudStack does not do: the caller reads why, and nothing is left half done.

use serde_json::json;
use stand_in::Vm;

use crate::common::*;
use crate::world::{OTHER, World};

/// An attach that CloudStack refuses because of this host's VM: its words, and nothing of it here afterwards; and that it is
/// attached when the reason has gone.
fn is_refused_for(change: fn(&mut Vm), words: &str) {
    let world = World::new();
    let volume = world.volume();
    let here = world.cloud.vm_here().to_owned();
    let before = world.cloud.vm(&here).unwrap();
    world.cloud.change_vm(&here, change);
    let error = world.failed("attach", &volume, json!({}), "CLOUD_REFUSED");
    assert!(error.contains(words), "{error}");
    world.is_unknown_here(&volume);
    assert_eq!(world.vm_of(&volume), None);
    world.cloud.change_vm(&here, |vm| *vm = before);
    world.completed("attach", &volume, json!({}));
    world.is_served(&volume);
}

#[test]
fn a_vm_without_a_free_slot_is_told_with_how_many_it_has() {
    is_refused_for(|vm| vm.max_data_disks = 0, "the maximum number of data disks (0)");
}

#[test]
fn a_vm_that_migrates_takes_no_volume_and_cloudstacks_reason_is_told() {
    is_refused_for(|vm| vm.state = "Migrating".into(), "either running or stopped");
}

#[test]
fn snapshots_of_the_vm_that_are_in_the_way_are_told() {
    is_refused_for(|vm| vm.has_snapshots = true, "does not have VM snapshots");
}

#[test]
fn backups_of_the_vm_that_are_in_the_way_are_told() {
    is_refused_for(|vm| vm.has_backups = true, "does not have any backups");
}

#[test]
fn a_volume_that_migrates_is_left_alone_until_it_is_ready() {
    let world = World::new();
    let (volume, served) = (world.volume(), world.attached());
    for (kind, volume) in [("attach", &volume), ("detach", &served)] {
        world.cloud.change_volume(&volume.id, |volume| volume.state = "Migrating".into());
        let jobs = world.cloud.jobs().len();
        let error = world.failed(kind, volume, json!({}), "VOLUME_BUSY");
        assert!(error.contains("Migrating") && error.contains("Ready"), "{error}");
        assert_eq!(world.cloud.jobs().len(), jobs, "nothing was begun");
        world.cloud.change_volume(&volume.id, |volume| volume.state = "Ready".into());
    }
    world.is_served(&served);
    world.is_unknown_here(&volume);
    world.completed("attach", &volume, json!({}));
    world.completed("detach", &served, json!({}));
}

#[test]
fn a_stopped_vm_gets_its_volume_and_this_host_waits_for_the_disk_until_it_is_started() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.switch_vm(OTHER, false).unwrap();
    world.completed("attach", &volume, json!({ "vm_id": OTHER }));
    world.completed("detach", &volume, json!({ "vm_id": OTHER }));

    let here = world.cloud.vm_here().to_owned();
    world.cloud.switch_vm(&here, false).unwrap();
    let error = world.failed("attach", &volume, json!({ "deadline_seconds": 8 }), "NOT_SERVED");
    assert!(error.contains(&volume.serial), "{error}");
    // It is attached, and wanted: served as soon as the disk comes.
    world.cloud.switch_vm(&here, true).unwrap();
    world.is_served(&volume);
}

#[test]
fn delete_protection_is_told_before_anything_is_taken_away() {
    let world = World::new();
    let volume = world.attached();
    world.cloud.change_volume(&volume.id, |volume| volume.delete_protection = true);
    let error = world.failed("delete", &volume, json!({}), "DELETE_PROTECTED");
    assert!(error.contains(&volume.id), "{error}");
    world.is_served(&volume);
    assert_eq!((world.calls("detachVolume"), world.calls("deleteVolume")), (0, 0), "{}", world.cloud.told());
    world.cloud.change_volume(&volume.id, |volume| volume.delete_protection = false);
    world.completed("delete", &volume, json!({}));
}

#[test]
fn a_volume_whose_snapshot_is_being_made_is_detached_and_said_not_to_be_deleted() {
    let world = World::new();
    let volume = world.attached();
    world.cloud.change_volume(&volume.id, |volume| volume.snapshot = true);
    let error = world.failed("delete", &volume, json!({}), "CLOUD_REFUSED");
    assert!(error.contains("snapshots creating on it") && error.contains("not deleted"), "{error}");
    world.is_unknown_here(&volume);
    world.cloud.change_volume(&volume.id, |volume| volume.snapshot = false);
    world.completed("delete", &volume, json!({}));
    assert!(world.cloud.volume(&volume.id).unwrap().removed);
}

/// Restored from a backup, its disk has no serial until its VM is stopped and started.
#[test]
fn a_restored_volume_without_serial_is_told_with_its_cure_and_served_after_it() {
    let world = World::new();
    let volume = world.volume();
    world.cloud.change_volume(&volume.id, |volume| volume.has_serial = false);
    let error = world.failed("attach", &volume, json!({ "deadline_seconds": 8 }), "NOT_SERVED");
    assert!(error.contains("stopped and started") && error.contains(&volume.serial), "{error}");
    let here = world.cloud.vm_here().to_owned();
    assert_eq!(world.vm_of(&volume).as_deref(), Some(&*here));
    assert!(world.cloud.node(&volume).is_some(), "the control: its disk is here");
    assert!(!world.lab.nbd_connects(&volume.export()));
    world.cloud.switch_vm(&here, false).unwrap();
    world.cloud.change_volume(&volume.id, |volume| volume.has_serial = true);
    world.cloud.switch_vm(&here, true).unwrap();
    wait(&world.api, &volume, "ready");
}
