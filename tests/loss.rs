//! Events are hints: lost, forged, late or missing events change only the latency (invariant 3).
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;

use common::*;
use lab::{Lab, RmemMax};
use rustix::process::Signal;

/// Invariant 3. The daemon is unprivileged, so its buffers have the size that `rmem_max` allows, and they really
/// overrun.
#[test]
fn after_an_overrun_no_disk_is_missed() {
    let mut lab = Lab::new();
    let _rmem = RmemMax::set(212_992).unwrap();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    let (pulled, mut pulled_disk) = served(&lab, &api);
    let volume = lab.volume();
    intend(&api, &volume);

    attachd.sigstop().unwrap();
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    let forger = lab.forger().unwrap();
    // The buffer is filled first, so that the real events are among the lost ones.
    flood(&forger, 4000);
    lab.attach_settled(&mut disk).unwrap();
    lab.detach_settled(&mut pulled_disk).unwrap();
    flood(&forger, 1000);
    attachd.sigcont().unwrap();

    wait(&api, &volume, "ready");
    wait(&api, &pulled, "lost");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    let health = health(&api);
    let socket = &health["monitor"]["udev"];
    println!(
        "receive buffer {} bytes, drops {}, overruns {}, resyncs {}",
        socket["receive_buffer_bytes"], socket["drops"], socket["overruns"], health["resync"]["count"]
    );
    assert_eq!(socket["receive_buffer_bytes"], 425_984);
    assert!(socket["drops"].as_u64().unwrap() > 0, "the control: the flood really overran");
    assert!(socket["overruns"].as_u64().unwrap() > 0);
}

fn flood(forger: &lab::Forger, events: u32) {
    for number in 0..events {
        let seqnum = (5_000_000 + number).to_string();
        // These events are about a disk that does not exist, so there is nothing to read or publish.
        forger
            .send(&[
                ("ACTION", "change"),
                ("DEVPATH", "/devices/virtual/block/loop999999"),
                ("SUBSYSTEM", "block"),
                ("DEVTYPE", "disk"),
                ("MAJOR", "7"),
                ("MINOR", "999999"),
                ("SEQNUM", &seqnum),
            ])
            .unwrap();
    }
}

/// Invariant 3. A forged event can only make the daemon read the disk.
#[test]
fn forged_events_publish_nothing_and_revoke_nothing() {
    let (lab, _attachd, api) = up();
    let (kept, kept_disk) = served(&lab, &api);
    let wanted = lab.volume();
    intend(&api, &wanted);
    let other = lab.volume();
    let other_disk = lab.settled_disk(&other.serial, MIB).unwrap();

    let lie = |action: &str, disk: &lab::Disk, serial: &str| {
        let (major, minor) = {
            let number = disk.devnum();
            (number.0.to_string(), number.1.to_string())
        };
        let diskseq = disk.diskseq().unwrap().to_string();
        lab.forge(&[
            ("ACTION", action),
            ("DEVPATH", disk.sysfs().to_str().unwrap().trim_start_matches("/sys")),
            ("SUBSYSTEM", "block"),
            ("DEVTYPE", "disk"),
            ("DEVNAME", disk.node().to_str().unwrap()),
            ("MAJOR", &major),
            ("MINOR", &minor),
            ("DISKSEQ", &diskseq),
            ("ID_SERIAL", serial),
            ("SEQNUM", "7777777"),
        ])
        .unwrap()
    };
    let before = health(&api)["monitor"]["udev"]["events"].as_u64().unwrap();
    lie("add", &other_disk, &wanted.serial);
    lie("remove", &kept_disk, &kept.serial);
    lie("add", &other_disk, &kept.serial);
    // A real event comes after the forged ones: when its disk is served, the forged ones have been handled.
    let (_marker, _disk) = served(&lab, &api);
    let heard = health(&api)["monitor"]["udev"]["events"].as_u64().unwrap() - before;
    assert!(heard >= 4, "the control: the lies were heard ({heard})");
    assert_eq!(show(&api, &wanted)["state"], "waiting");
    let shown = show(&api, &kept);
    assert_eq!(shown["state"], "ready");
    assert!(!story(&shown).contains(&"revoked".to_owned()), "{shown:#}");
}

/// Invariants 1 and 5. The disks are swapped while udevd is dead, so the link and udev's database still show the old
/// disk.
#[test]
fn a_swap_while_udevd_is_dead_revokes_the_old_and_serves_the_new_once_udevd_is_back() {
    let (mut lab, _attachd, api) = up();
    let (old, mut old_disk) = served(&lab, &api);
    let new = lab.volume();
    intend(&api, &new);
    lab.udevd().stop().unwrap();
    let number = old_disk.number();
    old_disk.detach().unwrap();
    let mut new_disk = lab.disk(&new.serial, MIB).unwrap();
    new_disk.attach_as(number).unwrap();
    // This follows from the kernel's event alone.
    wait(&api, &old, "lost");
    assert!(!lab.nbd_connects(&old.export()));
    assert_eq!(
        fs::canonicalize(old.link()).unwrap(),
        new_disk.node(),
        "the control: the trap is live, the old volume's link leads to the new volume's disk"
    );
    let shown = show(&api, &new);
    assert_eq!(shown["state"], "waiting", "the kernel's word alone publishes nothing: {shown:#}");
    lab.udevd().start().unwrap();
    lab.retrigger(&new_disk).unwrap();
    wait(&api, &new, "ready");
    lab.nbdcopy_equals(&new.export(), new_disk.file()).unwrap();
    assert_eq!(show(&api, &old)["state"], "lost");
}

/// Invariant 11: health reports a kernel event that udevd does not answer within 10 s.
#[test]
fn a_dead_udevd_is_silent_in_health_and_heard_again_when_it_is_back() {
    let (mut lab, _attachd, api) = up();
    let (_volume, _disk) = served(&lab, &api);
    assert_eq!(health(&api)["udevd"]["state"], "heard");
    lab.udevd().stop().unwrap();
    let late = lab.volume();
    intend(&api, &late);
    let mut events = api.events().unwrap();
    let mut disk = lab.disk(&late.serial, MIB).unwrap();
    disk.attach().unwrap();
    let said = |event: &serde_json::Value| event["reason"]["code"] == "UDEV_NOT_FINISHED";
    events.wait_for(said, SOON).unwrap();
    let sick = health(&api);
    assert_eq!((&sick["status"], &sick["udevd"]["state"]), (&"degraded".into(), &"silent".into()), "{sick:#}");
    assert_eq!(sick["problems"][0]["code"], "UDEVD_SILENT", "{sick:#}");
    lab.udevd().start().unwrap();
    lab.retrigger(&disk).unwrap();
    wait(&api, &late, "ready");
    assert_eq!(health(&api)["udevd"]["state"], "heard");
}

/// Invariant 11: a udevd that is held up at one disk is not silent, and the other disks are served.
#[test]
fn a_disk_at_which_udevd_is_held_up_is_named_and_others_are_served() {
    let (mut lab, _attachd, api) = up();
    let (held, later) = (lab.volume(), lab.volume());
    intend(&api, &held);
    intend(&api, &later);
    rustix::fs::mknodat(rustix::fs::CWD, GATE, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let rule = format!("ENV{{ID_SERIAL}}==\"{}\", PROGRAM==\"/bin/cat {GATE}\"\n", held.serial);
    lab.add_rules("58-held-up.rules", &rule).unwrap();
    let mut disk = lab.disk(&held.serial, MIB).unwrap();
    disk.attach().unwrap();
    let (other, _other_disk) = served(&lab, &api);

    wait_reason(&api, &held, "UDEV_NOT_FINISHED");
    let problem = || {
        let health = health(&api);
        let mut problems = health["problems"].as_array().unwrap().iter();
        let problem = problems.find(|problem| problem["code"].as_str().unwrap().starts_with("UDEVD_"));
        let problem = problem.unwrap_or_else(|| panic!("{health:#}"));
        (health["udevd"]["state"].clone(), problem["code"].clone(), problem["message"].to_string())
    };
    let named = || {
        let (state, code, message) = problem();
        assert_eq!((state, code), ("heard".into(), "UDEVD_HELD_UP".into()), "{message}");
        assert!(message.contains(&format!("the first: {} ", disk.node().display())), "{message}");
    };
    named();
    let metrics = api.get("/metrics").unwrap().text;
    assert!(!metrics.contains("attachd_udevd_held_up 0") && metrics.contains("attachd_udevd_silent 0"), "{metrics}");

    // The control: a udevd that sends no event of any disk is silent.
    lab.udevd().pause().unwrap();
    let mut later_disk = lab.disk(&later.serial, MIB).unwrap();
    later_disk.attach().unwrap();
    wait_reason(&api, &later, "UDEV_NOT_FINISHED");
    let (state, code, message) = problem();
    assert_eq!((state, code), ("silent".into(), "UDEVD_SILENT".into()), "{message}");
    lab.udevd().resume().unwrap();
    wait(&api, &later, "ready");
    named();

    // The waiting rule continues, and no later rule waits here.
    let gate = fs::File::options().write(true).open(GATE).unwrap();
    fs::remove_file(GATE).unwrap();
    drop(gate);
    wait(&api, &held, "ready");
    lab.nbdcopy_equals(&held.export(), disk.file()).unwrap();
    assert_eq!(show(&api, &other)["state"], "ready");
    lab.udevd().settle().unwrap();
    let after = health(&api)["problems"].to_string();
    assert!(!after.contains("UDEVD_"), "{after}");
}

/// A udev rule waits here until somebody writes.
const GATE: &str = "/run/lab/gate";

/// The daemon refuses to start if it would receive no events: without a udevd, libudev joins no group and reports no
/// error.
#[test]
fn a_daemon_that_would_receive_no_events_refuses_to_start() {
    let mut lab = Lab::builder().without_udevd().build().unwrap();
    lab.attachd_config(CONFIG).unwrap();
    lab.nbdkit_start().unwrap();
    let text = start_fails(&lab);
    assert!(text.contains("would hear nothing") && text.contains("systemd-udevd"), "{text}");
}

/// Repeated and reordered events of a real disk change nothing.
#[test]
fn a_replay_of_all_events_changes_nothing() {
    let (mut lab, attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let before = show(&api, &volume)["timeline"].as_array().unwrap().len();
    for _ in 0..5 {
        lab.retrigger(&disk).unwrap();
    }
    lab.udevd().settle().unwrap();
    attachd.signal(Signal::HUP).unwrap();
    resync(&api);
    let shown = show(&api, &volume);
    assert_eq!(shown["state"], "ready");
    assert_eq!(shown["timeline"].as_array().unwrap().len(), before, "{shown:#}");
}
