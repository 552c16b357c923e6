//! What NBD clients have written is on the disk before an operation gives it away, and the connection that attachd makes for that
//! is not taken for a client.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::os::unix::fs::FileExt;

use common::cloud::lab_in_cloud;
use common::*;
use lab::{Api, Lab, LabCloud, Volume};
use serde_json::{Value, json};
use stand_in::{Gate, JobFault};

const SIZE: u64 = 1 << 30;

fn with_cloud() -> (Lab, LabCloud, lab::Attachd, Api) {
    let (lab, cloud) = lab_in_cloud();
    let attachd = start(&lab);
    let api = attachd.api();
    (lab, cloud, attachd, api)
}

/// An operation, followed to its end.
fn operate(api: &Api, request: &Value) -> Value {
    let body = json!({ "request": request, "limit_seconds": 60 });
    api.post("/kill-points/operations", &body).unwrap().expect(200).unwrap()
}

/// A volume that an operation has attached, and that is served.
fn attached(lab: &Lab, cloud: &LabCloud, api: &Api) -> Volume {
    let volume = lab.volume();
    cloud.add(&volume, SIZE);
    let ended = operate(api, &json!({ "type": "attach", "volume": volume.id, "to": "here" }));
    assert_eq!(ended["state"], "completed", "{ended:#}");
    volume
}

fn detach(api: &Api, volume: &Volume, force: bool) -> Value {
    operate(api, &json!({ "type": "detach", "volume": volume.id, "from": null, "force": force }))
}

#[test]
fn a_client_of_another_export_does_not_keep_a_volume_from_being_flushed_and_detached() {
    let (lab, cloud, _attachd, api) = with_cloud();
    let (volume, other) = (attached(&lab, &cloud, &api), attached(&lab, &cloud, &api));
    let mut client = lab.nbd_client(&other.export()).unwrap();
    let ended = detach(&api, &volume, false);
    assert_eq!((&ended["state"], &ended["response"]["flush"]), (&json!("completed"), &json!("done")), "{ended:#}");
    assert!(cloud.volume(&volume.id).unwrap().vm.is_none());
    client.write(0, &[7; 512]).unwrap();
    let kept = detach(&api, &other, false);
    assert_eq!(kept["fault"]["code"], "CLIENTS_CONNECTED", "the control: a client of its own does: {kept:#}");
    assert_eq!(show(&api, &other)["state"], "ready");
    client.write(0, &[8; 512]).unwrap();
}

#[test]
fn by_force_cloudstack_is_asked_while_a_client_is_connected_and_what_that_flushes_is_on_the_disk() {
    let (lab, cloud, _attachd, api) = with_cloud();
    let volume = attached(&lab, &cloud, &api);
    let mut client = lab.nbd_client(&volume.export()).unwrap();
    client.write(4096, &[8; 4096]).unwrap();
    // A loop device, other than a virtio disk, is let go only when nobody has it open.
    let gate = Gate::new();
    cloud.next_job("detachVolume", JobFault::Held(gate.clone()));
    let ended = std::thread::scope(|scope| {
        let operation = scope.spawn(|| detach(&api, &volume, true));
        assert!(gate.reached(SOON), "CloudStack is asked at once: {}", cloud.told());
        assert!(lab.nbd_client(&volume.export()).is_err(), "nobody new is let in");
        client.write(4096, &[9; 4096]).unwrap();
        client.flush().unwrap();
        drop(client);
        gate.open();
        operation.join().unwrap()
    });
    assert_eq!((&ended["state"], &ended["response"]["flush"]), (&json!("completed"), &json!("done")), "{ended:#}");
    let mut bytes = [0; 4096];
    std::fs::File::open(cloud.file(&volume).unwrap()).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [9; 4096]);
}
