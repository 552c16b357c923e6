//! The folders and files that attachd is pointed to: what is somebody else's is left alone, what is its own is watched, and
//! what others put there keeps it from nothing.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use common::*;
use lab::{Api, AttachdOptions, people};
use serde_json::{Value, json};

const CLAIMS: &str = "/var/lib/attachd/claims";

fn names(folder: &str) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// A folder of attachd's, as the package makes them.
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

/// What `check-config` says, and whether it is content.
fn check_config() -> (bool, String) {
    let output = Command::new(bin()).arg("check-config").output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Invariant 12. Everything in a folder that a setting names was deleted at the start.
#[test]
fn a_setting_that_names_a_folder_of_other_things_is_refused_and_they_stay() {
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

    // The controls: an empty folder of its own is taken, and the store was not touched.
    folder("/var/lib/attachd/mine");
    lab.attachd_config(&format!("{CONFIG}[store]\nclaims = \"/var/lib/attachd/mine\"\n")).unwrap();
    assert_eq!(check_config(), (true, String::new()));
    let attachd = start(&lab);
    assert_eq!(names("/var/lib/attachd/mine"), [&*volume.serial]);
    assert_eq!(show(&attachd.api(), &volume)["state"], "waiting");
}

/// Invariant 12: by name and by kind.
#[test]
fn a_strangers_file_among_the_claims_is_told_and_left_alone_and_a_claim_nobody_wants_goes() {
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
    // A claim is not written through a link.
    let reply = api.post("/api/v1/intents", &json!({ "volume_id": link.id })).unwrap().expect(503).unwrap();
    assert_eq!(reply["code"], "CLAIMS_FOLDER");
    assert!(reply["error"].as_str().unwrap().contains("it is a link"), "{reply:#}");
    assert_eq!(fs::read_to_string("/var/lib/attachd/letter").unwrap(), "to somebody");
    fs::remove_file(at(&link.serial)).unwrap();
    intend(&api, &link);
}

/// A socket of somebody else's was removed, and its program was never asked again.
#[test]
fn a_socket_that_somebody_else_answers_at_is_left_alone_and_a_dead_one_of_attachds_own_is_replaced() {
    let (lab, mut attachd, _api) = up();
    attachd.kill9().unwrap();
    assert!(Path::new(lab::attachd::SOCKET).exists(), "the control: a dead one is there");
    let mut attachd = start(&lab);
    attachd.terminate().unwrap();
    let _ = fs::remove_file(lab::attachd::SOCKET);
    let other = std::os::unix::net::UnixListener::bind(lab::attachd::SOCKET).unwrap();
    own(lab::attachd::SOCKET);
    let said = start_fails(&lab);
    assert!(said.contains("another program listens there"), "{said}");
    std::os::unix::net::UnixStream::connect(lab::attachd::SOCKET).unwrap();
    drop(other);
    start(&lab);
}

/// A volume, or a request, that waits for a step is not to wait for ever when the step's task breaks off.
#[test]
fn a_step_whose_task_breaks_off_comes_back_as_a_failure() {
    let lab = with_nbdkit();
    let points = "step.look,step.scan,step.admit,step.claims,step.record,step.exclusive,step.probe,step.clients,step.withdraw,step.unclaim,\
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
    // Its claim was left, for that step broke off too.
    resync(&api);
    assert_eq!(names(CLAIMS), Vec::<String>::new());
    let said = attachd.stderr_text();
    for point in points.split(',').filter(|point| point.starts_with("step.")) {
        assert!(
            said.contains(&format!("a task has broken off: asked for by ATTACHD_PANIC_AT={point}")),
            "{point}: {said}"
        );
    }
}
