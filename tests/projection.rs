//! The predecessor's tables: what other programs find there, and that nothing else depends on the tables.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::process::Command;
use std::time::Instant;

use common::*;
use lab::{Api, Volume};
use serde_json::Value;

const STORE: &str = "/var/lib/attachd/attachd.db";

/// Runs a statement as another program at the store's file.
fn sql(text: &str) -> String {
    let mut command = Command::new("sqlite3");
    let output = command.args(["-cmd", ".timeout 10000", STORE, text]).output().unwrap();
    assert!(output.status.success(), "{text}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Waits until the tables show this. No event reports when rows are written.
fn until_shown(query: &str, expected: &str) {
    let begun = Instant::now();
    while sql(query) != expected {
        assert!(begun.elapsed() < SOON, "{query}: {} instead of {expected}", sql(query));
    }
}

fn until_healthy(api: &Api, what: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let health = health(api);
        if what(&health) {
            return health;
        }
        assert!(begun.elapsed() < SOON, "{health:#}");
        std::thread::yield_now();
    }
}

/// Returns health's message of this problem.
fn problem(health: &Value, code: &str) -> Option<String> {
    let mut problems = health["problems"].as_array().unwrap().iter();
    problems.find(|problem| problem["code"] == code).map(|problem| problem["message"].as_str().unwrap().to_owned())
}

fn metric(api: &Api, line: &str) -> bool {
    api.get("/metrics").unwrap().text.lines().any(|told| told == line)
}

fn states(volume: &Volume) -> String {
    format!(
        "SELECT linux_state, status, operation_mode, vm_disk_id FROM device_mappings JOIN nbd_exports \
         ON volume_uuid = volume_id WHERE volume_id = '{}'",
        volume.id
    )
}

#[test]
fn a_lost_volume_keeps_its_rows_and_foreign_columns_until_it_is_withdrawn() {
    let (lab, _attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    let states = states(&volume);
    until_shown(&states, "detected|active|oma|");
    sql("UPDATE device_mappings SET operation_mode = 'failover'; UPDATE nbd_exports SET vm_disk_id = 7");
    disk.detach().unwrap();
    wait(&api, &volume, "lost");
    until_shown(&states, "lost|lost|failover|7");
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
    until_shown(&states, "detected|active|failover|7");
    withdraw(&api, &volume);
    until_shown("SELECT (SELECT count(*) FROM device_mappings) + (SELECT count(*) FROM nbd_exports)", "0");
}

#[test]
fn a_volume_whose_rows_are_refused_is_named_and_stays_served_like_the_others() {
    let (lab, mut attachd, api) = up();
    let refused = lab.volume();
    sql(&format!(
        "CREATE TRIGGER refuse BEFORE INSERT ON device_mappings WHEN NEW.volume_uuid = '{}' BEGIN \
         SELECT RAISE(ABORT, 'not this one'); END",
        refused.id
    ));
    intend(&api, &refused);
    let mut disk = lab.disk(&refused.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&api, &refused, "ready");
    lab.nbdcopy_equals(&refused.export(), disk.file()).unwrap();
    let (neighbour, _its_disk) = served(&lab, &api);
    until_shown("SELECT volume_id, status FROM nbd_exports", &format!("{}|active", neighbour.id));
    let health = until_healthy(&api, |health| problem(health, "PROJECTION_REFUSED").is_some());
    let message = problem(&health, "PROJECTION_REFUSED").unwrap();
    assert!(message.contains(&refused.id) && message.contains("not this one"), "{message}");
    assert_eq!(health["status"], "degraded");
    assert_eq!(health["projection"][0]["refused"], 1, "{health:#}");
    assert!(metric(&api, "attachd_projection_refused{target=\"sqlite\"} 1.0"));
    assert!(metric(&api, "attachd_projection_owed{target=\"sqlite\"} 0.0"));
    assert!(attachd.stderr_text().contains("PROJECTION_REFUSED"), "{}", attachd.stderr_text());

    // A restart tries the rows again.
    attachd.terminate().unwrap();
    sql("DROP TRIGGER refuse");
    let attachd = start(&lab);
    until_shown("SELECT count(*) FROM nbd_exports", "2");
    until_healthy(&attachd.api(), |health| problem(health, "PROJECTION_REFUSED").is_none());
}

#[test]
fn tables_that_cannot_be_written_affect_nothing_else_and_are_written_later_even_after_a_kill() {
    for killed in [false, true] {
        std::thread::spawn(move || away(killed)).join().unwrap();
    }
}

fn away(killed: bool) {
    let (lab, mut attachd, api) = up();
    let (kept, kept_disk) = served(&lab, &api);
    let (gone, _its_disk) = served(&lab, &api);
    until_shown("SELECT count(*) FROM nbd_exports WHERE status = 'active'", "2");
    sql("ALTER TABLE nbd_exports RENAME TO aside");
    withdraw(&api, &gone);
    let (new, mut new_disk) = served(&lab, &api);
    for _ in 0..3 {
        new_disk.detach().unwrap();
        wait(&api, &new, "lost");
        new_disk.attach().unwrap();
        wait(&api, &new, "ready");
    }
    lab.nbdcopy_equals(&kept.export(), kept_disk.file()).unwrap();
    let health = until_healthy(&api, |health| problem(health, "PROJECTION_BEHIND").is_some());
    let message = problem(&health, "PROJECTION_BEHIND").unwrap();
    assert!(message.contains("no such table") && message.contains(" 2 volume(s)"), "{message}");
    assert_eq!((&health["status"], &health["store"]["state"]), (&"degraded".into(), &"ok".into()), "{health:#}");
    assert!(metric(&api, "attachd_projection_owed{target=\"sqlite\"} 2.0"));
    let api = if killed {
        attachd.kill9().unwrap();
        attachd = start(&lab);
        attachd.api()
    } else {
        api
    };
    sql("ALTER TABLE aside RENAME TO nbd_exports");
    wait(&api, &new, "ready");
    wait(&api, &kept, "ready");
    let mut expected = [&kept, &new].map(|volume| format!("{}|active", volume.id));
    expected.sort();
    until_shown("SELECT volume_id, status FROM nbd_exports ORDER BY 1", &expected.join("\n"));
    until_healthy(&api, |health| problem(health, "PROJECTION_BEHIND").is_none());
    assert!(attachd.terminate().unwrap().success());
}

/// An idle daemon has no cost for it.
#[test]
fn the_connection_is_closed_when_nothing_is_pending_for_a_while_and_opened_again() {
    let (lab, attachd, api) = up();
    let tasks = format!("/proc/{}/task", attachd.pid().unwrap());
    // SQLite has one thread for each connection: to write, to read, and for the projection.
    let connections = || {
        let names = fs::read_dir(&tasks).unwrap().flatten().map(|task| fs::read_to_string(task.path().join("comm")));
        names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("sqlx-sqlite"))).count()
    };
    let until = |count: usize| {
        let begun = Instant::now();
        while connections() != count {
            assert!(begun.elapsed() < SOON, "{} connections instead of {count}", connections());
            std::thread::yield_now();
        }
    };
    let (volume, mut disk) = served(&lab, &api);
    until_shown(&states(&volume), "detected|active|oma|");
    until(3);
    until(2);
    disk.detach().unwrap();
    wait(&api, &volume, "lost");
    until(3);
    until_shown(&states(&volume), "lost|lost|oma|");
    until(2);
}
