//! The folders and files that attachd is pointed to. Foreign files are left alone, attachd's own are watched, and
//! nothing that others put there stops attachd.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use lab::{Api, AttachdOptions, people};
use serde_json::{Value, json};

const CLAIMS: &str = "/var/lib/attachd/claims";
const EXPORTS: &str = "/run/attachd/exports";
const PID_FILE: &str = "/run/attachd-nbdkit/nbdkit.pid";

fn names(folder: &str) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Makes a folder as the package makes attachd's folders.
fn folder(path: &str) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    own(path);
}

fn own(path: impl AsRef<Path>) {
    chown(path, Some(people::ATTACHD.id), Some(people::ATTACHD.id)).unwrap();
}

fn problem(api: &Api, code: &str) -> Option<Value> {
    health(api)["problems"].as_array().unwrap().iter().find(|problem| problem["code"] == code).cloned()
}

/// Waits until health has or no longer has a problem. No event reports a change in health.
fn wait_problem(api: &Api, code: &str, there: bool) -> Value {
    let begun = Instant::now();
    loop {
        let problem = problem(api, code);
        if problem.is_some() == there {
            return problem.unwrap_or_default();
        }
        assert!(begun.elapsed() < SOON, "{code}: {problem:?}\n{:#}", health(api));
        thread::yield_now();
    }
}

/// Returns whether `attachctl exports` succeeds.
fn ctl_exports() -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_attachctl")).arg("exports").output().unwrap();
    output.status.success()
}

/// Returns whether `check-config` succeeds, and its messages.
fn check_config() -> (bool, String) {
    let output = Command::new(bin()).arg("check-config").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Invariant 12. At the start attachd must not delete the files in a folder that a setting names.
#[test]
fn a_setting_that_names_a_folder_with_foreign_files_is_refused_and_they_stay() {
    let (lab, mut attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    attachd.terminate().unwrap();
    let (other, wide) = ("/var/lib/attachd/other", "/var/lib/attachd/wide");
    folder(other);
    folder(wide);
    fs::set_permissions(wide, fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["precious", "b3bb93101b594f6297e8.txt"] {
        fs::write(Path::new(other).join(name), "").unwrap();
        own(Path::new(other).join(name));
    }
    symlink(other, "/var/lib/attachd/link").unwrap();
    let file = "/var/lib/attachd/letter";
    fs::write(file, "to somebody").unwrap();
    own(file);
    let before = (names(other), names("/var/lib/attachd"), names("/usr"));
    for (section, key, place, words) in [
        ("store", "claims", other, "other things already: b3bb93101b594f6297e8.txt, precious"),
        ("store", "claims", "/var/lib/attachd", "lie one in the other"),
        ("store", "claims", "/usr", "belongs to the user 0, not to 61801"),
        ("store", "claims", wide, "others may write it"),
        ("store", "claims", "/var/lib/attachd/link", "it is a link, not a folder"),
        ("store", "claims", file, "it is a file, not a folder"),
        ("store", "path", file, "it is not a database"),
        ("store", "path", "/var/lib/attachd/link/precious", "it is not a database"),
        ("export", "folder", other, "other things already"),
        ("export", "folder", "/usr", "belongs to the user 0"),
        ("export", "folder", CLAIMS, "are the same"),
        ("api", "socket", file, "it is a file, not a socket"),
        ("helper", "socket", file, "it is a file, not a socket"),
        ("device", "host_disks", other, "belongs to the user 61801, not to 0"),
    ] {
        if place == "/var/lib/attachd/link/precious" {
            fs::write("/var/lib/attachd/other/precious", "no database").unwrap();
        }
        let device = if section == "device" { String::new() } else { CONFIG.to_owned() };
        let schemes = if section == "device" { "schemes = [\"loop\"]\n" } else { "" };
        lab.attachd_config(&format!("{device}[{section}]\n{schemes}{key} = \"{place}\"\n")).unwrap();
        let (valid, said) = check_config();
        assert!(!valid && said.contains(words), "{key} = {place}: check-config says {said}");
        let said = start_fails(&lab);
        assert!(said.contains(words), "{key} = {place}: the start says {said}");
    }
    let after = (names(other), names("/var/lib/attachd"), names("/usr"));
    assert_eq!(before, after);
    assert_eq!(fs::read_to_string(file).unwrap(), "to somebody");

    // The controls: an empty folder of attachd's is accepted, and the store is unchanged.
    folder("/var/lib/attachd/mine");
    lab.attachd_config(&format!("{CONFIG}[store]\nclaims = \"/var/lib/attachd/mine\"\n")).unwrap();
    assert_eq!(check_config(), (true, String::new()));
    let attachd = start(&lab);
    assert_eq!(names("/var/lib/attachd/mine"), [&*volume.serial]);
    assert_eq!(show(&attachd.api(), &volume)["state"], "waiting");
}

/// Invariant 12: only files with a claim's name and kind are touched.
#[test]
fn a_foreign_file_among_the_claims_is_reported_and_left_alone_and_an_unwanted_claim_is_removed() {
    let (lab, mut attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    let (unwanted, of_root, link) = (lab.volume().serial, lab.volume().serial, lab.volume());
    let at = |name: &str| Path::new(CLAIMS).join(name);
    fs::write(at("note.txt"), "of somebody").unwrap();
    fs::write(at(&of_root), "").unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write("/var/lib/attachd/letter", "to somebody").unwrap();
    own("/var/lib/attachd/letter");
    symlink("/var/lib/attachd/letter", at(&link.serial)).unwrap();
    lab.claim(&unwanted).unwrap();
    for round in ["a resync", "a start"] {
        resync(&api);
        let told = problem(&api, "FOREIGN_CLAIMS").unwrap();
        let told = told["message"].as_str().unwrap();
        for name in ["note.txt", "folder", &of_root, &link.serial] {
            assert!(told.contains(name) && at(name).symlink_metadata().is_ok(), "{round}, {name}: {told}");
        }
        assert!(!at(&unwanted).exists(), "{round}: the control");
        attachd.terminate().unwrap();
        lab.claim(&unwanted).unwrap();
        attachd = start(&lab);
    }
    // A claim is not written through a symlink.
    let reply = api.post("/api/v1/intents", &json!({ "volume_id": link.id })).unwrap().expect(503).unwrap();
    assert_eq!(reply["code"], "CLAIMS_FOLDER");
    assert!(reply["error"].as_str().unwrap().contains("it is a link"), "{reply:#}");
    assert_eq!(fs::read_to_string("/var/lib/attachd/letter").unwrap(), "to somebody");
    fs::remove_file(at(&link.serial)).unwrap();
    intend(&api, &link);
}

/// attachd must not remove a socket at which another program listens, because nothing would reach that program any
/// more.
#[test]
fn a_socket_of_another_program_is_left_alone_and_a_dead_one_of_attachd_is_replaced() {
    let (lab, mut attachd, _api) = up();
    attachd.kill9().unwrap();
    assert!(Path::new(lab::attachd::SOCKET).exists(), "the control: a dead one is there");
    let mut attachd = start(&lab);
    attachd.terminate().unwrap();
    let _ = fs::remove_file(lab::attachd::SOCKET);
    let other = UnixListener::bind(lab::attachd::SOCKET).unwrap();
    own(lab::attachd::SOCKET);
    let said = start_fails(&lab);
    assert!(said.contains("another program listens there"), "{said}");
    std::os::unix::net::UnixStream::connect(lab::attachd::SOCKET).unwrap();
    drop(other);
    start(&lab);
}

/// A volume or a request that waits for a step must not wait for ever if the step's task panics.
#[test]
fn a_step_whose_task_panics_counts_as_failed() {
    let lab = with_nbdkit();
    let points = "step.look,step.scan,step.admit,step.claims,step.record,step.exclusive,step.probe,step.clients,step.leave,step.unclaim,\
                  claim.write";
    let env = vec![("ATTACHD_PANIC_AT".to_owned(), points.to_owned())];
    let attachd = lab.attachd_start(bin(), &AttachdOptions { env, ..Default::default() }).unwrap();
    let (api, volume) = (attachd.api(), lab.volume());
    let post = || api.post("/api/v1/intents", &json!({ "volume_id": volume.id })).unwrap();
    let refused = post().expect(503).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("a defect of attachd (step.admit"), "{refused:#}");
    let refused = post().expect(503).unwrap();
    assert_eq!(refused["code"], "CLAIMS_FOLDER", "{refused:#}");
    assert_eq!(api.get("/api/v1/intents").unwrap().expect(200).unwrap()["count"], 0);
    intend(&api, &volume);
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    let failed = api.post("/api/v1/resync", &json!({})).unwrap();
    assert_ne!(failed.status, 200, "the list of disks: {}", failed.text);
    resync(&api);
    assert_eq!(show(&api, &volume)["state"], "ready");
    let path = format!("/api/v1/intents/{}", volume.id);
    assert_eq!(api.delete(&path).unwrap().json["code"], "CLIENTS_UNKNOWN");
    assert_eq!(api.delete(&path).unwrap().json["code"], "STORE_FAILED");
    wait(&api, &volume, "ready");
    api.delete(&path).unwrap().expect(200).unwrap();
    assert_eq!(api.get(&path).unwrap().status, 404);
    // The claim was left, because that step panicked too.
    resync(&api);
    assert_eq!(names(CLAIMS), Vec::<String>::new());
    let said = attachd.stderr_text();
    for point in points.split(',').filter(|point| point.starts_with("step.")) {
        assert!(
            said.contains(&format!("a task has panicked: asked for by ATTACHD_PANIC_AT={point}")),
            "{point}: {said}"
        );
    }
}

/// Without a resync; and nothing is made in a folder that is not attachd's.
#[test]
fn a_missing_or_foreign_folder_of_exports_is_reported_at_once_and_recovers_by_itself() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    assert!(ctl_exports(), "the control");
    let other = "/run/other";
    fs::create_dir(other).unwrap();
    fs::set_permissions(other, fs::Permissions::from_mode(0o777)).unwrap();
    let away = "/run/exports.away";
    let ways: [(&str, fn()); 4] = [
        ("is missing", || fs::rename(EXPORTS, "/run/exports.away").unwrap()),
        // The exchange is one step. Otherwise the folder would be missing in between, and the test could see that.
        ("it is a link, not a folder", || {
            symlink("/run/other", "/run/exports.away").unwrap();
            exchange("/run/exports.away", EXPORTS);
        }),
        ("it is a file, not a folder", || {
            fs::write("/run/exports.away", "").unwrap();
            exchange("/run/exports.away", EXPORTS);
        }),
        ("belongs to the user 65534", || {
            fs::create_dir("/run/exports.away").unwrap();
            fs::set_permissions("/run/exports.away", fs::Permissions::from_mode(0o777)).unwrap();
            chown("/run/exports.away", Some(65534), None).unwrap();
            exchange("/run/exports.away", EXPORTS);
        }),
    ];
    for (words, way) in ways {
        way();
        let stuck = wait_reason(&api, &volume, "EXPORT_FOLDER");
        assert_eq!(stuck["state"], "exporting", "{words}");
        assert!(stuck["reason"]["message"].as_str().unwrap().contains(words), "{stuck:#}");
        let told = wait_problem(&api, "EXPORT_FOLDER", true);
        assert!(told["message"].as_str().unwrap().contains(words), "{told:#}");
        assert!(told["hint"].as_str().unwrap().contains("systemd-tmpfiles --create"), "{told:#}");
        assert!(!lab.nbd_connects(&volume.export()), "{words}: the control, nobody is let in");
        assert!(!ctl_exports(), "{words}");
        assert!(names(other).is_empty(), "{words}: {:?}", names(other));
        if Path::new(away).exists() {
            assert!(names(away).is_empty(), "what was made there is taken away where it is now");
            fs::remove_dir(away).unwrap();
        }
        let _ = fs::remove_file(EXPORTS);
        let _ = fs::remove_dir(EXPORTS);
        folder(EXPORTS);
        wait(&api, &volume, "ready");
        lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
        assert!(ctl_exports() && problem(&api, "EXPORT_FOLDER").is_none(), "{words}");
    }
}

/// A mount causes no event, so the next check notices it.
#[test]
fn nothing_is_made_in_a_file_system_mounted_over_the_folder_of_exports() {
    let (lab, _attachd, api) = up();
    let owner = format!("mode=0755,uid={0},gid={0}", people::ATTACHD.id);
    let (volume, _disk) = served(&lab, &api);
    run("mount", &["-t", "tmpfs", "-o", &owner, "tmpfs", EXPORTS]);
    resync(&api);
    let told = wait_problem(&api, "EXPORT_FOLDER", true);
    assert!(told["message"].as_str().unwrap().contains("on another file system"), "{told:#}");
    wait_reason(&api, &volume, "EXPORT_FOLDER");
    assert!(names(EXPORTS).is_empty());
    run("umount", &[EXPORTS]);
    wait(&api, &volume, "ready");
    assert_eq!(names(EXPORTS), [volume.export()]);
}

/// Without a resync.
#[test]
fn a_link_removed_or_changed_by_hand_is_made_again_and_an_added_one_is_removed() {
    let (lab, _attachd, api) = up();
    let (volume, disk) = served(&lab, &api);
    let link = Path::new(EXPORTS).join(volume.export());
    let ways: [fn(&Path); 3] = [
        |link| fs::remove_file(link).unwrap(),
        |link| fs::rename(link, "/run/taken").unwrap(),
        |link| {
            symlink("/dev/null", "/run/attachd/swapped").unwrap();
            fs::rename("/run/attachd/swapped", link).unwrap();
        },
    ];
    for way in ways {
        let mut events = api.events().unwrap();
        way(&link);
        events.wait_for(|event| event["event"] == "vanished" && event["state"] == "exporting", SOON).unwrap();
        events.wait_for(|event| event["state"] == "ready", SOON).unwrap();
        lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
    }
    // Links that attachd did not make: of an unknown volume, and of one that must not be served.
    let waiting = lab.volume();
    intend(&api, &waiting);
    for stray in [&lab.volume(), &waiting] {
        lab.publish(&stray.export(), &disk.link()).unwrap();
        let begun = Instant::now();
        while Path::new(EXPORTS).join(stray.export()).symlink_metadata().is_ok() {
            assert!(begun.elapsed() < SOON, "{}", stray.export());
            thread::yield_now();
        }
    }
    assert_eq!(show(&api, &volume)["state"], "ready", "the control");
    // attachd's own changes are not reported as foreign.
    let before = show(&api, &volume);
    withdraw(&api, &waiting);
    assert_eq!(story(&before), story(&show(&api, &volume)));
    assert_eq!(story(&before).iter().filter(|step| *step == "vanished").count(), 3);
}

/// Without a resync.
#[test]
fn removed_claims_come_back_and_an_unusable_folder_of_claims_is_reported_and_recovers() {
    let (lab, _attachd, api) = up();
    let volume = lab.volume();
    intend(&api, &volume);
    let claim = Path::new(CLAIMS).join(&volume.serial);
    let back = || {
        let begun = Instant::now();
        while !claim.is_file() {
            assert!(begun.elapsed() < SOON, "{:#}", health(&api));
            thread::yield_now();
        }
    };
    fs::remove_file(&claim).unwrap();
    back();
    // The parent folder is attachd's, so attachd makes the folder again.
    fs::rename(CLAIMS, "/var/lib/attachd/away").unwrap();
    back();
    assert!(problem(&api, "CLAIMS_FOLDER").is_none());
    // The exchange is one step. While nothing is there, attachd would make a folder.
    let ways: [(&str, fn()); 3] = [
        ("it is a file, not a folder", || {
            fs::write("/var/lib/attachd/file", "").unwrap();
            exchange("/var/lib/attachd/file", CLAIMS);
        }),
        ("it is a link, not a folder", || {
            symlink("/run/other", "/var/lib/attachd/link").unwrap();
            exchange("/var/lib/attachd/link", CLAIMS);
        }),
        ("belongs to the user 0", || {
            chown(CLAIMS, Some(0), Some(0)).unwrap();
            fs::set_permissions(CLAIMS, fs::Permissions::from_mode(0o555)).unwrap();
        }),
    ];
    fs::create_dir("/run/other").unwrap();
    own("/run/other");
    for (words, way) in ways {
        way();
        let told = wait_problem(&api, "CLAIMS_FOLDER", true);
        assert!(told["message"].as_str().unwrap().contains(words), "{told:#}");
        assert_eq!(health(&api)["status"], "unhealthy");
        let refused =
            api.post("/api/v1/intents", &json!({ "volume_id": lab.volume().id })).unwrap().expect(503).unwrap();
        assert_eq!(refused["code"], "CLAIMS_FOLDER", "{refused:#}");
        assert_eq!(api.get("/api/v1/intents").unwrap().expect(200).unwrap()["count"], 1);
        assert!(names("/run/other").is_empty(), "{words}: nothing is made there");
        if words.contains("user") {
            own(CLAIMS);
            fs::set_permissions(CLAIMS, fs::Permissions::from_mode(0o755)).unwrap();
        } else {
            fs::remove_file(CLAIMS).unwrap();
        }
        wait_problem(&api, "CLAIMS_FOLDER", false);
        back();
    }
    let mut disk = lab.disk(&volume.serial, MIB).unwrap();
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
}

/// The same for the files that nbd-server reads.
#[test]
fn a_section_that_is_removed_by_hand_is_written_again() {
    let lab = lab::Lab::new();
    let _server = signalled(&lab);
    let _helper = Helper::start();
    let attachd = start(&lab);
    let api = attachd.api();
    let (volume, disk) = served(&lab, &api);
    let section = Path::new(lab::nbd_server::FOLDER).join(format!("{}.conf", volume.export()));
    let text = fs::read_to_string(&section).unwrap();
    for half in [false, true] {
        if half {
            fs::write(&section, text.replace("fua = true\n", "")).unwrap();
        } else {
            fs::remove_file(&section).unwrap();
        }
        let begun = Instant::now();
        while fs::read_to_string(&section).ok().as_ref() != Some(&text) {
            assert!(begun.elapsed() < SOON);
            thread::yield_now();
        }
    }
    wait(&api, &volume, "ready");
    lab.nbdcopy_equals(&volume.export(), disk.file()).unwrap();
}

/// The daemon must not block on a fifo in place of the pid file, nor read a file without an end.
#[test]
fn any_file_in_place_of_the_pid_file_blocks_the_daemon_from_nothing() {
    let (lab, attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    let pid = fs::read(PID_FILE).unwrap();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", attachd.pid().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    let ways: [(&str, fn()); 3] = [
        ("larger than 64 bytes", || fs::write("/run/attachd-nbdkit/new", vec![b'1'; 100 << 20]).unwrap()),
        ("a device or a fifo", || run("mkfifo", &["/run/attachd-nbdkit/new"])),
        ("it is a link", || symlink("/dev/zero", "/run/attachd-nbdkit/new").unwrap()),
    ];
    for (words, way) in ways {
        way();
        fs::rename("/run/attachd-nbdkit/new", PID_FILE).unwrap();
        let down = wait_reason(&api, &volume, "BACKEND_DOWN");
        assert!(down["reason"]["message"].as_str().unwrap().contains(words), "{words}: {down:#}");
        disk.detach().unwrap();
        wait(&api, &volume, "lost");
        assert!(names(EXPORTS).is_empty(), "{words}: a pulled disk is revoked meanwhile");
        disk.attach().unwrap();
        fs::remove_file(PID_FILE).unwrap();
        fs::write(PID_FILE, &pid).unwrap();
        chown(PID_FILE, Some(people::NBD.id), None).unwrap();
        wait(&api, &volume, "ready");
    }
    assert!(memory() < before + 20_000, "{} KiB, before {before} KiB", memory());
}

/// A listing must not compare each name with all others on the runtime's thread.
#[test]
fn a_hundred_thousand_foreign_files_delay_no_request_and_are_counted() {
    let (lab, _attachd, api) = up();
    let (volume, mut disk) = served(&lab, &api);
    for n in 0..100_000 {
        fs::write(format!("{EXPORTS}/foreign-file-number-{n:06}"), "").unwrap();
    }
    // Also without a resync.
    wait_problem(&api, "FOREIGN_EXPORTS", true);
    let path = format!("/api/v1/intents/{}", volume.id);
    for round in 0..3 {
        let asked = thread::spawn(|| resync(&Api::new(lab::attachd::SOCKET)));
        let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
        while !asked.is_finished() {
            let begun = Instant::now();
            api.get(&path).unwrap().expect(200).unwrap();
            slowest = slowest.max(begun.elapsed());
        }
        asked.join().unwrap();
        // On a busy machine everything is slow, which must not be taken for a wait for the resync.
        let all = begun.elapsed();
        assert!(slowest < Duration::from_millis(500).max(all / 2), "round {round}: {slowest:?} of {all:?}");
    }
    let answer = api.get("/api/v1/health").unwrap();
    assert!(answer.text.len() < 10_000, "{} bytes", answer.text.len());
    let told = problem(&api, "FOREIGN_EXPORTS").unwrap();
    let told = told["message"].as_str().unwrap();
    assert!(told.contains("foreign-file-number-000009 and 99990 more"), "the control: {told}");
    disk.detach().unwrap();
    wait(&api, &volume, "lost");
    for n in 0..100_000 {
        fs::remove_file(format!("{EXPORTS}/foreign-file-number-{n:06}")).unwrap();
    }
    wait_problem(&api, "FOREIGN_EXPORTS", false);
    disk.attach().unwrap();
    wait(&api, &volume, "ready");
}

fn exchange(one: &str, other: &str) {
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, one, here, other, rustix::fs::RenameFlags::EXCHANGE).unwrap();
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
