//! Disks that this host uses without a table that shows it, or starts to use later (invariant 7).
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::*;
use lab::{Api, Disk, Lab, Volume};
use serde_json::json;

/// Makes a disk of a volume that is not announced yet.
fn present(lab: &Lab, api: &Api, size: u64) -> (Volume, Disk) {
    let volume = lab.volume();
    let disk = lab.settled_disk(&volume.serial, size).unwrap();
    api.wait_disk(&disk, SOON).unwrap();
    (volume, disk)
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn path(node: &Path) -> &str {
    node.to_str().unwrap()
}

/// Returns whether attachd sees any use of the disk.
fn is_seen_used(api: &Api, volume: &Volume) -> bool {
    let devices = api.get("/api/v1/devices").unwrap().expect(200).unwrap();
    let devices = devices["devices"].as_array().unwrap().clone();
    let disk = devices.iter().find(|disk| disk["serial"] == volume.serial).unwrap_or_else(|| panic!("{devices:#?}"));
    !disk["uses"].as_array().unwrap().is_empty()
}

fn wait_refused(api: &Api, volume: &Volume) -> String {
    let refused = wait_reason(api, volume, "IN_USE_BY_HOST");
    assert_eq!(refused["state"], "refused", "{refused:#}");
    assert_eq!(refused["export"]["state"], "none", "{refused:#}");
    refused["reason"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_disk_that_is_mounted_in_another_namespace_is_refused_and_served_when_that_ends() {
    let (lab, _attachd, api) = up();
    for partition in [false, true] {
        let (volume, disk) = present(&lab, &api, 16 * MIB);
        let node = if partition { disk.add_partition(1, MIB, 8 * MIB).unwrap() } else { disk.node() };
        run("mkfs.ext4", &["-q", "-F", path(&node)]);
        let elsewhere = mounted_elsewhere(&node);
        intend(&api, &volume);
        let message = wait_refused(&api, &volume);
        assert!(message.contains(path(&disk.node())), "{message}");
        assert!(!is_seen_used(&api, &volume), "the control: no table shows it");
        assert!(!lab.nbd_connects(&volume.export()));
        drop(elsewhere);
        wait(&api, &volume, "ready");
        assert!(lab.nbd_connects(&volume.export()));
    }
}

/// The table of mounts names the data disk, and not the journal's disk.
#[test]
fn a_disk_that_holds_another_file_systems_journal_is_refused() {
    let (lab, _attachd, api) = up();
    let [(volume, journal), (_, data)] = [(); 2].map(|()| present(&lab, &api, 32 * MIB));
    run("mke2fs", &["-q", "-F", "-O", "journal_dev", path(&journal.node())]);
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-J", &format!("device={}", path(&journal.node())), path(&data.node())]);
    run("mount", &[path(&data.node()), "/mnt"]);
    intend(&api, &volume);
    wait_refused(&api, &volume);
    assert!(!is_seen_used(&api, &volume), "the control: no table shows it");
    run("umount", &["/mnt"]);
    wait(&api, &volume, "ready");
}

/// Serves a volume whose disk has a file system.
fn served_with_files(lab: &Lab, api: &Api) -> (Volume, Disk) {
    let (volume, disk) = present(lab, api, 16 * MIB);
    run("mkfs.ext4", &["-q", "-F", path(&disk.node())]);
    intend(api, &volume);
    wait(api, &volume, "ready");
    (volume, disk)
}

/// Without a resync and without an event of the disk.
#[test]
fn a_served_disk_that_is_mounted_is_revoked_at_once_and_served_again_when_that_ends() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served_with_files(&lab, &api);
    let (neighbour, _other) = served_with_files(&lab, &api);
    for _ in 0..3 {
        run("mount", &[path(&disk.node()), "/mnt"]);
        let message = wait_refused(&api, &volume);
        assert!(message.contains("mounted at /mnt"), "{message}");
        assert!(!lab.nbd_connects(&volume.export()));
        assert_eq!(show(&api, &neighbour)["state"], "ready", "the control");
        run("umount", &["/mnt"]);
        wait(&api, &volume, "ready");
    }
    let told = story(&show(&api, &neighbour));
    assert!(!told.iter().any(|step| step == "revoked"), "the control: {told:?}");
}

/// The loop driver claims nothing, so for the kernel the disk below is free.
#[test]
fn a_disk_under_a_loop_device_is_refused_before_and_after() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served_with_files(&lab, &api);
    let mut above = lab.loop_over(&disk.node());
    above.attach().unwrap();
    let message = wait_refused(&api, &volume);
    assert!(message.contains(&format!("under the loop device loop{}", above.number())), "{message}");
    let exclusively = rustix::fs::OFlags::EXCL.bits().cast_signed();
    let alone = std::fs::File::options().read(true).custom_flags(exclusively).open(disk.node());
    drop(alone.expect("the control: nobody has it open exclusively"));
    above.detach().unwrap();
    wait(&api, &volume, "ready");

    let (next, disk) = present(&lab, &api, MIB);
    let partition = disk.add_partition(1, 0, MIB / 2).unwrap();
    let mut above = lab.loop_over(&partition);
    above.attach().unwrap();
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": next.id })).unwrap().expect(409).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("under the loop device"), "{refused:#}");
}

/// Of all loop devices, only those with an event are read again (`src/device/loops.rs`).
#[test]
fn a_loop_device_that_comes_or_goes_is_seen_at_once_among_the_events_of_other_disks() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = present(&lab, &api, MIB);
    let mut other = lab.disk(&lab.volume().serial, MIB).unwrap();
    let mut above = lab.loop_over(&disk.node());
    let announced = || api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap();
    for _ in 0..20 {
        other.attach().unwrap();
        above.attach().unwrap();
        let refused = announced().expect(409).unwrap();
        assert!(refused["error"].as_str().unwrap().contains("under the loop device"), "{refused:#}");
        other.detach().unwrap();
        above.detach().unwrap();
        announced().expect(201).unwrap();
        api.delete(&format!("/api/v1/intents/{}?force=true", volume.id)).unwrap().expect(200).unwrap();
    }
}

/// Every change of the table wakes the daemon; its work for these changes is limited.
#[test]
fn a_host_that_mounts_a_thousand_file_systems_delays_no_request() {
    let (lab, attachd, api) = up();
    let (volume, disk) = served_with_files(&lab, &api);
    let processor = || ticks(attachd.pid().unwrap());
    let (begun, before) = (Instant::now(), processor());
    run("mount", &["-t", "tmpfs", "tmpfs", "/mnt"]);
    for n in 0..1000 {
        let place = format!("/mnt/{n}");
        std::fs::create_dir(&place).unwrap();
        rustix::mount::mount("tmpfs", &*place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        if n % 100 == 0 {
            let asked = Instant::now();
            assert_eq!(show(&api, &volume)["state"], "ready");
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        }
    }
    let place = "/mnt/disk";
    std::fs::create_dir(place).unwrap();
    run("mount", &[path(&disk.node()), place]);
    wait_refused(&api, &volume);
    let (took, used) = (begun.elapsed(), processor().saturating_sub(before));
    println!("a thousand mounts took {took:?}, of which attachd used a processor for {used:?}");
    assert!(used < took / 2 + Duration::from_millis(100), "{used:?} of {took:?}");
    run("umount", &["-l", "/mnt"]);
    wait(&api, &volume, "ready");
}

/// Returns the processor time of a process.
fn ticks(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
fn without_the_helper_nothing_new_is_served_and_what_is_served_stays_so() {
    let (lab, mut attachd, api, helper) = up_with_helper();
    let (before, old_disk) = served(&lab, &api);
    drop(helper);
    let (volume, disk) = attached(&lab, &api);
    let shown = wait_reason(&api, &volume, "HELPER_SILENT");
    assert_eq!((&shown["state"], &shown["export"]["state"]), (&json!("exporting"), &json!("none")), "{shown:#}");
    let sick = health(&api);
    assert_eq!((&sick["status"], &sick["helper"]["state"]), (&json!("degraded"), &json!("silent")), "{sick:#}");
    // The disk was shown to be free in this boot and is served already, so the helper is not asked, not even by a
    // start.
    attachd.kill9().unwrap();
    let attachd = start(&lab);
    let api = attachd.api();
    wait(&api, &before, "ready");
    lab.nbdcopy_equals(&before.export(), old_disk.file()).unwrap();
    assert!(!lab.nbd_connects(&volume.export()));
    let _helper = Helper::start();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// Lets the test answer requests about exclusive use; every other request succeeds.
fn helper_of_the_test() -> mpsc::Receiver<(String, UnixStream)> {
    let listener = UnixListener::bind(HELPER_SOCKET).unwrap();
    chown(HELPER_SOCKET, Some(lab::people::ATTACHD.id), None).unwrap();
    let (asked, asking) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            if line.starts_with("exclusive") {
                let _ = asked.send((line, stream));
            } else {
                let _ = stream.write_all(b"{\"ok\":true}\n");
            }
        }
    });
    asking
}

const USED: &[u8] = b"{\"ok\":false,\"code\":\"IN_USE_BY_HOST\",\"error\":\"somebody has it\"}\n";

fn free(diskseq: u64) -> String {
    json!({ "ok": true, "diskseq": diskseq }).to_string() + "\n"
}

/// An answer is about one disk at one moment.
#[test]
fn an_answer_about_another_disk_or_none_publishes_nothing() {
    let lab = with_nbdkit();
    let asking = helper_of_the_test();
    let attachd = start(&lab);
    let api = attachd.api();
    let (volume, disk) = attached(&lab, &api);
    let next = || asking.recv_timeout(SOON).unwrap();
    let (line, mut stream) = next();
    let (major, minor) = disk.devnum();
    assert_eq!(line, format!("exclusive {major}:{minor} {}\n", volume.serial));
    let seq = disk.diskseq().unwrap();
    for (answer, code) in [
        (free(seq + 1), "USE_UNKNOWN"),
        // An answer without a requested field counts as no answer.
        ("{\"ok\":true}\n".to_owned(), "HELPER_SILENT"),
        ("{\"ok\":false,\"code\":\"NOT_PRESENT\",\"error\":\"x\"}\n".to_owned(), "USE_UNKNOWN"),
        ("no answer\n".to_owned(), "HELPER_SILENT"),
        (String::from_utf8(USED.to_vec()).unwrap(), "IN_USE_BY_HOST"),
    ] {
        stream.write_all(answer.as_bytes()).unwrap();
        drop(stream);
        wait_reason(&api, &volume, code);
        assert!(!lab.nbd_connects(&volume.export()), "{answer}");
        stream = next().1;
    }
    stream.write_all(free(seq).as_bytes()).unwrap();
    drop(stream);
    wait(&api, &volume, "ready");
    assert!(asking.try_recv().is_err(), "once for each export");
    drop((disk, attachd));
}

/// However long the back-off is by now.
#[test]
fn a_refused_disk_is_tried_again_at_once_by_a_resync_and_when_another_disk_comes() {
    let lab = with_nbdkit();
    let asking = helper_of_the_test();
    let attachd = start(&lab);
    let api = attachd.api();
    let (volume, mut disk) = attached(&lab, &api);
    let used = || asking.recv_timeout(SOON).unwrap().1.write_all(USED).unwrap();
    // The back-off after this many attempts is 6.4 s.
    (0..6).for_each(|_| used());
    wait_refused(&api, &volume);
    let soon = Duration::from_secs(4);
    assert!(asking.try_recv().is_err(), "the control: it waits");
    resync(&api);
    asking.recv_timeout(soon).expect("a resync").1.write_all(USED).unwrap();
    wait_refused(&api, &volume);
    disk.detach().unwrap();
    wait(&api, &volume, "lost");
    disk.attach().unwrap();
    let (_, mut stream) = asking.recv_timeout(soon).expect("another disk");
    stream.write_all(free(disk.diskseq().unwrap()).as_bytes()).unwrap();
    wait(&api, &volume, "ready");
}
