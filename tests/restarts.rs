//! The proof of a restart at every test's end (`lab::Attachd`): that it runs, and that it finds differences.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::*;
use lab::child::Held;
use lab::{Disk, DiskOptions, Lab, Volume};
use rustix::process::Signal;
use serde_json::json;

const STORE: &str = "/var/lib/attachd/attachd.db";

/// Long enough to read the disks; a difference that is still there then stays.
const LATE: Duration = Duration::from_secs(1);

fn sql(statement: &str) {
    let status = Command::new("sqlite3").args([STORE, statement]).status().unwrap();
    assert!(status.success(), "{statement}");
}

/// Runs a test in a thread of its own, because each lab needs one.
fn in_a_lab<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(test).join().unwrap()
}

/// Returns the error of the proof for a world with a served volume in which `meanwhile` changes something between the
/// two daemons.
fn said_of(limit: Duration, meanwhile: impl FnOnce(&Lab, &Volume, Disk) + Send + 'static) -> String {
    in_a_lab(move || {
        let (lab, attachd, api) = up();
        let (volume, disk) = served(&lab, &api);
        let result = attachd.shows_the_same_after_a_restart(|| meanwhile(&lab, &volume, disk), limit);
        result.map_or_else(|difference| format!("{difference:#}"), |()| "the same".to_owned())
    })
}

#[test]
fn every_daemon_is_started_once_more_when_its_handle_is_dropped_unless_the_test_says_why_not() {
    for exempt in [false, true] {
        in_a_lab(move || {
            let (lab, attachd, api) = up();
            let (_volume, _disk) = served(&lab, &api);
            if exempt {
                lab.not_restarted("it is what this test is about");
            }
            drop(attachd);
            let log = fs::read_to_string(lab.dir().join("attachd.log")).unwrap();
            assert_eq!(log.matches("attachd is up").count(), if exempt { 1 } else { 2 }, "{log}");
        });
    }
}

#[test]
fn every_difference_after_a_restart_is_found() {
    let lost = said_of(LATE, |_, volume, _| sql(&format!("DELETE FROM intents WHERE volume_id = '{}'", volume.id)));
    assert!(lost.contains("DIFFERS volume") && lost.contains("state\n  before ready\n  after  -"), "{lost}");
    let changed = said_of(LATE, |_, _, _| sql("UPDATE intents SET vm_id = 'another'"));
    assert!(changed.contains("vm_id\n  before \n  after  another"), "{changed}");
    let exchanged = said_of(LATE, |lab, volume, mut disk| {
        disk.detach().unwrap();
        let other = DiskOptions { seed: Some(7), ..Default::default() };
        lab.attach_settled(&mut lab.disk_with(&volume.serial, MIB, other).unwrap()).unwrap();
    });
    assert!(exchanged.contains("DIFFERS volume") && exchanged.contains("diskseq"), "{exchanged}");
    let forgotten = said_of(LATE, |_, _, _| sql("DELETE FROM timeline WHERE event = 'proven'"));
    assert!(forgotten.contains("the story of"), "{forgotten}");
    assert_eq!(said_of(SOON, |_, _, _| ()), "the same", "the control");
}

#[test]
fn a_killed_daemon_must_still_have_every_accepted_volume() {
    let lost = |meanwhile: fn()| {
        in_a_lab(move || {
            let (lab, mut attachd, api) = up();
            let (kept, withdrawn) = (lab.volume(), lab.volume());
            intend(&api, &kept);
            intend(&api, &withdrawn);
            withdraw(&api, &withdrawn);
            attachd.kill9().unwrap();
            let result = attachd.shows_the_same_after_a_restart(meanwhile, SOON);
            result.err().map(|error| (format!("{error:#}"), kept.id))
        })
    };
    let (said, volume) = lost(|| sql("DELETE FROM intents")).expect("it is lost");
    assert!(said.contains(&format!("lost by a restart: [{volume:?}]")), "{said}");
    assert_eq!(lost(|| ()), None, "the control");
}

#[test]
fn a_daemon_that_ends_by_itself_fails_the_test() {
    let (_lab, attachd, _api) = up();
    let daemon = Held::open(attachd.pid().unwrap()).unwrap();
    daemon.signal(Signal::KILL);
    daemon.wait_gone(SOON).unwrap();
    let said = attachd.shows_the_same_after_a_restart(|| (), SOON).expect_err("nobody has ended it");
    assert!(said.to_string().contains("attachd has ended by itself"), "{said:#}");
}

/// Only time may cause a difference: a deadline that passed in the meantime.
#[test]
fn a_wait_that_ends_during_the_restart_is_no_difference() {
    let (lab, attachd, api) = up();
    let (short, long) = (lab.volume(), lab.volume());
    for (volume, seconds) in [(&short, 3600), (&long, 7200)] {
        let body = json!({ "volume_id": volume.id, "deadline_seconds": seconds });
        api.post("/api/v1/intents", &body).unwrap().expect(201).unwrap();
    }
    // As if the hour had passed while no daemon ran.
    let passed = || sql(&format!("UPDATE intents SET waits_until = 1 WHERE volume_id = '{}'", short.id));
    attachd.shows_the_same_after_a_restart(passed, SOON).unwrap();
}
