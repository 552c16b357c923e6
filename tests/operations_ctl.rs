//! attachctl's commands for operations, with the stand-in for CloudStack.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::collections::BTreeSet;

use common::attachctl::{self, Running, ctl};
use common::cloud::lab_in_cloud;
use common::*;
use lab::{Attachd, Lab, LabCloud, Volume};
use rustix::process::Signal;
use serde_json::json;
use stand_in::{Gate, JobFault, Kind, Vm};

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

/// A VM of somebody else's.
fn other_vm(cloud: &LabCloud, state: &str) -> String {
    let id = Volume::random().id;
    cloud.add_vm(Vm { state: state.to_owned(), ..Vm::running(&id, "other") });
    id
}

/// The words of the progress lines, in order.
fn parties(out: &str) -> Vec<&str> {
    let lines: Vec<&str> = out.lines().collect();
    lines[1..lines.len() - 1].iter().map(|line| line.split_whitespace().nth(2).unwrap()).collect()
}

#[test]
fn a_volume_is_created_served_and_deleted_by_commands_alone() {
    let (lab, cloud, _attachd, _helper) = with_cloud();
    let (size, offering, zone) = ((4 * MIB - 1).to_string(), cloud.offering(), cloud.zone());
    let create = ["create", "vm 7, disk 1", "--size", &size, "--offering", &offering, "--zone", &zone];
    let created = ctl(&[&create[..], &["--wait"]].concat()).expect(0);
    let (line, id) = created.out.trim_end().rsplit_once(", volume ").unwrap();
    assert!(line.ends_with("is completed: Volume created successfully"), "{}", created.out);
    assert!(parties(&created.out).iter().all(|party| *party == "cloud"), "{}", created.out);
    let made = cloud.volume(id).unwrap();
    assert!(made.size == 1 << 30 && made.name.starts_with("vm 7, disk 1-"), "{made:?}");

    // Without --wait: what is said can be used as it is.
    let begun = ctl(&create).expect(0);
    let follow = begun.out.lines().nth(1).unwrap().split('`').nth(1).unwrap().to_owned();
    ctl(&follow.split(' ').skip(1).collect::<Vec<_>>()).expect(0);
    assert_eq!(cloud.volumes().len(), 2, "asked for again without a key, it is another volume");
    let keyed = || ctl(&[&["--json"], &create[..], &["--key", "disk-1", "--wait"]].concat()).json();
    let first = keyed();
    assert_eq!((&first["status"], &keyed()["id"]), (&json!("completed"), &first["id"]), "with a key it is the same");
    assert_eq!(cloud.volumes().len(), 3);

    let volume = Volume::of(id);
    ctl(&["attach", id, "--wait"]).expect(0);
    let mut client = lab.nbd_client(&volume.export()).unwrap();
    let kept = ctl(&["delete", id, "--wait"]).expect(1);
    assert!(kept.err.ends_with("code: CLIENTS_CONNECTED\n") && kept.out.contains("attachd"), "{}", kept.err);
    client.read(0, 512).unwrap();
    assert!(!cloud.volume(id).unwrap().removed, "nothing was taken from its client");
    drop(client);
    let deleted = ctl(&["--json", "delete", id, "--vm", cloud.vm_here(), "--wait"]).json();
    assert_eq!((&deleted["status"], &deleted["response"]["adopted"]), (&json!("completed"), &json!(false)));
    assert!(cloud.volume(id).unwrap().removed && !lab.nbd_connects(&volume.export()));
    let again = ctl(&["delete", id, "--wait"]).expect(0);
    assert!(again.out.contains("(it was so already)"), "{}", again.out);
}

#[test]
fn a_root_disk_is_given_to_a_stopped_vm_and_what_a_cleanup_does_not_do_to_it_is_told_with_the_commands_that_do_it() {
    let (lab, cloud, attachd, _helper) = with_cloud();
    let (volume, vm) = (volume_in(&cloud), other_vm(&cloud, "Running"));
    let root = ["attach-root", &volume.id, "--vm", &vm, "--wait"];
    let refused = ctl(&root).expect(1);
    assert!(refused.err.contains("vm is in states: Stopped") && refused.err.ends_with("code: CLOUD_REFUSED\n"));
    cloud.switch_vm(&vm, false).unwrap();
    let done = ctl(&root).expect(0);
    assert!(done.out.ends_with(&format!(", remote-vm-{vm}-{}\n", volume.id)), "{}", done.out);
    let shown = cloud.volume(&volume.id).unwrap();
    assert_eq!((shown.kind, shown.device_id, shown.vm), (Kind::Root, Some(0), Some(vm.clone())));

    for command in [&["cleanup", &volume.id, "--vm", &vm, "--wait"][..], &["delete", &volume.id, "--vm", &vm, "--wait"]]
    {
        let refused = ctl(command).expect(1);
        assert!(refused.err.ends_with("code: ROOT_VOLUME\n"), "{}", refused.err);
        assert!(refused.err.contains(&format!("attachctl detach {} --vm {vm}", volume.id)), "{}", refused.err);
    }
    assert_eq!(cloud.volume(&volume.id).unwrap().vm.as_ref(), Some(&vm), "it was not touched");
    assert!(cloud.calls_of("detachVolume").is_empty() && cloud.calls_of("stopVirtualMachine").is_empty());

    // What the refusal says is what does it.
    let said = ctl(&["cleanup", &volume.id, "--vm", &vm, "--wait"]).expect(1).err;
    let commands: Vec<&str> = said.split('`').skip(1).step_by(2).collect();
    assert_eq!(commands.len(), 2, "{said}");
    for command in commands {
        let command: Vec<&str> = command.split(' ').skip(1).chain(["--wait"]).collect();
        ctl(&command).expect(0);
    }
    wait(&attachd.api(), &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), &cloud.file(&volume).unwrap()).unwrap();
}

#[test]
fn a_volume_comes_back_from_the_vm_of_a_test_and_the_vm_goes_if_asked() {
    let (_lab, cloud, attachd, _helper) = with_cloud();
    let (volume, vm) = (volume_in(&cloud), other_vm(&cloud, "Running"));
    ctl(&["attach", &volume.id, "--vm", &vm, "--wait"]).expect(0);
    let own = ctl(&["--json", "cleanup", &volume.id, "--vm", cloud.vm_here(), "--wait"]).json_error(1);
    assert_eq!(own["code"], "OWN_VM", "{own}");

    let stop = Gate::new();
    cloud.next_job("stopVirtualMachine", JobFault::Held(stop.clone()));
    let late = ctl(&["--json", "cleanup", &volume.id, "--vm", &vm, "--delete-vm", "--wait=1"]).json_error(3);
    assert_eq!(late["details"]["step"]["name"], "stop-vm", "{late}");
    let id = late["details"]["id"].as_str().unwrap().to_owned();
    assert!(ctl(&["operations", "show", &id]).expect(0).out.contains("cannot be cancelled any more"));
    stop.open();
    let done = ctl(&["operations", "show", &id, "--wait"]).expect(0);
    assert!(done.out.contains("Test failover cleanup completed"), "{}", done.out);
    let shown = ctl(&["--json", "operations", "show", &id]).json();
    assert_eq!((&shown["response"]["vm_deleted"], &shown["vm_id"]), (&json!(true), &json!(vm)), "{shown:#}");
    assert!(cloud.vm(&vm).unwrap().removed);
    assert_eq!(show(&attachd.api(), &volume)["state"], "ready");

    // The control: not asked for, the VM stays, stopped.
    let vm = other_vm(&cloud, "Running");
    ctl(&["detach", &volume.id, "--wait"]).expect(0);
    ctl(&["attach", &volume.id, "--vm", &vm, "--wait"]).expect(0);
    let back = ctl(&["--json", "cleanup", &volume.id, "--vm", &vm, "--wait"]).json();
    assert_eq!(back["response"]["vm_deleted"], false, "{back:#}");
    let vm = cloud.vm(&vm).unwrap();
    assert_eq!((vm.state.as_str(), vm.removed), ("Stopped", false));
}

#[test]
fn a_command_that_cannot_be_meant_ends_with_its_status_and_the_reason_and_begins_nothing() {
    let (_lab, cloud, _attachd, _helper) = with_cloud();
    let (id, vm) = (Volume::random().id, Volume::random().id);
    let (id, vm, zone, offering) = (id.as_str(), vm.as_str(), cloud.zone(), cloud.offering());
    let create = |name, size, zone| ["create", name, "--size", size, "--offering", &offering, "--zone", zone];
    let wrong: [(&[&str], i32, &str); 20] = [
        (&["create", "n"], 2, "--size <BYTES>"),
        (&create("n", "0", &zone), 2, "0 is not in 1..="),
        (&create("n", "1G", &zone), 2, "invalid digit"),
        (&create("n", "-1", &zone), 2, "unexpected argument '-1'"),
        (&create("n", "9223372036854775808", &zone), 2, "is not in 1..=9223372036854775807"),
        (&create("n", "18446744073709551616", &zone), 2, "number too large"),
        (&create("", "1", &zone), 1, "name: a volume's name takes"),
        (&create("a\nb", "1", &zone), 1, "name: a volume's name takes"),
        (&create("n", "1", "z&command=deleteVolume"), 1, "zone_id"),
        (&["attach-root", id], 2, "--vm <ID>"),
        (&["attach-root", id, "--vm", ""], 2, "is not a VM id"),
        (&["attach-root", id, "--vm", "i-2-7-VM"], 2, "i-2-7-VM"),
        (&["delete"], 2, "<VOLUME_ID>"),
        (&["delete", "vol-1"], 2, "vol-1"),
        (&["delete", id, "--wait", "60"], 2, "unexpected argument '60'"),
        (&["delete", id, "--deadline", "0"], 2, "0 is not in 1..="),
        (&["delete", id, "--key", "a b"], 1, "Idempotency-Key"),
        (&["cleanup", id], 2, "--vm <ID>"),
        (&["cleanup", id, "--vm", vm, "--delete-vm=yes"], 2, "unexpected value 'yes'"),
        (&["cleanup", id, "--vm", vm, "--deadline", "86401"], 2, "86401 is not in 1..=86400"),
    ];
    for (command, status, says) in wrong {
        let ran = ctl(command).expect(status);
        assert!(ran.err.contains(says) && ran.out.is_empty(), "{command:?}: {}{}", ran.out, ran.err);
    }
    assert_eq!(ctl(&["operations"]).expect(0).out, "There are no operations.\n");
    assert!(cloud.jobs().is_empty(), "{}", cloud.told());

    // What only CloudStack can know is an operation that has failed, with its words.
    let nowhere = ctl(&[&create("n", "1", vm)[..], &["--wait"]].concat()).expect(1);
    assert!(nowhere.err.contains("zoneid") && nowhere.err.ends_with("code: CLOUD_REFUSED\n"), "{}", nowhere.err);
    let unknown = ctl(&["cleanup", id, "--vm", vm, "--wait"]).expect(1);
    assert!(unknown.err.ends_with("code: NO_SUCH_VOLUME\n"), "{}", unknown.err);
    assert!(cloud.volumes().is_empty(), "{}", cloud.told());
    // The control: with what CloudStack knows it is done.
    ctl(&[&create("n", "1", &zone)[..], &["--wait"]].concat()).expect(0);
}

#[test]
fn on_a_terminal_the_line_of_what_is_waited_for_is_written_again_with_the_time_that_it_takes() {
    let (_lab, cloud, _attachd, _helper) = with_cloud();
    let volume = volume_in(&cloud);
    let gate = Gate::new();
    cloud.next_job("attachVolume", JobFault::Held(gate.clone()));
    let command = format!("{} attach {} --wait", attachctl::program().display(), volume.id);
    let mut terminal = Running::of("script", &["-qec", &command, "/dev/null"]);
    let mut shown = String::new();
    let times = |shown: &str| {
        let lines = shown.split('\r').filter(|line| line.contains("CloudStack attaches the volume"));
        lines.map(|line| line.split("CloudStack").next().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    while times(&shown).len() < 3 {
        shown += &terminal.some();
    }
    assert!(!shown.contains("is completed"), "it waits: {shown}");
    let line = shown.rsplit('\n').next().unwrap();
    assert_eq!(times(line), times(&shown), "all of them on one line: {shown:?}");
    gate.open();
    let ended = terminal.end().expect(0);
    assert!(ended.out.contains("is completed: Volume attached successfully"), "{}", ended.out);
    assert!(shown.contains("\x1b[K"), "{shown:?}");
}
