//! Many volumes at once, and a daemon that is killed in the middle.

use std::collections::BTreeMap;

use lab::Volume;
use serde_json::{Value, json};
use stand_in::{Gate, JobFault};

use crate::common::*;
use crate::world::World;

const VOLUMES: usize = 50;

/// Begins the same for all, has the daemon killed when the cloud holds some of the jobs and has done others, and starts it
/// again.
fn all_at_once(world: &mut World, kind: &str, command: &str, volumes: &[Volume]) {
    let (gate, before) = (Gate::new(), world.calls(command));
    for _ in 0..VOLUMES / 2 {
        world.cloud.next_job(command, JobFault::Held(gate.clone()));
    }
    let begun: Vec<Value> = volumes.iter().map(|volume| world.begin(kind, volume, json!({}))).collect();
    world.cloud.wait_calls(command, before + VOLUMES / 2 + 5, SOON).unwrap();
    assert!(gate.reached_by(VOLUMES / 2, SOON));
    world.attachd.kill9().unwrap();
    let open = world.cloud.jobs().iter().filter(|job| !job.over).count();
    assert!(open >= VOLUMES / 2, "the control: jobs are under way: {open}");
    gate.open();
    world.attachd = start(&world.lab);
    world.api = world.attachd.api();
    for operation in &begun {
        let ended = world.end(operation);
        assert_eq!(ended["status"], "completed", "{ended:#}");
    }
}

#[test]
fn fifty_volumes_at_once_are_attached_and_detached_across_a_kill_and_nothing_is_asked_twice_or_in_vain() {
    let mut world = World::new();
    let volumes: Vec<_> = (0..VOLUMES).map(|_| world.volume()).collect();
    all_at_once(&mut world, "attach", "attachVolume", &volumes);
    for volume in &volumes {
        world.is_served(volume);
    }
    all_at_once(&mut world, "detach", "detachVolume", &volumes);
    for volume in &volumes {
        world.is_unknown_here(volume);
    }

    // The witness: of each volume one attach and then one detach that was carried out, and no other call that changes anything.
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for call in world.cloud.calls() {
        assert!(call.is_done() || call.command.starts_with("list") || call.command.starts_with("query"), "{call}");
        if matches!(call.command.as_str(), "attachVolume" | "detachVolume") {
            told.entry(call.get("id").to_owned()).or_default().push(call.command.clone());
        }
    }
    assert_eq!(told.len(), VOLUMES);
    for (volume, commands) in told {
        assert_eq!(commands, ["attachVolume", "detachVolume"], "{volume}");
    }
    assert!(world.cloud.volumes().iter().all(|volume| volume.vm.is_none() && !volume.plugged));
}
