//! A daemon that cannot start more threads (`RLIMIT_NPROC`; a unit's `TasksMax=` gives the same error): nothing
//! breaks, and attachd recovers when threads are available again.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::process::Command;
use std::time::Instant;

use common::*;
use lab::child::children_of;
use lab::{Api, Attachd, Disk, people};
use serde_json::json;

/// Limits the threads of the daemon's user, for the daemon and its reader process. The limit is set as that user,
/// because root needs a capability for it that not every machine gives.
fn may_have(attachd: &Attachd, threads: &str) {
    let pid = attachd.pid().unwrap();
    for pid in children_of(pid).into_iter().chain([pid]) {
        let line = people::run_as(people::ATTACHD);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).args(["prlimit", "--pid", &pid.to_string(), &format!("--nproc={threads}:")]);
        assert!(command.status().unwrap().success());
    }
}

fn eventually<T>(api: &Api, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < SOON, "{what}: {:#}", health(api));
        std::thread::yield_now();
    }
}

/// Returns health's message of this problem.
fn problem(api: &Api, code: &str) -> Option<String> {
    let health = health(api);
    let mut problems = health["problems"].as_array().unwrap().iter();
    problems.find(|problem| problem["code"] == code).map(|problem| problem["message"].as_str().unwrap().to_owned())
}

/// Returns why the last read of this disk failed. (Health names one of all disks, which may be another lab's.)
fn why_unread(api: &Api, disk: &Disk) -> Option<String> {
    api.disk(disk).unwrap()?["unread"].as_str().map(str::to_owned)
}

#[test]
fn without_threads_nothing_breaks_health_reports_it_and_everything_continues_later() {
    let (lab, mut attachd, api) = up();
    let (stays, stays_disk) = served(&lab, &api);
    let (pulled, mut pulled_disk) = served(&lab, &api);
    let (comes, new, leaves) = (lab.volume(), lab.volume(), lab.volume());
    intend(&api, &comes);
    intend(&api, &leaves);

    may_have(&attachd, "1");
    let mut disk = lab.disk(&comes.serial, MIB).unwrap();
    disk.attach().unwrap();
    lab.retrigger(&stays_disk).unwrap();
    let said = eventually(&api, "the disk is not said to be unread", || why_unread(&api, &stays_disk));
    assert!(said.contains("no thread can be had") && said.contains("TasksMax="), "the control, and its words: {said}");
    eventually(&api, "health does not say it", || problem(&api, "DISKS_UNREAD"));
    // A disk that is gone is noticed all the same.
    pulled_disk.detach().unwrap();
    wait(&api, &pulled, "lost");
    assert!(!lab.nbd_connects(&pulled.export()));
    // Every request gets an answer, whatever it is.
    let added = api.post("/api/v1/intents", &json!({ "volume_id": new.id })).unwrap();
    assert!(matches!(added.status, 201 | 503), "{}", added.text);
    let withdrawn = api.delete(&format!("/api/v1/intents/{}", leaves.id)).unwrap();
    assert!(matches!(withdrawn.status, 200 | 409 | 503), "{}", withdrawn.text);
    let resynced = api.post("/api/v1/resync", &json!({})).unwrap();
    assert!(matches!(resynced.status, 200 | 503), "{}", resynced.text);
    api.get("/metrics").unwrap();
    assert_eq!(show(&api, &stays)["state"], "ready");
    assert_ne!(show(&api, &comes)["state"], "ready", "nothing new is begun with a disk that cannot be read");
    lab.nbdcopy_equals(&stays.export(), stays_disk.file()).unwrap();

    may_have(&attachd, "4000");
    wait(&api, &comes, "ready");
    lab.nbdcopy_equals(&comes.export(), disk.file()).unwrap();
    eventually(&api, "it is not over by itself", || problem(&api, "DISKS_UNREAD").is_none().then_some(()));
    assert_eq!(show(&api, &stays)["state"], "ready");
    if added.status != 201 {
        intend(&api, &new);
    }
    let mut new_disk = lab.disk(&new.serial, MIB).unwrap();
    new_disk.attach().unwrap();
    wait(&api, &new, "ready");
    for volume in [&comes, &stays, &pulled, &new] {
        withdraw(&api, volume);
    }
    if withdrawn.status != 200 {
        withdraw(&api, &leaves);
    }
    eventually(&api, "it is not over", || (health(&api)["status"] == "healthy").then_some(()));
    assert!(attachd.terminate().unwrap().success());
    let said = attachd.stderr_text();
    assert!(!said.contains("panicked"), "{said}");
    assert!(fs::read_dir("/var/lib/attachd/claims").unwrap().next().is_none());
}

/// The check for an NBD server is retried.
#[test]
fn a_server_that_comes_back_while_there_are_no_threads_is_found_when_there_are() {
    let (mut lab, attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    may_have(&attachd, "1");
    lab.nbdkit_kill().unwrap();
    wait_reason(&api, &volume, "BACKEND_DOWN");
    lab.nbdkit_start().unwrap();
    let said = eventually(&api, "health does not say why", || {
        problem(&api, "BACKEND_DOWN").filter(|said| said.contains("it cannot be looked for"))
    });
    assert!(said.contains("no thread can be had"), "{said}");
    may_have(&attachd, "4000");
    wait(&api, &volume, "ready");
}
