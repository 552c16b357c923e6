//! Volumes that an operation has sealed are not served until that operation unseals or releases them (invariant 16).
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;

use common::*;
use lab::api::Reply;
use lab::{Api, Lab, Volume};
use serde_json::json;

const EXPORTS: &str = "/run/attachd/exports";

fn call(api: &Api, call: &str, volume: &Volume, operation: u32) -> Reply {
    let path = format!("/kill-points/{call}/{}/{operation:08x}-0000-4000-8000-000000000000", volume.id);
    api.post(&path, &json!({})).unwrap()
}

fn is_served(lab: &Lab, volume: &Volume) -> bool {
    lab.nbd_client(&volume.export()).is_ok()
}

#[test]
fn a_sealed_volume_is_not_served_until_its_operation_unseals_it() {
    let (lab, mut attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    let (open, _other) = served(&lab, &api);
    call(&api, "seal", &volume, 1).expect(200).unwrap();
    let shown = show(&api, &volume);
    assert_eq!((&shown["state"], &shown["reason"]["code"]), (&json!("detaching"), &json!("SEALED")));
    assert!(!is_served(&lab, &volume));

    // Nothing unseals it: not a resync, not a link made by hand, not its disk's return, not a restart.
    resync(&api);
    let link = format!("{EXPORTS}/{}", volume.export());
    let leads_to = fs::read_link(format!("{EXPORTS}/{}", open.export())).unwrap();
    let mut events = api.events().unwrap();
    std::os::unix::fs::symlink(leads_to, &link).unwrap();
    events.wait_for(|event| event["volume_id"] == volume.id && event["event"] == "revoked", SOON).unwrap();
    lab.detach_settled(&mut disk).unwrap();
    lab.attach_settled(&mut disk).unwrap();
    resync(&api);
    assert!(!is_served(&lab, &volume));
    for clean in [true, false] {
        if clean {
            attachd.terminate().unwrap();
        } else {
            attachd.kill9().unwrap();
        }
        attachd = start(&lab);
        let api = attachd.api();
        wait(&api, &open, "ready");
        assert_eq!(show(&api, &volume)["reason"]["code"], "SEALED");
        assert!(!is_served(&lab, &volume));
    }
    assert!(is_served(&lab, &open), "the control");

    let api = attachd.api();
    call(&api, "unseal", &volume, 1).expect(200).unwrap();
    wait(&api, &volume, "ready");
    assert!(is_served(&lab, &volume));
    call(&api, "unseal", &volume, 1).expect(200).unwrap();
    let steps = story(&show(&api, &volume));
    let sealed = steps.iter().filter(|step| step.ends_with("sealed"));
    assert_eq!(sealed.collect::<Vec<_>>(), ["sealed", "unsealed"], "{steps:?}");
}

#[test]
fn a_sealed_volume_cannot_be_withdrawn_and_keeps_its_claim_until_its_operation_releases_it() {
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let claim = std::path::Path::new("/var/lib/attachd/claims").join(&volume.serial);
    assert_eq!(call(&api, "release", &volume, 1).json["code"], "NOT_SEALED");
    call(&api, "seal", &volume, 1).expect(200).unwrap();
    let intent = format!("/api/v1/intents/{}", volume.id);
    for refused in [
        api.delete(&intent).unwrap(),
        api.delete(&format!("{intent}?force=true")).unwrap(),
        api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap(),
        call(&api, "seal", &volume, 2),
        call(&api, "unseal", &volume, 2),
        call(&api, "release", &volume, 2),
    ] {
        let why = refused.expect(409).unwrap();
        assert_eq!(why["code"], "SEALED", "{why:#}");
        assert!(why["details"]["operation"].as_str().unwrap().starts_with("00000001-"), "{why:#}");
    }
    // The claim is wanted, so it is made again if it was removed by hand.
    fs::remove_file(&claim).unwrap();
    resync(&api);
    assert!(claim.exists());
    call(&api, "release", &volume, 1).expect(200).unwrap();
    assert!(!claim.exists());
    assert_eq!(api.get(&intent).unwrap().status, 404);
}

/// Invariant 16: no disk is given to the cloud while a client has it open.
#[test]
fn a_volume_with_a_client_is_sealed_by_force_only_and_the_client_is_named_each_time() {
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let client = lab.nbd_client(&volume.export()).unwrap();
    assert_eq!(call(&api, "seal", &volume, 1).json["code"], "CLIENTS_CONNECTED");
    assert_eq!(show(&api, &volume)["state"], "ready");
    let operation = "00000001-0000-4000-8000-000000000000";
    let by_force = |call: &str| {
        api.post(&format!("/kill-points/{call}/{}/{operation}?force=true", volume.id), &json!({})).unwrap()
    };
    let sealed = by_force("seal").expect(200).unwrap();
    assert_eq!(sealed["clients"], json!([client.address().unwrap()]));
    assert!(!is_served(&lab, &volume), "new clients are refused");
    for again in ["seal", "release"] {
        assert_eq!(call(&api, again, &volume, 1).json["code"], "CLIENTS_CONNECTED");
        assert_eq!(show(&api, &volume)["reason"]["code"], "SEALED", "it stays sealed");
    }
    by_force("release").expect(200).unwrap();
    assert_eq!(show(&api, &volume)["state"], "detaching");
    let mut events = api.events().unwrap();
    drop(client);
    events.wait_for(|event| event["volume_id"] == volume.id && event["event"] == "withdrawn", SOON).unwrap();
}

#[test]
fn a_volume_that_an_operation_attaches_is_attaching_until_its_disk_comes_through_restarts_too() {
    let (lab, mut attachd, api) = up();
    let (volume, announced) = (lab.volume(), lab.volume());
    call(&api, "intend", &volume, 1).expect(200).unwrap();
    intend(&api, &announced);
    let states = |api: &Api| [&volume, &announced].map(|volume| show(api, volume)["state"].clone());
    assert_eq!(states(&api), ["attaching", "waiting"]);
    attachd.kill9().unwrap();
    attachd = start(&lab);
    let api = attachd.api();
    assert_eq!(states(&api), ["attaching", "waiting"]);
    let _disk = lab.settled_disk(&volume.serial, MIB).unwrap();
    wait(&api, &volume, "ready");
}
