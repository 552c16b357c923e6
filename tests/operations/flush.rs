//! What NBD clients have written is on the disk before an operation gives it away, and the connection that attachd makes for that
//! is not taken for a client.

use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use stand_in::{Gate, JobFault};

use crate::common::*;
use crate::world::World;

/// Whether the clients' writes were flushed, as the operation says.
fn flush(operation: &Value) -> &Value {
    &operation["response"]["flush"]["state"]
}

#[test]
fn a_client_of_another_export_does_not_keep_a_volume_from_being_flushed_and_detached() {
    let world = World::new();
    let (volume, other) = (world.attached(), world.attached());
    let mut client = world.lab.nbd_client(&other.export()).unwrap();
    let ended = world.completed("detach", &volume, json!({}));
    assert_eq!(flush(&ended), "done", "{ended:#}");
    assert_eq!(world.vm_of(&volume), None);
    client.write(0, &[7; 512]).unwrap();
    world.failed("detach", &other, json!({}), "CLIENTS_CONNECTED");
    assert_eq!(show(&world.api, &other)["state"], "ready", "the control: a client of its own does");
    client.write(0, &[8; 512]).unwrap();
}

#[test]
fn by_force_cloudstack_is_asked_while_a_client_is_connected_and_what_that_flushes_is_on_the_disk() {
    let world = World::new();
    let volume = world.attached();
    let mut client = world.lab.nbd_client(&volume.export()).unwrap();
    client.write(4096, &[8; 4096]).unwrap();
    // A loop device, other than a virtio disk, is let go only when nobody has it open.
    let gate = Gate::new();
    world.cloud.next_job("detachVolume", JobFault::Held(gate.clone()));
    let begun = world.begin("detach", &volume, json!({ "force": true }));
    assert!(gate.reached(SOON), "CloudStack is asked at once: {}", world.cloud.told());
    assert!(world.lab.nbd_client(&volume.export()).is_err(), "nobody new is let in");
    client.write(4096, &[9; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    gate.open();
    let ended = world.end(&begun);
    assert_eq!((&ended["status"], flush(&ended)), (&json!("completed"), &json!("done")), "{ended:#}");
    let mut bytes = [0; 4096];
    let file = std::fs::File::open(world.cloud.file(&volume).unwrap()).unwrap();
    file.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [9; 4096]);
}
