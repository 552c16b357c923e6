//! CloudStack's answer is cut at each call, before and after it was carried out.

use std::collections::BTreeMap;

use lab::Volume;
use serde_json::json;
use stand_in::Fault;

use crate::common::*;
use crate::world::World;

const CHANGES: [&str; 4] = ["createVolume", "attachVolume", "detachVolume", "deleteVolume"];

/// A volume's life: made, attached, served, detached, deleted. What was carried out of it, by command.
fn life(world: &World, name: &str) -> BTreeMap<String, usize> {
    let before = world.cloud.calls().len();
    let (zone, offering) = (world.cloud.zone(), world.cloud.offering());
    let create =
        json!({ "type": "create", "name": name, "size_bytes": 1, "zone_id": zone, "disk_offering_id": offering });
    let begun = world.api.post("/api/v1/operations", &create).unwrap().expect(201).unwrap();
    let made = world.end(&begun);
    assert_eq!(made["status"], "completed", "{made:#}{}", world.cloud.told());
    let volume = Volume::of(made["response"]["volume_id"].as_str().unwrap());
    world.completed("attach", &volume, json!({}));
    wait(&world.api, &volume, "ready");
    world.completed("detach", &volume, json!({}));
    world.is_unknown_here(&volume);
    world.completed("delete", &volume, json!({}));
    assert!(world.cloud.volume(&volume.id).unwrap().removed);
    assert!(world.cloud.volumes().is_empty(), "an orphan: {:?}{}", world.cloud.volumes(), world.cloud.told());
    let calls = world.cloud.calls().into_iter().skip(before);
    let done = calls.filter(|call| call.is_done() && CHANGES.contains(&call.command.as_str()));
    done.fold(BTreeMap::new(), |mut counts, call| {
        *counts.entry(call.command).or_default() += 1;
        counts
    })
}

fn cut_at_every_call(fault: &Fault) {
    let world = World::new();
    let wanted: BTreeMap<String, usize> = CHANGES.iter().map(|command| ((*command).to_owned(), 1)).collect();
    assert_eq!(life(&world, "undisturbed"), wanted);
    let mut cut = 0;
    for number in 1.. {
        let calls = u64::try_from(world.cloud.calls().len()).unwrap();
        world.cloud.call_number(calls + number, fault.clone());
        let done = life(&world, &format!("cut-{number}"));
        if !world.cloud.faults_left().is_empty() {
            world.cloud.calm();
            break;
        }
        assert_eq!(done, wanted, "cut at the call {number}: {}", world.cloud.told());
        cut += 1;
    }
    println!("cut at each of {cut} calls");
    assert!(cut >= 8, "the control: each of the four asks and changes something: {cut}");
}

#[test]
fn a_volume_lives_its_life_once_whichever_call_is_cut_before_it_is_carried_out() {
    cut_at_every_call(&Fault::CutBefore);
}

#[test]
fn a_volume_lives_its_life_once_whichever_call_is_cut_after_it_was_carried_out() {
    cut_at_every_call(&Fault::CutAfter);
}
