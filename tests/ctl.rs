//! attachctl, as a person or a script runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use common::attachctl::{Ran, Running, ctl, program};
use common::*;
use lab::people;
use serde_json::Value;

/// Returns the words of a progress line after the time.
fn step(line: &str) -> Vec<&str> {
    line.split_whitespace().skip(2).collect()
}

#[test]
fn add_with_wait_shows_every_step_as_it_happens_and_ends_when_the_volume_is_ready() {
    let (lab, _attachd, _api) = up();
    let volume = lab.volume();
    let mut add = Running::start(&["intent", "add", &volume.id, "--vm", "vm-1", "--size", "1048576", "--wait=20"]);
    let first = add.line();
    assert!(first.trim_start().starts_with("0.0 ms  intent"), "{first}");
    assert_eq!(step(&first)[..4], ["intent", "waiting", "VM", "vm-1,"]);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let ended = add.end().expect(0);
    let lines: Vec<_> = ended.out.lines().collect();
    let (last, steps) = lines.split_last().unwrap();
    assert_eq!(*last, format!("Volume {} is ready: nbd://127.0.0.1:10809/{}", volume.id, volume.export()));
    for name in ["proven", "recorded", "published", "ready"] {
        assert!(steps.iter().any(|line| step(line)[0] == name), "{name} in {}", ended.out);
    }
    assert_eq!(step(steps.last().unwrap())[..2], ["ready", "ready"]);

    // The same again has nothing to wait for.
    let again = ctl(&["intent", "add", &volume.id, "--wait"]).expect(0);
    assert!(again.out.contains("accepted before: ready") && again.out.contains("is ready: nbd://"), "{}", again.out);
    let json = ctl(&["--json", "intent", "add", &volume.id, "--wait"]).json();
    assert_eq!((&json["state"], &json["export"]["state"]), (&"ready".into(), &"served".into()));
}

#[test]
fn every_view_has_output_for_people_and_json() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let (volume, disk) = served(&lab, &api);
    let other = lab.volume();
    let added = ctl(&["intent", "add", &other.id, "--vm", "vm-2", "--deadline", "0"]).expect(0);
    assert!(added.out.starts_with(&format!("Intent for volume {} accepted: ", other.id)), "{}", added.out);
    let (id, node) = (volume.id.as_str(), disk.node());
    let (node, link) = (node.to_str().unwrap(), volume.link());

    let waited = ctl(&["show", &other.id, "--wait", "expired", "--timeout", "20"]).expect(0).out;
    assert!(waited.contains("\nreason      DEADLINE_PASSED: "), "{waited}");
    let list = ctl(&["list"]).expect(0).out;
    let row = |start: &str| list.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().collect();
    let columns: Vec<&str> = row("VOLUME");
    assert_eq!(columns, ["VOLUME", "STATE", "DEVICE", "SIZE", "EXPORT", "REASON"]);
    let columns: Vec<&str> = row(id);
    assert_eq!(columns, [id, "ready", node, "1", "MiB", "served", "-"]);
    let columns: Vec<&str> = row(&other.id);
    assert_eq!(columns[1..6], ["expired", "-", "-", "none", "DEADLINE_PASSED:"]);
    assert_eq!(ctl(&["--json", "list"]).json()["count"], 2);
    let filtered = ctl(&["list", "--json", "--state", "expired", "--vm", "vm-2"]).json();
    assert_eq!((&filtered["count"], &filtered["volumes"][0]["volume_id"]), (&1.into(), &other.id.clone().into()));
    assert_eq!(ctl(&["list", "--state", "lost"]).expect(0).out, "No volume matches.\n");

    let shown = ctl(&["show", id]).expect(0).out;
    for part in [
        &format!("serial      {}\n", volume.serial),
        "state       ready, since 20",
        &format!("by-id path  {}\n", link.display()),
        &format!("device      {node}\n"),
        "size        1 MiB (1048576 bytes)\n",
        &format!("            served, nbd://127.0.0.1:10809/{}\n", volume.export()),
        &format!("evidence    serial {} (scheme loop)\n", volume.serial),
        &format!("diskseq {}, 1 MiB", disk.diskseq().unwrap()),
        "timeline\n  AT ",
        "  published  ",
        " ms  ",
    ] {
        assert!(shown.contains(part), "{part:?} in\n{shown}");
    }
    let json = ctl(&["show", id, "--json"]).json();
    assert_eq!((&json["state"], json["timeline"].as_array().unwrap().len()), (&"ready".into(), 6));

    let devices = ctl(&["devices"]).expect(0).out;
    let row = devices.lines().find(|line| line.starts_with(&format!("{node} "))).unwrap();
    let columns: Vec<_> = row.split_whitespace().collect();
    assert_eq!(columns[2..], ["1", "MiB", &volume.serial, id, "-"]);
    let json = ctl(&["--json", "devices"]).json();
    assert!(json["devices"].as_array().unwrap().iter().any(|device| device["node"] == node));

    let exports = ctl(&["exports"]).expect(0).out;
    let columns: Vec<_> = exports.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(columns, [&volume.export(), "yes", "yes", "yes", "yes", "no"]);
    assert!(exports.ends_with("\n1 of 1 volumes with a proven disk can be opened.\n"), "{exports}");
    let json = ctl(&["--json", "exports"]).json();
    assert_eq!(json["exports"][0]["state"], "served");
    assert_eq!((&json["count"], &json["served"]), (&1.into(), &serde_json::json!({ "due": 1, "openable": 1 })));

    let health = ctl(&["health"]).expect(1).out;
    let parts = [
        "degraded: attachd ",
        "\n  VOLUMES_EXPIRED: 1 volume(s) ",
        "\nvolumes  1 ready, 1 expired\n",
        "\nbackend  nbdkit up (pid ",
        "\nstore    ok\n",
        "\ntables   sqlite, ",
    ];
    for part in parts {
        assert!(health.contains(part), "{part:?} in\n{health}");
    }
    ctl(&["intent", "withdraw", &other.id]).expect(0);
    assert!(ctl(&["health"]).expect(0).out.starts_with("healthy: attachd "), "nothing needs a look any more");
    assert_eq!(ctl(&["--json", "health"]).json()["status"], "healthy");
    assert_eq!(ctl(&["resync"]).expect(0).out.lines().count(), 1);
    assert!(ctl(&["--json", "resync"]).json()["message"].is_string());
}

#[test]
fn a_withdrawal_is_reported_and_the_volume_is_gone() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let (volume, _disk) = served(&lab, &api);
    assert_eq!(ctl(&["intent", "withdraw", &volume.id]).expect(0).out, "Withdrawn: the export is gone\n");
    let gone = ctl(&["show", &volume.id]).expect(1);
    let sentence = format!("attachctl: there is no intent for volume {}\ncode: NO_SUCH_INTENT\n", volume.id);
    assert_eq!((gone.out.as_str(), gone.err), ("", sentence));
    let again = ctl(&["--json", "intent", "withdraw", "--force", &volume.id]).json_error(1);
    assert_eq!(again["details"]["volume_id"], volume.id);
}

#[test]
fn an_intent_that_differs_is_refused_with_the_field() {
    let (lab, _attachd, _api) = up();
    let volume = lab.volume();
    ctl(&["intent", "add", &volume.id, "--vm", "one"]).expect(0);
    let other = ctl(&["intent", "add", &volume.id, "--vm", "two"]).expect(1);
    assert!(other.err.contains("whose vm_id is one, not two"), "{}", other.err);
    assert!(other.err.ends_with("\ncode: INTENT_DIFFERS\n"), "{}", other.err);
    let json = ctl(&["--json", "intent", "add", &volume.id, "--vm", "two", "--wait"]).json_error(1);
    assert_eq!((&json["code"], &json["details"]["field"]), (&"INTENT_DIFFERS".into(), &"vm_id".into()));
}

#[test]
fn a_malformed_uuid_is_refused_before_any_request() {
    for command in [&["intent", "add"][..], &["intent", "withdraw"], &["show"], &["watch"]] {
        let refused = ctl(&[command, &["vol-1"]].concat()).expect(2);
        assert!(refused.err.contains("is not a volume id: it takes a UUID with hyphens, like "), "{}", refused.err);
    }
}

#[test]
fn a_wait_that_times_out_reports_the_volumes_state() {
    let (lab, _attachd, _api) = up();
    let volume = lab.volume();
    let ended = ctl(&["intent", "add", &volume.id, "--wait=1"]).expect(3);
    let sentence = " is waiting after 1 s, not ready: no disk with its serial is here yet";
    assert!(ended.err.contains(sentence), "{}", ended.err);
    assert!(ended.err.ends_with("code: WAIT_TIMEOUT\n"), "{}", ended.err);
    let json = ctl(&["--json", "intent", "add", &volume.id, "--wait=0"]).json_error(3);
    assert_eq!(json["details"]["state"], "waiting");
    let json = ctl(&["--json", "show", &volume.id, "--wait", "ready", "--timeout", "0"]).json_error(3);
    assert_eq!((&json["code"], &json["details"]["state"]), (&"WAIT_TIMEOUT".into(), &"waiting".into()));
}

#[test]
fn a_refused_disk_has_its_own_exit_status_and_may_heal_while_waited_for() {
    let (lab, _attachd, _api) = up();
    let volume = lab.volume();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    let mut add = Running::start(&["intent", "add", &volume.id, "--size", "2097152", "--wait=2"]);
    add.line();
    disk.attach().unwrap();
    let ended = add.end().expect(4);
    assert!(ended.out.contains("SIZE_TOO_SMALL: "), "{}", ended.out);
    assert!(ended.err.contains(" is refused after 2 s, not ready: ") && ended.err.ends_with("code: SIZE_TOO_SMALL\n"));
    let list = ctl(&["list", "--state", "refused"]).expect(0).out;
    assert!(list.contains("SIZE_TOO_SMALL: Compare the size"), "{list}");
    let json = ctl(&["--json", "show", &volume.id, "--wait", "ready", "--timeout", "0"]).json_error(4);
    assert_eq!(json["details"]["reason"]["code"], "SIZE_TOO_SMALL");
    let health = ctl(&["health"]).expect(1).out;
    assert!(health.starts_with("degraded: ") && health.contains("\n  VOLUMES_REFUSED: "), "{health}");

    let mut add = Running::start(&["intent", "add", &volume.id, "--wait=20"]);
    assert!(add.line().contains("accepted before: refused"));
    disk.resize(2 * MIB).unwrap();
    add.end().expect(0);
}

#[test]
fn a_wait_continues_over_a_restart_of_attachd() {
    let (lab, mut attachd, _api) = up();
    let volume = lab.volume();
    let mut add = Running::start(&["intent", "add", &volume.id, "--wait=20"]);
    add.line();
    attachd.kill9().unwrap();
    let _attachd = start(&lab);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    let ended = add.end().expect(0);
    assert!(ended.err.contains("looking for it again"), "{}", ended.err);
}

#[test]
fn events_are_followed_until_ctrl_c_or_the_end_of_attachd() {
    let (lab, mut attachd, api) = up();
    let (one, two) = (lab.volume(), lab.volume());
    intend(&api, &one);
    let (mut all, mut only) = (Running::start(&["watch"]), Running::start(&["--json", "watch", &two.id]));
    let (mut line, json) = first_lines(&mut all, &mut only, || {
        intend(&api, &two);
        withdraw(&api, &two);
    });
    while !line.contains("withdrawn") {
        line = all.line();
    }
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>()[1..],
        [two.id.as_str(), "withdrawn", "waiting", "by", "uid", "0"]
    );
    let event: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(event["volume_id"], two.id);
    all.interrupt();
    all.end().expect(0);
    attachd.terminate().unwrap();
    let ended = only.end().expect(5);
    assert!(ended.err.contains("STREAM_ENDED"), "{}", ended.err);
}

/// No event reports that a listener has subscribed, so `happen` is repeated until both have a line.
fn first_lines(one: &mut Running, other: &mut Running, happen: impl Fn()) -> (String, String) {
    std::thread::scope(|scope| {
        let (one, other) = (scope.spawn(|| one.line()), scope.spawn(|| other.line()));
        while !(one.is_finished() && other.is_finished()) {
            happen();
        }
        (one.join().unwrap(), other.join().unwrap())
    })
}

#[test]
fn an_unreachable_attachd_is_reported_with_the_reason() {
    let mut lab = lab::Lab::new();
    let missing = ctl(&["list"]).expect(5);
    let sentence = "there is no socket /run/attachd/attachd.sock: attachd does not run";
    assert!(missing.err.contains(sentence), "{}", missing.err);
    assert!(missing.err.contains("systemctl status attachd"), "{}", missing.err);
    assert_eq!(ctl(&["--json", "--socket", "/nowhere", "list"]).json_error(5)["details"]["socket"], "/nowhere");
    assert!(ctl(&["health"]).expect(2).err.contains("there is no socket"));

    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let mut attachd = start(&lab);
    let stranger = people::run_as(people::NBD);
    let mut command = Command::new(&stranger[0]);
    command.args(&stranger[1..]).arg(lab.reachable(program()).unwrap()).arg("list").current_dir("/");
    let denied = Ran::of(&command.output().unwrap()).expect(5);
    assert!(denied.err.contains("may not use ") && denied.err.contains("the group attachd"), "{}", denied.err);

    attachd.kill9().unwrap();
    let refused = ctl(&["show", &lab.volume().id]).expect(5);
    assert!(refused.err.contains("nobody listens on "), "{}", refused.err);
}

#[test]
fn a_configuration_is_checked_as_the_daemon_does_it() {
    let lab = lab::Lab::new();
    let path = lab.dir().join("attachd.toml");
    std::fs::write(&path, "[export]\nlisten = \"127.0.0.1:10809\"\nlistn = 1\n").unwrap();
    let path = path.to_str().unwrap();
    let wrong = ctl(&["check-config", "--config", path]).expect(1);
    assert!(wrong.err.starts_with(&format!("{path}:3:1: ")) && wrong.err.contains("listn"), "{}", wrong.err);
    let daemons = Command::new(bin()).args(["check-config", "--config", path]).output().unwrap();
    assert_eq!(wrong.err, Ran::of(&daemons).err);
    let json = ctl(&["--json", "check-config", "--config", path]).json_error(1);
    let problem = &json["details"]["problems"][0];
    assert_eq!((&problem["line"], &problem["column"]), (&3.into(), &1.into()));

    std::fs::write(path, CONFIG).unwrap();
    assert_eq!(ctl(&["check-config", "--config", path]).expect(0).out, format!("{path}: valid\n"));
    assert_eq!(ctl(&["--json", "check-config", "--config", path]).json()["valid"], true);
    // Without --config it reads the default path, where a missing file counts as empty.
    ctl(&["check-config"]).expect(0);
}

#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
    let (lab, _attachd, api) = up();
    intend(&api, &lab.volume());
    for arguments in [&["list"][..], &["--json", "list"], &["health"], &["devices"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let run = |stdout: Stdio| {
            Ran::of(&Command::new(program()).args(arguments).stdin(Stdio::null()).stdout(stdout).output().unwrap())
        };
        assert_eq!(run(writer.into()).expect(0).err, "");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let full = run(full.into()).expect(1);
        assert!(full.err.contains("the result cannot be written"), "{}", full.err);
    }
}

#[test]
fn a_forced_withdrawal_names_the_clients_and_says_whether_these_are_only_candidates() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let [(volume, _disk), (neighbour, _other)] = [(); 2].map(|()| served(&lab, &api));
    let _client = lab.nbd_client(&volume.export()).unwrap();
    let exact = ctl(&["intent", "withdraw", &volume.id]).expect(1).err;
    assert!(exact.contains("NBD clients are connected") && !exact.contains("other exports"), "{exact}");
    let _bystander = lab.nbd_client(&neighbour.export()).unwrap();
    let refused = ctl(&["intent", "withdraw", &volume.id]).expect(1).err;
    assert!(refused.contains("some of these may use other exports"), "{refused}");
    let forced = ctl(&["intent", "withdraw", "--force", &volume.id]).expect(0).out;
    assert!(forced.ends_with("Some of these may use other exports.\n"), "{forced}");
    assert_eq!(forced.lines().filter(|line| line.starts_with("  127.0.0.1:")).count(), 2, "{forced}");
}

/// Serves a socket that answers with attachd's own answers, changed by `alter`.
fn altered(lab: &lab::Lab, attachd: &lab::Api, alter: impl Fn(&mut Value) + Send + 'static) -> String {
    let (socket, attachd) = (lab.dir().join("altered.sock"), attachd.clone());
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let mut answer = attachd.get(head.split(' ').nth(1).unwrap()).unwrap().json;
            alter(&mut answer);
            let body = answer.to_string();
            let length = body.len();
            write!(client, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    socket.into_os_string().into_string().unwrap()
}

#[test]
fn a_renamed_field_is_an_error_and_an_additional_field_is_ignored() {
    let (lab, _attachd, api) = up();
    let (volume, _disk) = served(&lab, &api);
    let renamed = |path: &'static str, name: &'static str| {
        let socket = altered(&lab, &api, move |answer| {
            let object = answer.pointer_mut(path).and_then(Value::as_object_mut).unwrap();
            let value = object.remove(name).unwrap();
            object.insert(format!("new_{name}"), value);
        });
        let ran = |arguments: &[&str]| ctl(&[&["--socket", &socket], arguments].concat());
        let (list, show) = (["list"], ["show", &volume.id]);
        let listed = path.starts_with("/volumes");
        let told = ran(if listed { &list } else { &show }).expect(1);
        assert_eq!(told.out, "");
        assert!(told.err.contains(&format!("`{name}`")) && told.err.ends_with("code: BAD_ANSWER\n"), "{}", told.err);
        // With --json the output is attachd's own text.
        if listed {
            let json = ran(&["--json", "list"]).expect(0).out;
            assert!(json.contains(&format!("new_{name}")), "{json}");
        }
        std::fs::remove_file(&socket).unwrap();
    };
    renamed("/volumes/0", "device_node");
    renamed("/volumes/0/export", "state");
    renamed("", "timeline");
    renamed("/evidence", "diskseq");

    let socket = altered(&lab, &api, |answer| {
        for path in ["", "/volumes/0", "/volumes/0/export"] {
            answer.pointer_mut(path).unwrap()["more"] = "news".into();
        }
    });
    let newer = ctl(&["--socket", &socket, "list"]).expect(0).out;
    assert_eq!(newer, ctl(&["list"]).expect(0).out, "the control: attachd as it is");
    assert!(newer.contains(&volume.id), "{newer}");
}
