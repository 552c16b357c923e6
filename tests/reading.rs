//! Invariant 13: "could not be read" never means "is not there" or "is not used". Text from other programs is bytes.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::*;
use lab::{Api, Disk};
use serde_json::{Value, json};

/// Puts another file or folder in place of one, for all processes in this lab, until this is dropped.
struct InPlace {
    path: PathBuf,
    instead: PathBuf,
}

impl InPlace {
    /// Puts a copy there that only root can read (udevd does); the daemon cannot.
    fn closed(path: &Path) -> Self {
        let instead = Self::aside(path);
        if path.is_dir() {
            fs::create_dir(&instead).unwrap();
        } else {
            fs::write(&instead, fs::read(path).unwrap()).unwrap();
        }
        fs::set_permissions(&instead, fs::Permissions::from_mode(0o500)).unwrap();
        Self::lay(path, instead)
    }

    /// Puts other bytes there.
    fn bytes(path: &Path, bytes: &[u8]) -> Self {
        let instead = Self::aside(path);
        fs::write(&instead, bytes).unwrap();
        Self::lay(path, instead)
    }

    fn change(&self, bytes: &[u8]) {
        fs::write(&self.instead, bytes).unwrap();
    }

    fn aside(path: &Path) -> PathBuf {
        Path::new("/run/lab").join(path.to_str().unwrap().replace('/', "-"))
    }

    fn lay(path: &Path, instead: PathBuf) -> Self {
        rustix::mount::mount_bind(&instead, path).unwrap();
        Self { path: path.to_owned(), instead }
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH).unwrap();
        let _ = fs::remove_file(&self.instead).or_else(|_| fs::remove_dir(&self.instead));
    }
}

fn attribute(disk: &Disk, name: &str) -> PathBuf {
    fs::canonicalize(disk.sysfs()).unwrap().join(name)
}

/// Returns what health reports about disks that cannot be read.
fn unread(api: &Api) -> Option<String> {
    let health = health(api);
    let problems = health["problems"].as_array().unwrap().iter();
    let told = problems.filter(|problem| problem["code"] == "DISKS_UNREAD").map(|problem| &problem["message"]);
    told.map(|message| message.as_str().unwrap().to_owned()).next()
}

/// Returns why the last read of this disk failed.
fn why_unread(api: &Api, disk: &Disk) -> Option<String> {
    api.disk(disk).unwrap()?["unread"].as_str().map(str::to_owned)
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < SOON, "{what}");
        std::thread::yield_now();
    }
}

fn is_unread(api: &Api) -> String {
    eventually("health does not say that a disk cannot be read", || unread(api))
}

fn is_read(api: &Api) {
    eventually("the disk is not read again by itself", || unread(api).is_none().then_some(()));
}

fn was_revoked(volume: &Value) -> bool {
    story(volume).contains(&"revoked".to_owned())
}

/// Whatever cannot be read of a served disk: it stays served, health reports it, and it ends by itself.
#[test]
fn a_served_disk_that_cannot_be_read_stays_served_is_reported_and_is_read_again() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    for name in ["diskseq", "size", "ro", "holders", "loop/backing_file"] {
        let closed = InPlace::closed(&attribute(&disk, name));
        lab.retrigger(&disk).unwrap();
        // Health names one of these disks. With this attribute unreadable, no other disk with an event in the
        // meantime can be judged.
        is_unread(&api);
        eventually("the disk is not said to be unread", || {
            why_unread(&api, &disk)?.contains("Permission denied").then_some(())
        });
        assert!(lab.nbd_connects(&volume.export()), "{name}");
        resync(&api);
        let shown = show(&api, &volume);
        assert!(shown["state"] == "ready" && !was_revoked(&shown), "{name}: {shown:#}");
        drop(closed);
        is_read(&api);
    }
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// The control of the rule above: a disk that is gone is revoked at once, even if its last read failed.
#[test]
fn a_pulled_disk_is_revoked_also_when_it_could_not_be_read_before() {
    let (lab, _attachd, api) = up();
    for name in ["size", "diskseq"] {
        let (volume, mut disk) = served(&lab, &api);
        let closed = InPlace::closed(&attribute(&disk, name));
        lab.retrigger(&disk).unwrap();
        is_unread(&api);
        assert_eq!(show(&api, &volume)["state"], "ready");
        // The replaced attribute belongs to a disk that is gone, so there is nothing to restore.
        std::mem::forget(closed);
        disk.detach().unwrap();
        assert_eq!(wait(&api, &volume, "lost")["reason"]["code"], "DEVICE_GONE", "{name}");
        assert!(!lab.nbd_connects(&volume.export()));
        is_read(&api);
    }
}

/// The daemon knows only what is on record, which in this boot is this very disk.
#[test]
fn a_start_during_which_disks_cannot_be_read_leaves_them_served() {
    let (lab, mut attachd, _api) = up();
    // Without the sequence number it cannot be proven again that the server serves this very disk.
    for (name, stands) in [("loop/backing_file", "ready"), ("diskseq", "exporting")] {
        let api = attachd.api();
        let (volume, disk) = served(&lab, &api);
        let (gone, mut gone_disk) = served(&lab, &api);
        attachd.kill9().unwrap();
        let closed = InPlace::closed(&attribute(&disk, name));
        gone_disk.detach().unwrap();
        attachd = start(&lab);
        let api = attachd.api();
        is_unread(&api);
        let shown = wait(&api, &volume, stands);
        assert!(!was_revoked(&shown) && lab.nbd_connects(&volume.export()), "{name}: {shown:#}");
        assert_eq!(wait(&api, &gone, "lost")["reason"]["code"], "DEVICE_GONE", "the control: {name}");
        drop(closed);
        is_read(&api);
        wait(&api, &volume, "ready");
        lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    }
}

#[test]
fn nothing_is_published_while_the_hosts_uses_cannot_be_read_and_everything_later() {
    let (lab, _attachd, api) = up();
    let (kept, _kept_disk) = served(&lab, &api);
    let closed = InPlace::closed(Path::new("/proc/swaps"));
    let (volume, disk) = attached(&lab, &api);
    let said = eventually("the new disk is not told", || why_unread(&api, &disk));
    assert!(said.contains("what this host uses"), "{said}");
    is_unread(&api);
    assert_eq!(show(&api, &volume)["state"], "waiting");
    assert!(!lab.nbd_connects(&volume.export()) && lab.nbd_connects(&kept.export()));
    drop(closed);
    // There is no event, and nobody asks for a resync.
    wait(&api, &volume, "ready");
    is_read(&api);
    assert!(!was_revoked(&show(&api, &kept)));
}

/// A name is bytes: one that is not UTF-8 makes no table unreadable and hides no disk in it.
#[test]
fn a_mount_point_with_any_bytes_in_its_name_is_found_and_hides_no_other() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let mine = lab.volume();
    let used = lab.settled_disk(&mine.serial, 8 * MIB).unwrap();
    api.wait_disk(&used, SOON).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), used.node().as_os_str()]);
    let place = lab.dir().join(OsStr::from_bytes(b"pok\xe9mon"));
    fs::create_dir(&place).unwrap();
    run("mount", &[used.node().as_os_str(), place.as_os_str()]);
    let table = fs::read("/proc/thread-self/mountinfo").unwrap();
    assert!(String::from_utf8(table).is_err(), "the control: the trap is live");
    lab.retrigger(&disk).unwrap();
    resync(&api);
    let shown = show(&api, &volume);
    assert!(shown["state"] == "ready" && !was_revoked(&shown), "{shown:#}");
    assert_eq!(unread(&api), None);
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": mine.id })).unwrap().expect(409).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("pok\u{fffd}mon"), "{refused:#}");
    run("umount", &[place.as_os_str()]);
    intend(&api, &mine);
}

/// The kernel's table is forged, because real swap would affect the whole machine.
#[test]
fn a_disk_the_host_swaps_to_is_refused_also_beside_a_swap_file_of_any_bytes() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    let disk = lab.settled_disk(&volume.serial, MIB).unwrap();
    api.wait_disk(&disk, SOON).unwrap();
    let heading: &[u8] = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
    let file: &[u8] = b"/srv/sw\xe4p                              file\t\t1024\t\t0\t\t-2\n";
    let line = format!("{}                              partition\t1024\t\t0\t\t-3\n", disk.node().display());
    let swaps = InPlace::bytes(Path::new("/proc/swaps"), &[heading, file, line.as_bytes()].concat());
    let refused = api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap().expect(409).unwrap();
    assert_eq!(refused["code"], "IN_USE_BY_HOST");
    assert!(refused["error"].as_str().unwrap().contains("swap"), "{refused:#}");
    // The control: the same without the disk's line.
    swaps.change(&[heading, file].concat());
    intend(&api, &volume);
}

#[test]
fn account_names_with_any_bytes_do_not_hide_attachds_own_accounts() {
    let lab = with_nbdkit();
    for (path, line) in
        [("/etc/group", &b"ren\xe9:x:4711:\n"[..]), ("/etc/passwd", b"rene:x:4711:4711:Ren\xe9:/:/bin/sh\n")]
    {
        let whole = [line, &fs::read(path).unwrap()].concat();
        File::create(path).unwrap().write_all(&whole).unwrap();
        assert!(fs::read_to_string(path).is_err(), "the control: the trap is live");
    }
    let _helper = Helper::start();
    let attachd = start(&lab);
    let api = attachd.api();
    let (volume, _disk) = announced_late(&lab, &api);
    wait(&api, &volume, "ready");
    assert_eq!(health(&api)["helper"]["state"], "answers");
}

/// Invariant 15: the checks that attachd makes for callers are limited, however many callers there are.
#[test]
fn simultaneous_checks_are_combined_and_take_few_descriptors() {
    const VOLUMES: usize = 24;
    const CALLERS: usize = 4;
    /// The limit of descriptors for all checks together, without the server's list.
    const BOUND: usize = 16;
    let (lab, attachd, api) = up();
    let served: Vec<_> = (0..VOLUMES).map(|_| served(&lab, &api)).collect();
    let open = || fs::read_dir(format!("/proc/{}/fd", attachd.pid().unwrap())).unwrap().count();
    let before = open();
    // The server does not answer, so that all simultaneous handshakes can be counted.
    let server = rustix::process::Pid::from_raw(lab.nbdkit_pid().unwrap().cast_signed()).unwrap();
    let signal = |signal| rustix::process::kill_process(server, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    let (answers, peak) = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| api.get("/api/v1/exports?check=true").unwrap().expect(200).unwrap());
        let asked: Vec<_> = (0..CALLERS).map(|_| ask()).collect();
        let (mut peak, mut stopped) = (0, true);
        while asked.iter().any(|caller| !caller.is_finished()) {
            peak = peak.max(open());
            // The number of descriptors would not do: `before` may count one that was just being closed.
            if stopped && connections_to_the_server() >= BOUND {
                signal(rustix::process::Signal::CONT);
                stopped = false;
            }
            std::thread::yield_now();
        }
        assert!(!stopped, "the control: many were asked at one time ({before}, {peak})");
        (asked.into_iter().map(|caller| caller.join().unwrap()).collect::<Vec<_>>(), peak)
    });
    assert!(peak <= before + CALLERS + BOUND + 4, "{peak} descriptors, {before} before");
    let all = |answer: &Value| {
        let checked = answer["checked"].as_array().unwrap();
        checked.iter().filter(|export| export["openable"] == true).count() == VOLUMES
    };
    assert!(answers.iter().any(all), "{answers:#?}");
    drop(served);
}

/// Counts the connections that are open at attachd's end, in the kernel's table.
fn connections_to_the_server() -> usize {
    /// Port 10809.
    const PORT: &str = ":2A39";
    /// The state `TCP_ESTABLISHED`.
    const ESTABLISHED: &str = "01";
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[2].ends_with(PORT) && fields[3] == ESTABLISHED
    };
    table.lines().filter(is_one).count()
}

fn run(program: &str, arguments: &[&OsStr]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}
