//! What an operation waits for, as its caller sees it.

use serde_json::{Value, json};
use stand_in::{Gate, JobFault};

use crate::common::*;
use crate::world::World;

#[test]
fn an_attach_waits_for_the_kernel_from_cloudstacks_word_until_the_disk_is_shown() {
    let world = World::new();
    let (volume, disk) = (world.volume(), Gate::new());
    let mut events = world.api.events().unwrap();
    world.cloud.next_job("attachVolume", JobFault::DiskLater(disk.clone()));
    let begun = world.begin("attach", &volume, json!({}));
    let waits = |party: &'static str| {
        let id = begun["id"].clone();
        move |event: &Value| event["id"] == id && event["step"]["waits_for"] == party
    };
    events.wait_for(waits("cloud"), SOON).unwrap();
    let told = events.wait_for(waits("kernel"), SOON).unwrap();
    assert!(disk.reached(SOON), "the control: CloudStack has said so, and the disk is not here");
    assert!(told["step"]["text"].as_str().unwrap().contains("the kernel does not show its disk"), "{told:#}");
    let path = format!("/api/v1/operations/{}", begun["id"].as_str().unwrap());
    let shown = world.api.get(&path).unwrap().expect(200).unwrap();
    assert_eq!(shown["step"], told["step"], "and whoever asks sees the same");
    assert!(shown["step"]["since"].as_str() > shown["updated_at"].as_str(), "since CloudStack has said so: {shown:#}");
    disk.open();
    assert_eq!(world.end(&begun)["status"], "completed");
}
