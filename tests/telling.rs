//! An nbd-server that is told by a signal: what becomes of a telling, or of a file, that fails.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use common::*;
use lab::nbd_server::FOLDER;
use lab::{Api, Lab};

fn not_told(api: &Api) -> bool {
    health(api)["problems"].as_array().unwrap().iter().any(|problem| problem["code"] == "SERVER_NOT_TOLD")
}

/// Waits until health says so, or no more. Nothing tells of a change in health.
fn wait_not_told(api: &Api, wanted: bool) {
    let begun = Instant::now();
    while not_told(api) != wanted {
        assert!(begun.elapsed() < SOON, "{:#}", health(api));
        std::thread::yield_now();
    }
}

/// As after a start in which the server did not listen to signals yet, or the helper's socket was not there.
#[test]
fn a_server_that_could_not_be_told_is_told_by_itself_also_when_no_volume_waits() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let attachd = start(&lab);
    wait_not_told(&attachd.api(), true);
    let _helper = Helper::start();
    wait_not_told(&attachd.api(), false);
}

/// A list of clients that was filled, but not durably, is open although nothing is published.
#[test]
fn an_export_that_cannot_be_made_lets_nobody_in() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let _helper = Helper::start();
    let attachd = start(&lab);
    let (api, volume) = (attachd.api(), lab.volume());
    intend(&api, &volume);
    let clients = format!("{FOLDER}/{}.clients", volume.export());
    assert_eq!(fs::read_to_string(&clients).unwrap(), "");
    // Files can be made in the folder, but it cannot be opened, and so not be synced.
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o311)).unwrap();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait_reason(&api, &volume, "EXPORT_FOLDER");
    assert_eq!(fs::read_to_string(&clients).unwrap(), "");
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o755)).unwrap();
    api.wait_volume(&volume.id, "ready", SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", attachd.stderr_text()));
}

/// Invariants 5 and 6: nobody would take them away when their disks go.
#[test]
fn after_a_change_of_servers_the_one_before_has_nothing_to_serve_any_more() {
    let mut lab = Lab::new();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let mut attachd = start(&lab);
    let (volume, _disk) = served(&lab, &attachd.api());
    attachd.terminate().unwrap();
    lab.nbdkit_kill().unwrap();
    let mut server = signalled(&lab);
    let _helper = Helper::start();
    let mut attachd = start(&lab);
    wait(&attachd.api(), &volume, "ready");
    assert_eq!(fs::read_dir("/run/attachd/exports").unwrap().count(), 0);
    attachd.terminate().unwrap();
    server.kill().unwrap();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let attachd = start(&lab);
    wait(&attachd.api(), &volume, "ready");
    assert_eq!(fs::read_to_string(format!("{FOLDER}/{}.clients", volume.export())).unwrap(), "");
}
