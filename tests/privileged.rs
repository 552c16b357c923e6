//! Tests with attachd-helper: late intents, clients by name, and nodes that are given back.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;

use common::*;
use lab::watch::readable;
use lab::{Api, Disk, Lab, Volume};
use rustix::fs::{FileType, Mode};
use serde_json::json;

fn group(disk: &Disk) -> u32 {
    std::fs::metadata(disk.node()).unwrap().gid()
}

/// A path unit with systemd's start limit would fail here.
#[test]
fn eleven_late_intents_at_once_are_all_marked_and_served() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let mut disks = Vec::new();
    for _ in 0..11 {
        let volume = lab.volume();
        let disk = lab.settled_disk(&volume.serial, MIB).unwrap();
        disks.push((volume, disk));
    }
    let before = group(&disks[0].1);
    for (volume, _) in &disks {
        intend(&api, volume);
    }
    for (volume, disk) in &disks {
        wait(&api, volume, "ready");
        lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
        assert_eq!(group(disk), lab::people::NBD.id);
    }
    assert_eq!(health(&api)["helper"]["state"], "answers");
    // Removing the claim gives the node its old group back.
    let listener = lab.bare_listener().unwrap();
    let (volume, disk) = &disks[0];
    withdraw(&api, volume);
    listener.given_back(SOON, &disk.node()).unwrap();
    assert_eq!(group(disk), before);
    assert_eq!(group(&disks[1].1), lab::people::NBD.id, "the control: a neighbour stays marked");
}

/// udevd does not process what it missed while its socket was closed. The helper retriggers the disk, without a
/// request from anybody.
#[test]
fn a_disk_that_came_while_udevd_was_away_is_served_when_udevd_is_back() {
    let (mut lab, _attachd, api, _helper) = up_with_helper();
    let volume = lab.volume();
    intend(&api, &volume);
    lab.udevd().stop().unwrap();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait_reason(&api, &volume, "UDEV_NOT_FINISHED");
    lab.udevd().start().unwrap();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    assert_eq!(health(&api)["udevd"]["state"], "heard");
}

/// With everything in place there is nothing to retry, and health has no problem.
#[test]
fn with_everything_in_place_the_daemon_is_healthy_and_has_host_disks_written_down() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let (_volume, _disk) = served(&lab, &api);
    // The answer about the host's disks comes by itself soon after the start.
    let mut health = health(&api);
    let begun = std::time::Instant::now();
    while health["helper"]["state"] == "unknown" && begun.elapsed() < SOON {
        std::thread::yield_now();
        health = common::health(&api);
    }
    assert_eq!((&health["status"], &health["problems"]), (&json!("healthy"), &json!([])), "{health:#}");
    assert!(std::path::Path::new("/etc/attachd/host-disks").is_dir());
}

#[test]
fn claims_and_host_disks_changed_by_hand_are_repaired_by_a_resync_and_logged() {
    let (lab, attachd, api, _helper) = up_with_helper();
    let volume = lab.volume();
    intend(&api, &volume);
    let claims = std::path::Path::new("/var/lib/attachd/claims");
    std::fs::remove_file(claims.join(&volume.serial)).unwrap();
    let foreign = lab.volume().serial;
    lab.claim(&foreign).unwrap();
    std::fs::remove_dir_all("/etc/attachd/host-disks").unwrap();
    resync(&api);
    assert!(claims.join(&volume.serial).exists() && !claims.join(&foreign).exists());
    let said = attachd.stderr_text();
    assert!(said.contains(&format!("claims were missing: {}", volume.serial)), "{said}");
    assert!(said.contains(&format!("claims belonged to no intent: {foreign}")), "{said}");
    let begun = std::time::Instant::now();
    while !std::path::Path::new("/etc/attachd/host-disks").is_dir() {
        assert!(begun.elapsed() < SOON);
        std::thread::yield_now();
    }
}

#[test]
fn a_missing_link_is_put_right_by_one_retrigger() {
    let (mut lab, _attachd, api, _helper) = up_with_helper();
    let volume = lab.volume();
    intend(&api, &volume);
    lab.udevd().stop().unwrap();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    lab.udevd().start().unwrap();
    // A restarted udevd replays nothing. A resync finds the disk and its missing link, and the helper makes udev
    // process the disk.
    resync(&api);
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// Invariant 6, with client names.
#[test]
fn a_connected_client_is_named_and_a_forced_withdrawal_waits_until_it_is_gone() {
    let (lab, mut attachd, api, _helper) = up_with_helper();
    let (volume, disk) = served(&lab, &api);
    let (neighbour, _other) = served(&lab, &api);
    let mut client = lab.nbd_client(&volume.export()).unwrap();
    let path = |volume: &Volume| format!("/api/v1/intents/{}", volume.id);

    let refused = api.delete(&path(&volume)).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "CLIENTS_CONNECTED");
    assert_eq!(refused["details"]["clients"].as_array().unwrap().len(), 1, "{refused:#}");
    assert_eq!(refused["details"]["clients_exact"], true);
    // It is known which export the client uses, so the neighbour can be withdrawn.
    api.delete(&path(&neighbour)).unwrap().expect(200).unwrap();

    let forced = api.delete(&format!("{}?force=true", path(&volume))).unwrap().expect(200).unwrap();
    assert_eq!(forced["clients_still_connected"], refused["details"]["clients"]);
    let detaching = show(&api, &volume);
    assert_eq!((&detaching["state"], &detaching["reason"]["code"]), (&json!("detaching"), &json!("CLIENTS_CONNECTED")));
    assert!(detaching["reason"]["hint"].as_str().unwrap().contains("ss -K"), "{detaching:#}");
    assert!(!lab.nbd_connects(&volume.export()), "new clients are refused");
    client.read(0, 4096).unwrap();
    let again = api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap().expect(409).unwrap();
    assert_eq!(again["code"], "BEING_WITHDRAWN");

    // The withdrawal survives the daemon.
    attachd.kill9().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    assert_eq!(show(&api, &volume)["state"], "detaching");
    assert!(!lab.nbd_connects(&volume.export()));
    let mut events = api.events().unwrap();
    client.abandon();
    events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
    assert_eq!(api.get(&path(&volume)).unwrap().status, 404);
    assert!(!std::path::Path::new("/var/lib/attachd/claims").join(&volume.serial).exists());
    drop(disk);
}

#[test]
fn with_the_helper_dead_the_answer_is_that_the_clients_are_unknown() {
    let (lab, _attachd, api, helper) = up_with_helper();
    let (volume, _disk) = served(&lab, &api);
    let _client = lab.nbd_client(&volume.export()).unwrap();
    drop(helper);
    let refused = api.delete(&format!("/api/v1/intents/{}", volume.id)).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "CLIENTS_UNKNOWN");
    let sick = health(&api);
    assert_eq!((&sick["status"], &sick["helper"]["state"]), (&json!("degraded"), &json!("silent")), "{sick:#}");
}

/// If an export cannot be removed, a volume that was withdrawn by force must not be served again.
#[test]
fn a_volume_withdrawn_by_force_stays_so_while_its_export_cannot_be_removed() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let (volume, _disk) = served(&lab, &api);
    let client = lab.nbd_client(&volume.export()).unwrap();
    let exports = "/run/attachd/exports";
    std::os::unix::fs::chown(exports, Some(0), None).unwrap();
    let path = format!("/api/v1/intents/{}", volume.id);
    let mut events = api.events().unwrap();
    let forced = api.delete(&format!("{path}?force=true")).unwrap();
    assert_ne!(forced.status, 200, "the export is still there: {}", forced.text);
    assert_eq!(show(&api, &volume)["state"], "detaching");
    // A resync does not change that.
    resync(&api);
    client.abandon();
    // The next request finds no client, and the export cannot be removed. (A check by the daemon itself may be in
    // progress.)
    let begun = std::time::Instant::now();
    while api.delete(&path).unwrap().json["code"] != "EXPORT_STUCK" {
        assert!(begun.elapsed() < SOON);
        std::thread::yield_now();
    }
    assert_eq!(show(&api, &volume)["state"], "detaching");
    std::os::unix::fs::chown(exports, Some(lab::people::ATTACHD.id), None).unwrap();
    events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
}

/// Takes the helper's place: `answer` answers each request, and gets its line. Requests about exclusive opens are
/// passed to the real helper.
fn helper_that(answer: impl Fn(String, UnixStream) + Send + 'static) {
    let itself = format!("{HELPER_SOCKET}.itself");
    std::fs::rename(HELPER_SOCKET, &itself).unwrap();
    let listener = UnixListener::bind(HELPER_SOCKET).unwrap();
    std::os::unix::fs::chown(HELPER_SOCKET, Some(lab::people::ATTACHD.id), None).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            if line.starts_with("exclusive") {
                let mut helper = UnixStream::connect(&itself).unwrap();
                helper.write_all(line.as_bytes()).unwrap();
                std::io::copy(&mut helper, &mut stream).unwrap();
            } else {
                answer(line, stream);
            }
        }
    });
}

/// A helper for which the test answers `holders`, at its own pace.
fn helper_of_the_tests() -> mpsc::Receiver<UnixStream> {
    let (asked, asking) = mpsc::channel();
    helper_that(move |line, mut stream| {
        if line.starts_with("holders") {
            let _ = asked.send(stream);
        } else {
            let _ = stream.write_all(YES);
        }
    });
    asking
}

const YES: &[u8] = b"{\"ok\":true}\n";

/// The answer for a client that cannot be seen.
const INVISIBLE: &[u8] = b"{\"ok\":true,\"open\":1,\"clients\":[],\"exact\":false}\n";

const NOBODY: &[u8] = b"{\"ok\":false,\"code\":\"NOT_OPEN\",\"error\":\"x\"}\n";

/// Invariant 2: an answer for an earlier intent must not affect the volume's new intent.
#[test]
fn a_late_answer_about_clients_does_not_withdraw_a_new_intent() {
    let (lab, attachd, api) = up();
    let asking = helper_of_the_tests();
    let (volume, _disk) = served(&lab, &api);
    let client = lab.nbd_client(&volume.export()).unwrap();
    let path = format!("/api/v1/intents/{}", volume.id);
    let (other, forced_path) = (attachd.api(), format!("{path}?force=true"));
    let forced = std::thread::spawn(move || other.delete(&forced_path).unwrap().status);
    let mut first = asking.recv_timeout(SOON).unwrap();
    first.write_all(b"{\"ok\":true,\"open\":1,\"clients\":[\"127.0.0.1:1\"],\"exact\":true}\n").unwrap();
    assert_eq!(forced.join().unwrap(), 200);
    assert_eq!(show(&api, &volume)["state"], "detaching");
    // However often the volume is settled, there is one request at a time.
    resync(&api);
    let mut look = asking.recv_timeout(SOON).unwrap();
    resync(&api);
    resync(&api);
    assert!(asking.try_recv().is_err(), "a second look while one is under way");
    assert_eq!(api.delete(&path).unwrap().expect(409).unwrap()["code"], "BEING_WITHDRAWN");
    let mut events = api.events().unwrap();
    look.write_all(NOBODY).unwrap();
    events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
    drop(client);
    intend(&api, &volume);
    wait(&api, &volume, "ready");
    assert!(asking.try_recv().is_err());
}

/// Invariant 6: no client can connect unnoticed between the check for clients and the end of the export.
#[test]
fn a_client_that_comes_during_a_withdrawal_is_noticed_and_the_export_is_given_back() {
    let (lab, attachd, api) = up();
    let asking = helper_of_the_tests();
    let (volume, disk) = served(&lab, &api);
    let (neighbour, _other) = served(&lab, &api);
    let _bystander = lab.nbd_client(&neighbour.export()).unwrap();
    let (other, path) = (attachd.api(), format!("/api/v1/intents/{}", volume.id));
    let asked = std::thread::spawn(move || other.delete(&path).unwrap().expect(409).unwrap());
    asking.recv_timeout(SOON).unwrap().write_all(NOBODY).unwrap();
    let mut second = asking.recv_timeout(SOON).unwrap();
    assert!(lab.nbd_client(&volume.export()).is_err(), "asked again once nobody new can come");
    lab.nbd_client(&neighbour.export()).unwrap();
    second.write_all(b"{\"ok\":true,\"open\":1,\"clients\":[\"127.0.0.1:1\"],\"exact\":true}\n").unwrap();
    assert_eq!(asked.join().unwrap()["code"], "CLIENTS_CONNECTED");
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// nbdkit serves all of its clients in one process, so it does not always show which client has which disk open.
#[test]
fn clients_that_cannot_be_told_apart_are_said_to_be_candidates() {
    let (lab, _attachd, api, _helper) = up_with_helper();
    let (volume, _disk) = served(&lab, &api);
    let (neighbour, _other) = served(&lab, &api);
    let _clients = [(); 2].map(|()| lab.nbd_client(&volume.export()).unwrap());
    let path = format!("/api/v1/intents/{}", volume.id);
    let refused = || api.delete(&path).unwrap().expect(409).unwrap();
    let exact = refused();
    assert_eq!((&exact["code"], &exact["details"]["clients_exact"]), (&json!("CLIENTS_CONNECTED"), &json!(true)));
    assert!(!exact["error"].as_str().unwrap().contains("other exports"), "the control: each has it open: {exact:#}");
    let _other_client = lab.nbd_client(&neighbour.export()).unwrap();
    let candidates = refused();
    assert_eq!(candidates["details"]["clients_exact"], false, "{candidates:#}");
    assert!(candidates["error"].as_str().unwrap().contains("some of these may use other exports"), "{candidates:#}");
    let forced = api.delete(&format!("{path}?force=true")).unwrap().expect(200).unwrap();
    assert_eq!(
        (&forced["clients_exact"], &forced["clients_still_connected"]),
        (&json!(false), &candidates["details"]["clients"])
    );
}

/// Invariant 4: `ready` means served, even while a withdrawal is undecided; and a crash does not decide it.
#[test]
fn a_volume_whose_export_was_taken_away_for_a_withdrawal_is_not_ready_until_it_is_proven_again() {
    let (lab, mut attachd, api) = up();
    let asking = helper_of_the_tests();
    let (volume, disk) = served(&lab, &api);
    let (neighbour, _other) = served(&lab, &api);
    let _bystander = lab.nbd_client(&neighbour.export()).unwrap();
    let path = format!("/api/v1/intents/{}", volume.id);
    let mut events = api.events().unwrap();
    // Requests the withdrawal, and returns when the export is removed and the check for clients is repeated.
    let sealed = |attachd: &lab::Attachd| {
        let (api, path) = (attachd.api(), path.clone());
        let answer = std::thread::spawn(move || api.delete(&path));
        asking.recv_timeout(SOON).unwrap().write_all(NOBODY).unwrap();
        (answer, asking.recv_timeout(SOON).unwrap())
    };

    let (answer, mut second) = sealed(&attachd);
    let shown = show(&api, &volume);
    assert_eq!((&shown["state"], &shown["export"]["state"]), (&json!("detaching"), &json!("none")), "{shown:#}");
    assert_eq!(shown["reason"]["code"], "BEING_WITHDRAWN");
    let ready = api.get("/api/v1/volumes?state=ready").unwrap().expect(200).unwrap();
    assert_eq!((&ready["count"], &ready["volumes"][0]["volume_id"]), (&json!(1), &json!(neighbour.id)), "the control");
    second.write_all(b"{\"ok\":true,\"open\":1,\"clients\":[\"127.0.0.1:1\"],\"exact\":true}\n").unwrap();
    assert_eq!(answer.join().unwrap().unwrap().status, 409);
    let given_back = wait(&api, &volume, "ready");
    assert_eq!(given_back["reason"], json!(null));
    for expected in [("revoked", "detaching"), ("published", "exporting"), ("ready", "ready")] {
        let step = events.wait_for(|event| event["volume_id"] == volume.id, SOON).unwrap();
        assert_eq!((step["event"].as_str().unwrap(), step["state"].as_str().unwrap()), expected, "{step:#}");
    }

    let (_answer, second) = sealed(&attachd);
    attachd.kill9().unwrap();
    drop(second);
    let attachd = start(&lab);
    let api = attachd.api();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    let mut events = api.events().unwrap();
    let (answer, mut second) = sealed(&attachd);
    second.write_all(NOBODY).unwrap();
    assert_eq!(answer.join().unwrap().unwrap().status, 200);
    let withdrawn = events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
    assert_eq!(withdrawn["state"], "detaching");
}

/// An answer for one part of a volume must not end the wait of another part.
#[test]
fn a_late_answer_about_a_mark_does_not_stop_the_wait_for_clients_to_go() {
    let (lab, attachd, api) = up();
    let (asked, asking) = mpsc::channel();
    helper_that(move |line, stream| drop(asked.send((line, stream))));
    let next = |verb: &str| loop {
        let (line, mut stream) = asking.recv_timeout(SOON).expect("nobody is asked any more");
        if line.starts_with(verb) {
            break stream;
        }
        stream.write_all(YES).unwrap();
    };
    let (volume, disk) = announced_late(&lab, &api);
    let mut mark = next("retrigger");
    // udev processes the disk for another reason; the helper's answer has not come yet.
    lab.retrigger(&disk).unwrap();
    wait(&api, &volume, "ready");
    let client = lab.nbd_client(&volume.export()).unwrap();
    let (other, forced) = (attachd.api(), format!("/api/v1/intents/{}?force=true", volume.id));
    let forced = std::thread::spawn(move || other.delete(&forced).unwrap().status);
    next("holders").write_all(b"{\"ok\":true,\"open\":1,\"clients\":[\"127.0.0.1:1\"],\"exact\":true}\n").unwrap();
    assert_eq!(forced.join().unwrap(), 200);
    assert_eq!(show(&api, &volume)["state"], "detaching");
    mark.write_all(YES).unwrap();
    drop(mark);
    let mut events = api.events().unwrap();
    let mut look = next("holders");
    drop(client);
    look.write_all(NOBODY).unwrap();
    events.wait_for(|event| event["event"] == "withdrawn", SOON).unwrap();
}

/// Without the helper it is unknown whether a client is connected.
fn withdraw_by_force(api: &Api, volume: &Volume) {
    api.delete(&format!("/api/v1/intents/{}?force=true", volume.id)).unwrap().expect(200).unwrap();
}

/// A disk must not stay with the NBD servers because the helper was away for a moment.
#[test]
fn a_node_is_given_back_as_soon_as_the_helper_answers_again() {
    let (lab, attachd, api, helper) = up_with_helper();
    let (volume, disk) = served(&lab, &api);
    drop(helper);
    let marked = lab::people::NBD.id;
    withdraw_by_force(&api, &volume);
    assert_eq!(group(&disk), marked, "nobody could give it back");
    let listener = lab.bare_listener().unwrap();
    let _helper = Helper::start();
    listener.given_back(SOON, &disk.node()).unwrap();
    assert_ne!(group(&disk), marked);
    drop(attachd);
}

/// Makes udev stop at each claimed disk, after it has read the claim and before it marks the node. Returns two pipes:
/// one reports that udev has stopped, the other lets it continue.
fn udev_stops_half_way(lab: &Lab) -> (File, File) {
    let pipe = |name| {
        let path = lab.dir().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        (File::options().read(true).write(true).open(&path).unwrap(), path.display().to_string())
    };
    let ((there, says), (go_on, hears)) = (pipe("there"), pipe("go-on"));
    let stop = format!(r#"ENV{{ATTACHD_CLAIMED}}=="1", PROGRAM=="/bin/sh -c 'echo >{says}; read go_on <{hears}'""#);
    lab.add_rules("60-lab-stop.rules", &stop).unwrap();
    (there, go_on)
}

/// The mark comes after the withdrawal has found nothing to remove, so the node would stay open to the NBD servers.
#[test]
fn a_disk_that_is_withdrawn_while_udev_marks_it_is_given_back() {
    let (lab, _attachd, api) = up();
    let (said, stderr) = std::io::pipe().unwrap();
    let _helper = Helper::start_with(stderr.into());
    let (there, mut go_on) = udev_stops_half_way(&lab);
    let mut said = BufReader::new(said).lines().map(Result::unwrap);
    for late in [true, false] {
        let (volume, disk) = if late { announced_late(&lab, &api) } else { attached(&lab, &api) };
        assert!(readable(&[there.as_fd()], SOON).unwrap(), "udev is not there");
        (&there).read_exact(&mut [0]).unwrap();
        // attachd gives back only a disk that it has seen.
        let seen = || api.get("/api/v1/devices").unwrap().text.contains(&volume.serial);
        let begun = std::time::Instant::now();
        while !seen() {
            assert!(begun.elapsed() < SOON);
            std::thread::yield_now();
        }
        let listener = lab.bare_listener().unwrap();
        withdraw(&api, &volume);
        let refused = |line: &String| line.contains(&volume.serial) && line.contains("NOT_CLAIMED");
        assert!(said.any(|line| refused(&line)), "the control: there was nothing to give back yet");
        go_on.write_all(b"\n").unwrap();
        listener.wait_for(SOON, |heard| heard.get("ATTACHD_CLAIMED") == "1").unwrap();
        listener.given_back(SOON, &disk.node()).unwrap();
        assert_ne!(group(&disk), lab::people::NBD.id, "late: {late}");
    }
}

/// The same if attachd was killed before it could ask.
#[test]
fn a_node_that_was_left_marked_is_given_back_by_a_resync() {
    let (lab, attachd, api, helper) = up_with_helper();
    let (volume, disk) = served(&lab, &api);
    let (kept, other) = served(&lab, &api);
    drop(helper);
    withdraw_by_force(&api, &volume);
    drop(attachd);
    let listener = lab.bare_listener().unwrap();
    let _helper = Helper::start();
    let _attachd = start(&lab);
    listener.given_back(SOON, &disk.node()).unwrap();
    assert_ne!(group(&disk), lab::people::NBD.id);
    assert_eq!(group(&other), lab::people::NBD.id, "the control: {} is still wanted", kept.id);
}

#[test]
fn a_disk_opened_by_an_invisible_client_is_not_taken_for_free() {
    let (lab, attachd, api) = up();
    let asking = helper_of_the_tests();
    let (volume, _disk) = served(&lab, &api);
    let _client = lab.nbd_client(&volume.export()).unwrap();
    let (other, path) = (attachd.api(), format!("/api/v1/intents/{}", volume.id));
    let asked = std::thread::spawn(move || other.delete(&path).unwrap().expect(409).unwrap());
    // attachd asks again a few times, because the server may be closing the disk.
    while !asked.is_finished() {
        if let Ok(mut look) = asking.recv_timeout(std::time::Duration::from_millis(50)) {
            look.write_all(INVISIBLE).unwrap();
        }
    }
    assert_eq!(asked.join().unwrap()["code"], "CLIENTS_UNKNOWN");
}

/// udevd may have processed the disk with rules from before the package was installed.
#[test]
fn a_disk_that_stays_unmarked_after_a_retrigger_is_retriggered_again() {
    let (lab, _attachd, api) = up();
    let (asked, asking) = mpsc::channel();
    helper_that(move |line, mut stream| {
        let _ = stream.write_all(YES);
        let _ = asked.send(line);
    });
    let (volume, disk) = announced_late(&lab, &api);
    let retrigger = format!("retrigger {}\n", volume.serial);
    for _ in 0..2 {
        while asking.recv_timeout(SOON).unwrap() != retrigger {}
    }
    assert_eq!(show(&api, &volume)["reason"]["code"], "NOT_MARKED");
    // When the mark is there, nothing more is asked.
    lab.retrigger(&disk).unwrap();
    wait(&api, &volume, "ready");
}

#[test]
fn a_disk_to_be_given_back_is_asked_for_once_at_a_time_however_often_everything_is_read() {
    let (lab, mut attachd, _api) = up();
    attachd.terminate().unwrap();
    let (asked, asking) = mpsc::channel();
    helper_that(move |line, stream| {
        if line.starts_with("retrigger") {
            let _ = asked.send(stream);
        }
    });
    let volume = lab.volume();
    // attachd removes an unwanted claim as soon as it sees the claim.
    lab.claim(&volume.serial).unwrap();
    let _disk = lab.settled_disk(&volume.serial, MIB).unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let mut first = asking.recv_timeout(SOON).unwrap();
    for _ in 0..5 {
        resync(&api);
    }
    assert!(asking.try_recv().is_err(), "while it has not answered");
    first.write_all(YES).unwrap();
    let mut second = asking.recv_timeout(SOON).expect("the answer may be older than the last wish");
    second.write_all(YES).unwrap();
    resync(&api);
    let mut third = asking.recv_timeout(SOON).expect("the control: a new wish is a new question");
    third.write_all(YES).unwrap();
    health(&api);
    assert!(asking.try_recv().is_err());
}

/// The disk is open for a moment after every handshake, and after every client that hangs up.
#[test]
fn a_disk_that_a_server_is_just_closing_is_asked_for_again_when_it_is_closed_and_is_free() {
    let (lab, attachd, api) = up();
    let asking = helper_of_the_tests();
    let (volume, disk) = served(&lab, &api);
    let (neighbour, other_disk) = served(&lab, &api);
    let _bystander = lab.nbd_client(&neighbour.export()).unwrap();
    let path = format!("/api/v1/intents/{}", volume.id);
    let withdrawal = || {
        let (api, path) = (attachd.api(), path.clone());
        std::thread::spawn(move || api.delete(&path).unwrap().status)
    };
    let [open, other_open] = [&disk, &other_disk].map(|disk| std::fs::File::open(disk.node()).unwrap());
    let asked = withdrawal();
    asking.recv_timeout(SOON).unwrap().write_all(INVISIBLE).unwrap();
    drop(other_open);
    let moment = std::time::Duration::from_millis(100);
    assert!(asking.recv_timeout(moment).is_err(), "asked again although nobody has closed it");
    drop(open);
    for _ in 0..2 {
        asking.recv_timeout(SOON).unwrap().write_all(NOBODY).unwrap();
    }
    assert_eq!(asked.join().unwrap(), 200);

    // The close causes the next request, and not the end of the back-off, unless this host is very slow.
    intend(&api, &volume);
    let at_once = (0..9).any(|_| {
        wait(&api, &volume, "ready");
        let open = std::fs::File::open(disk.node()).unwrap();
        let asked = withdrawal();
        asking.recv_timeout(SOON).unwrap().write_all(INVISIBLE).unwrap();
        let closed = std::time::Instant::now();
        drop(open);
        let mut again = asking.recv_timeout(SOON).unwrap();
        let passed = closed.elapsed();
        again.write_all(b"{\"ok\":true,\"open\":1,\"clients\":[\"127.0.0.1:1\"],\"exact\":true}\n").unwrap();
        assert_eq!(asked.join().unwrap(), 409);
        passed < moment
    });
    assert!(at_once);
}

#[test]
fn a_helper_that_was_away_is_asked_again_and_marks_the_disk() {
    let (lab, _attachd, api) = up_without_helper();
    let (volume, _disk) = announced_late(&lab, &api);
    wait(&api, &volume, "refused");
    let _helper = Helper::start();
    wait(&api, &volume, "ready");
}
