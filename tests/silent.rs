//! An NBD server that runs and does not serve: nothing is `ready` in the meantime, health says why, and attachd
//! recovers by itself.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::*;
use lab::nbd::NbdClient;
use lab::{Api, Lab};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;

/// The connection limit of the lab's nbdkit, which is its unit's limit.
const CLIENTS: usize = 256;

fn server_problem(api: &Api) -> Option<String> {
    let health = health(api);
    let problems = health["problems"].as_array().unwrap();
    let problem = problems.iter().find(|problem| problem["code"] == "BACKEND_DOWN")?;
    assert!(problem["hint"].as_str().unwrap().contains("attachd-nbdkit.service"), "the configured one: {problem}");
    assert_eq!(health["status"], "degraded");
    Some(problem["message"].as_str().unwrap().to_owned())
}

fn backend(api: &Api) -> Value {
    health(api)["backend"]["state"].clone()
}

fn signal(lab: &Lab, signal: Signal) {
    kill_process(Pid::from_raw(lab.nbdkit_pid().unwrap().cast_signed()).unwrap(), signal).unwrap();
}

fn many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Waits for a healthy server. An answer that was under way may still come, and is then corrected.
fn healed(api: &Api, volume: &lab::Volume) {
    let begun = Instant::now();
    while let Some(why) = server_problem(api) {
        assert!(begun.elapsed() < SOON, "{why}");
        wait(api, volume, "ready");
    }
    wait(api, volume, "ready");
    assert_eq!(backend(api), "up");
}

#[test]
fn a_server_at_another_port_is_reported_before_there_is_a_volume() {
    let lab = with_nbdkit();
    lab.attachd_config(&format!("{CONFIG}[export]\nlisten = \"127.0.0.1:10810\"\n")).unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let why = server_problem(&api).expect("nobody answers at that port");
    assert!(why.contains("127.0.0.1:10810") && why.contains("nobody listens there"), "{why}");
    assert_eq!(backend(&api), "silent");
    let (volume, _disk) = attached(&lab, &api);
    let shown = wait_reason(&api, &volume, "BACKEND_DOWN");
    assert_eq!(shown["state"], "exporting");
    // The control: at the right port the same server is up.
    drop(attachd);
    lab.attachd_config(CONFIG).unwrap();
    let attachd = start(&lab);
    healed(&attachd.api(), &volume);
}

#[test]
fn a_full_port_is_reported_and_nothing_is_ready_until_a_connection_is_free() {
    many_descriptors();
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    assert_eq!(server_problem(&api), None, "the control");
    let mut clients: Vec<NbdClient> = (0..CLIENTS).map(|_| lab.nbd_client(&volume.export()).unwrap()).collect();
    assert!(lab.nbd_client(&volume.export()).is_err(), "the control: the next client is turned away");
    let begun = Instant::now();
    let why = loop {
        // A very recent answer counts as present.
        if let Some(why) = server_problem(&api) {
            break why;
        }
        assert!(begun.elapsed() < Duration::from_secs(3));
    };
    assert!(why.contains("hung up") && why.contains("clients are connected, it may be full"), "{why}");
    let shown = wait(&api, &volume, "exporting");
    assert_eq!(shown["reason"]["code"], "BACKEND_DOWN");
    assert_eq!(clients[0].read(0, 512).unwrap().len(), 512, "those before are served on");
    clients.truncate(CLIENTS - 10);
    healed(&api, &volume);
}

#[test]
fn a_handshake_that_meets_a_full_port_changes_every_volumes_state() {
    many_descriptors();
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let mut clients: Vec<NbdClient> = (0..CLIENTS).map(|_| lab.nbd_client(&volume.export()).unwrap()).collect();
    let (next, _its) = attached(&lab, &api);
    // Nobody asks for health here.
    assert_eq!(wait_reason(&api, &next, "BACKEND_DOWN")["state"], "exporting");
    assert_eq!(wait_reason(&api, &volume, "BACKEND_DOWN")["state"], "exporting", "it is not ready either");
    clients.clear();
    healed(&api, &next);
    healed(&api, &volume);
}

#[test]
fn a_failed_check_of_the_exports_changes_their_volumes_state() {
    many_descriptors();
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let checked = |api: &Api| api.get("/api/v1/exports?check=true").unwrap().json["checked"][0]["openable"].clone();
    assert_eq!(checked(&api), true, "the control");
    let clients: Vec<NbdClient> = (0..CLIENTS).map(|_| lab.nbd_client(&volume.export()).unwrap()).collect();
    assert_eq!(checked(&api), false);
    wait_reason(&api, &volume, "BACKEND_DOWN");
    drop(clients);
    healed(&api, &volume);
}

#[test]
fn a_stopped_server_is_reported_after_a_second_and_soon_by_its_volumes() {
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    // A very recent answer counts as present, so the last answer must be older than that.
    api.get(&format!("/api/v1/volumes/{}?wait=lost&timeout_seconds=1", volume.id)).unwrap();
    signal(&lab, Signal::STOP);
    let begun = Instant::now();
    let why = server_problem(&api).expect("it does not answer");
    assert!(why.contains("has not answered"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(4), "health waits for no server: {:?}", begun.elapsed());
    wait_reason(&api, &volume, "BACKEND_DOWN");
    assert_eq!(backend(&api), "silent");
    let started = fs::read_to_string(format!("/proc/{}/stat", lab.nbdkit_pid().unwrap())).unwrap();
    assert!(started.contains(") T "), "the control: it lives, and is stopped");
    signal(&lab, Signal::CONT);
    healed(&api, &volume);
}
