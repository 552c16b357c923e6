//! attachctl's commands for operations, with the stand-in for CloudStack.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use common::attachctl::{Running, ctl};
use common::cloud::lab_in_cloud;
use common::*;
use lab::{Attachd, Lab, LabCloud, Volume};
use rustix::process::Signal;
use serde_json::json;
use stand_in::{Gate, JobFault};

/// A lab whose host is a VM of the stand-in, with the helper.
fn with_cloud() -> (Lab, LabCloud, Attachd, Helper) {
    let (lab, cloud) = lab_in_cloud();
    let helper = Helper::start();
    let attachd = start(&lab);
    (lab, cloud, attachd, helper)
}

fn volume_in(cloud: &LabCloud) -> Volume {
    let volume = Volume::random();
    cloud.add(&volume, 4 * MIB);
    volume
}

/// The operation that a first line of output names.
fn operation_of(line: &str) -> String {
    line.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn a_volume_is_attached_shown_and_detached_with_the_progress_on_plain_lines() {
    let (_lab, cloud, _attachd, _helper) = with_cloud();
    let volume = volume_in(&cloud);
    let attached = ctl(&["attach", &volume.id, "--wait"]).expect(0);
    let lines: Vec<&str> = attached.out.lines().collect();
    let id = operation_of(lines[0]);
    assert_eq!(lines[0], format!("Operation {id} (attach of volume {}) is on record", volume.id));
    let last = lines.last().unwrap();
    assert!(last.starts_with(&format!("Operation {id} is completed: ")), "{last}");
    assert!(last.ends_with(&format!("volume {}, {}", volume.id, volume.link().display())), "{last}");
    // Who had to do something, in its order; each line with the milliseconds since the operation began.
    let parties: Vec<&str> =
        lines[1..lines.len() - 1].iter().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    let first =
        |party: &str| parties.iter().position(|one| *one == party).unwrap_or_else(|| panic!("{party}: {lines:?}"));
    assert!(first("cloud") < first("udev") && parties.last() == Some(&"attachd"), "{lines:?}");
    assert!(lines[1..lines.len() - 1].iter().all(|line| line.contains(" ms  ")), "{lines:?}");
    assert!(
        !attached.out.contains('\x1b') && !attached.out.contains('\r'),
        "nothing for a terminal: {:?}",
        attached.out
    );

    let again = ctl(&["attach", &volume.id, "--wait"]).expect(0);
    assert!(again.out.contains("(it was so already)"), "{}", again.out);
    let shown = ctl(&["operations", "show", &id]).expect(0).out;
    for part in [
        "type        attach\n",
        "status      completed, since 20",
        &format!("volume      {}\n", volume.id),
        "by          uid 0, 20",
    ] {
        assert!(shown.contains(part), "{part:?} in\n{shown}");
    }
    let list = ctl(&["operations"]).expect(0).out;
    let row: Vec<&str> = list.lines().find(|line| line.starts_with(&id)).unwrap().split_whitespace().collect();
    assert_eq!(row[1..4], ["attach", "completed", &volume.id]);
    assert_eq!(ctl(&["operations", "list", "--status", "failed"]).expect(0).out, "No operation matches.\n");

    let detached = ctl(&["--json", "detach", &volume.id, "--vm", cloud.vm_here(), "--wait"]).json();
    assert_eq!((&detached["status"], &detached["type"]), (&json!("completed"), &json!("detach")));
    assert_eq!(ctl(&["--json", "operations", "--type", "detach"]).json()[0]["id"], detached["id"]);
}

#[test]
fn each_end_of_an_operation_has_its_exit_status() {
    let (_lab, cloud, attachd, _helper) = with_cloud();
    let unknown = Volume::random();
    let failed = ctl(&["attach", &unknown.id, "--wait"]).expect(1);
    assert!(failed.err.contains("failed: ") && failed.err.ends_with("code: NO_SUCH_VOLUME\n"), "{}", failed.err);
    let failed = ctl(&["--json", "attach", &unknown.id, "--wait"]).json_error(1);
    assert_eq!((&failed["code"], &failed["details"]["status"]), (&json!("NO_SUCH_VOLUME"), &json!("failed")));

    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let late = ctl(&["--json", "attach", &volume.id, "--wait=1"]).json_error(3);
    assert_eq!((&late["code"], &late["details"]["status"]), (&json!("WAIT_TIMEOUT"), &json!("executing")));
    let first = late["details"]["id"].as_str().unwrap().to_owned();
    let text = late["error"].as_str().unwrap();
    assert!(text.contains(&format!("`attachctl operations show {first} --wait`")), "{text}");

    // Without --wait it is on record, and that is success.
    let detach = ctl(&["detach", &volume.id]).expect(0);
    let second = operation_of(&detach.out);
    assert!(detach.out.contains("is on record\n"), "{}", detach.out);
    let mut waiting = Running::start(&["operations", "show", &second, "--wait"]);
    assert!(waiting.line().contains("turn"), "it waits for the attach");
    let cancelled = ctl(&["operations", "cancel", &second]).expect(0);
    assert_eq!(cancelled.out, format!("Operation {second} (detach) is cancelled\n"));
    let ended = waiting.end().expect(6);
    assert!(ended.err.ends_with("code: OPERATION_CANCELLED\n"), "{}", ended.err);
    let late = ctl(&["operations", "cancel", &first]).expect(1);
    assert!(late.err.ends_with("code: TOO_LATE\n"), "{}", late.err);

    // Ctrl-C ends the waiting and not the operation.
    let mut waiting = Running::start(&["attach", &volume.id, "--wait"]);
    assert!(waiting.line().contains("was asked for before"), "the same one, while it is open");
    waiting.line();
    waiting.interrupt();
    let ended = waiting.end().expect(130);
    assert!(ended.err.contains("It goes on: ") && ended.err.ends_with("code: INTERRUPTED\n"), "{}", ended.err);
    gate.open();
    ctl(&["operations", "show", &first, "--wait"]).expect(0);

    drop(attachd);
    let gone = ctl(&["attach", &volume.id, "--wait"]).expect(5);
    assert!(gone.err.ends_with("code: UNREACHABLE\n"), "{}", gone.err);
}

#[test]
fn a_wait_ends_with_an_operation_that_ended_while_attachd_was_restarted() {
    let (lab, cloud, mut attachd, _helper) = with_cloud();
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let mut waiting = Running::start(&["attach", &volume.id, "--wait=20", "--key", "job-17"]);
    let id = operation_of(&waiting.line());
    cloud.wait_calls("attachVolume", 1, SOON).unwrap();
    // It ends while attachctl hears nothing of it.
    waiting.signal(Signal::STOP);
    attachd.kill9().unwrap();
    gate.open();
    let attachd = start(&lab);
    let path = format!("/api/v1/operations/{id}?wait=done&timeout_seconds=20");
    assert_eq!(attachd.api().get(&path).unwrap().expect(200).unwrap()["status"], "completed");
    waiting.signal(Signal::CONT);
    let ended = waiting.end().expect(0);
    assert!(
        ended.err.contains("looking for it again") && ended.out.contains("is completed: "),
        "{} {}",
        ended.out,
        ended.err
    );
    let again = ctl(&["--json", "attach", &volume.id, "--key", "job-17"]).json();
    assert_eq!((&again["status"], &again["key"]), (&json!("completed"), &json!("job-17")), "the key is on record");
    assert_eq!(cloud.calls_of("attachVolume").len(), 1);
}
