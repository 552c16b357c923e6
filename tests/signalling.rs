//! An nbd-server in signal mode: what happens when a signal or a file operation fails.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use common::*;
use lab::nbd::{self, REP_ACK, REP_ERR_POLICY};
use lab::nbd_server::FOLDER;
use lab::{Api, Lab, Volume};

const LINKS: &str = "/run/attachd/exports";

fn go(volume: &Volume) -> u32 {
    nbd::go("127.0.0.1:10809", &volume.export()).unwrap()
}

fn not_told(api: &Api) -> bool {
    health(api)["problems"].as_array().unwrap().iter().any(|problem| problem["code"] == "SERVER_NOT_TOLD")
}

/// Waits until health reports the failure, or no longer does. No event reports a change in health.
fn wait_not_told(api: &Api, wanted: bool) {
    let begun = Instant::now();
    while not_told(api) != wanted {
        assert!(begun.elapsed() < SOON, "{:#}", health(api));
        std::thread::yield_now();
    }
}

/// As after a start in which the server did not handle signals yet, or the helper's socket was not there.
#[test]
fn a_server_that_could_not_be_signalled_is_signalled_later_even_if_no_volume_waits() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    lab.without_helper();
    let attachd = start(&lab);
    wait_not_told(&attachd.api(), true);
    let _helper = Helper::start();
    wait_not_told(&attachd.api(), false);
}

#[test]
fn an_export_whose_link_cannot_be_made_lets_no_client_in_until_it_can() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let _helper = Helper::start();
    let attachd = start(&lab);
    let (api, volume) = (attachd.api(), lab.volume());
    fs::set_permissions(LINKS, fs::Permissions::from_mode(0o555)).unwrap();
    intend(&api, &volume);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait_reason(&api, &volume, "EXPORT_FOLDER");
    assert_ne!(go(&volume), REP_ACK);
    fs::set_permissions(LINKS, fs::Permissions::from_mode(0o755)).unwrap();
    api.wait_volume(&volume.id, "ready", SOON).unwrap_or_else(|e| panic!("{e:#}\n{}", attachd.stderr_text()));
    assert_eq!(go(&volume), REP_ACK);
}

#[test]
fn an_export_whose_link_cannot_be_removed_stays_known_and_goes_when_it_can() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let _helper = Helper::start();
    let attachd = start(&lab);
    let (volume, mut disk) = served(&lab, &attachd.api());
    fs::set_permissions(LINKS, fs::Permissions::from_mode(0o555)).unwrap();
    disk.detach().unwrap();
    wait_reason(&attachd.api(), &volume, "EXPORT_STUCK");
    fs::set_permissions(LINKS, fs::Permissions::from_mode(0o755)).unwrap();
    wait_reason(&attachd.api(), &volume, "DEVICE_GONE");
    assert!(fs::symlink_metadata(Path::new(LINKS).join(volume.export())).is_err());
}

/// The section lets no client in, and the next start removes it.
#[test]
fn a_section_that_cannot_be_removed_does_not_keep_a_volume_from_being_withdrawn() {
    let lab = Lab::new();
    let _server = signalled(&lab);
    let _helper = Helper::start();
    let mut attachd = start(&lab);
    let (volume, _disk) = served(&lab, &attachd.api());
    let section = Path::new(FOLDER).join(format!("{}.conf", volume.export()));
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o555)).unwrap();
    withdraw(&attachd.api(), &volume);
    assert!(section.exists());
    assert_eq!(go(&volume), REP_ERR_POLICY);
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o755)).unwrap();
    attachd.terminate().unwrap();
    let _attachd = start(&lab);
    assert!(!section.exists());
}

/// Invariants 5 and 6: nobody would revoke these exports when their disks go.
#[test]
fn after_a_change_of_servers_only_exports_proven_again_are_served() {
    let count = |folder| fs::read_dir(folder).unwrap().count();
    let mut lab = Lab::new();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let mut attachd = start(&lab);
    let (volume, _disk) = served(&lab, &attachd.api());
    let (pulled, mut its) = served(&lab, &attachd.api());
    attachd.terminate().unwrap();
    lab.nbdkit_kill().unwrap();
    its.detach().unwrap();
    assert_eq!(count(LINKS), 2, "the control");
    let mut server = signalled(&lab);
    let _helper = Helper::start();
    let mut attachd = start(&lab);
    wait(&attachd.api(), &pulled, "lost");
    wait(&attachd.api(), &volume, "ready");
    let published = story(&show(&attachd.api(), &volume)).into_iter().filter(|step| step == "published");
    assert_eq!(published.count(), 2, "what was published for nbdkit does not stay");
    assert_eq!((count(LINKS), count(FOLDER)), (1, 2));
    attachd.terminate().unwrap();
    server.kill().unwrap();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let attachd = start(&lab);
    wait(&attachd.api(), &volume, "ready");
    assert_eq!((count(LINKS), count(FOLDER)), (1, 0));
}
